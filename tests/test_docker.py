"""The Dockerfile, as far as it can be checked without a builder: what it copies, runs as, is told, and says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.documented import ROOT, commands

FILE = (ROOT / "Dockerfile").read_text("utf-8")
STEPS = [
    (word, rest.strip())
    for word, rest in re.findall(
        r"^([A-Z]+) ((?:.*\\\n)*.*)$", re.sub(r"^#.*\n", "", FILE, flags=re.MULTILINE), re.MULTILINE
    )
]


def ignored(path: str) -> bool:
    """By .dockerignore's rule: the last pattern that matches a path or a folder above it decides."""
    parts = path.split("/")
    above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    out = False
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        names = [pattern, pattern.removeprefix("**/")]
        if any(fnmatch(each, name) and each.count("/") == name.count("/") for each in above for name in names) or (
            pattern.startswith("**/") and any(fnmatch(part, names[1]) for part in parts)
        ):
            out = not line.startswith("!")
    return out


def copied() -> list[str]:
    return [source for word, rest in STEPS if word == "COPY" for source in rest.split()[:-1]]


def test_what_is_copied_is_there_and_is_let_through() -> None:
    assert set(copied()) == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src", "examples"}
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    weights = next((ROOT / "src").rglob("*.safetensors"))
    assert not ignored(str(weights.relative_to(ROOT)))
    for other in (".git", ".env", ".venv", ".real/smollm2/model.safetensors", "runs", "tests", "docs", ".git/config"):
        assert ignored(other), other
    assert ignored("src/posttrain/__pycache__/x.pyc")


def test_the_wheel_needs_no_more_than_what_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named = {project["project"]["readme"], *project["project"]["license-files"]}
    named |= {path.split("/")[0] for path in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert named <= set(copied())


def test_it_ends_as_a_user_who_is_not_root_with_posttrain_as_the_program() -> None:
    words = [word for word, _ in STEPS]
    last_run = max(n for n, word in enumerate(words) if word == "RUN")
    (user,) = [rest for word, rest in STEPS if word == "USER"]
    assert user not in ("root", "0")
    assert words.index("USER") > last_run
    assert f'useradd --uid "$USER_ID" --no-create-home --home-dir /data {user}' in FILE
    assert ("ENTRYPOINT", '["posttrain"]') in STEPS  # no shell between: signals reach it
    assert ("CMD", '["--help"]') in STEPS


def test_arguments_are_used_and_documented() -> None:
    arguments = dict(rest.split("=", 1) for word, rest in STEPS if word == "ARG")
    assert arguments["BASE"] == f"python:{(ROOT / '.python-version').read_text('utf-8').strip()}-slim"
    for name in arguments:
        assert re.search(rf"\$\{{?{name}\b", FILE), name
    told = {
        name
        for line in commands()
        if line.startswith("docker build")
        for name in re.findall(r"--build-arg (\w+)=", line)
    }
    assert {"TORCH_INDEX", "BASE"} <= told <= set(arguments)
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    assert [name for name in arguments if f"`{name}`" not in page] == []


def test_nothing_is_left_behind_in_a_layer() -> None:
    for word, rest in STEPS:
        if word == "RUN":
            assert rest.count("pip install") == rest.count("--no-cache-dir")
            assert ("apt-get update" in rest) == ("rm -rf /var/lib/apt/lists/*" in rest)
    order = [rest for word, rest in STEPS if word in ("COPY", "RUN")]
    (torch,) = [n for n, rest in enumerate(order) if "--index-url" in rest]
    (source,) = [n for n, rest in enumerate(order) if rest.startswith("src ")]
    assert torch < source  # a change of the source fetches nothing again


@pytest.mark.skipif(shutil.which("sh") is None, reason="wants a POSIX shell")
def test_each_run_is_a_shell_script_that_parses() -> None:
    for word, rest in STEPS:
        if word == "RUN":
            done = subprocess.run(["sh", "-n", "-c", rest], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{rest}\n{done.stderr}"


def test_what_is_needed_is_read_from_pyproject(tmp_path: Path) -> None:
    """The line that writes needed.txt, and the version of PyTorch that constraints.txt names."""
    (code,) = re.findall(r"python -c '(import tomllib;[^']+)'", FILE)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert done.stdout.splitlines() == project["dependencies"]
    pinned = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    (torch,) = [line for line in pinned if line.startswith("torch==")]
    assert torch in (ROOT / "Makefile").read_text("utf-8")
