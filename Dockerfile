# posttrain in a container: for a CPU, or with CUDA. docs/install.md says how to build and run it.
#
#   BASE         python:3.11-slim, or an image with CUDA or with PyTorch in it
#   TORCH_INDEX  the URL behind --index-url in the line that PyTorch's installation selector prints: for CPU, or for
#                your CUDA. Empty: what pip takes by itself, which on Linux is a CUDA build. A PyTorch that the base has
#                is kept.
#   EXTRAS       extras of posttrain, such as lm-eval,api,gguf
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG TORCH_INDEX=""
ARG EXTRAS=""
ARG USER_ID=10001

ENV LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false \
    PATH=/opt/venv/bin:$PATH

# Images with CUDA have no Python, or one without venv: then it is the distribution's.
RUN if ! python3 -c 'import ensurepip, venv'; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && python3 -c 'import sys; assert sys.version_info >= (3, 11), "the base has no Python 3.11 or newer"' \
    && python3 -m venv --system-site-packages /opt/venv

WORKDIR /opt/posttrain
COPY pyproject.toml constraints.txt ./

# The largest layer first, and alone: it changes least.
RUN if ! python -c 'import torch'; then \
        pip install --no-cache-dir --disable-pip-version-check ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
            "$(grep '^torch==' constraints.txt)"; \
    fi

# Then what posttrain is built on, at the versions that its tests run with; the PyTorch that is there stays.
RUN grep -v '^torch==' constraints.txt > pinned.txt \
    && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > needed.txt \
    && pip install --no-cache-dir --disable-pip-version-check -c pinned.txt -r needed.txt

COPY README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --disable-pip-version-check -c pinned.txt ".${EXTRAS:+[$EXTRAS]}"
COPY examples examples

# Nothing is run as root. Everything is written below /data: runs, replayed answers, what --download fetches.
RUN useradd --uid "$USER_ID" --no-create-home --home-dir /data posttrain \
    && install -d -o "$USER_ID" -m 1777 /data
ENV HOME=/data \
    USER=posttrain
USER posttrain
WORKDIR /data

ENTRYPOINT ["posttrain"]
CMD ["--help"]
