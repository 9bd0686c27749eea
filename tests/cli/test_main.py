from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain import __version__
from posttrain.cli import main as cli
from posttrain.cli import options
from posttrain.errors import ConfigError, Interrupted, MissingError, PartlyDone, PosttrainError, Problem

HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "pandas", "altair")
HELP_S = 1.0


@pytest.mark.parametrize(
    "words", [[], *([verb] for verb in cli.VERBS)], ids=lambda words: " ".join(words) or "posttrain"
)
def test_help_is_quick_and_imports_nothing_heavy(words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "posttrain", *words, "--help"]
    best = 99.0
    for _ in range(3):  # the best of three: other work on the machine is not help's fault
        began = os.times()
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        ended = os.times()
        best = min(best, ended.children_user + ended.children_system - began.children_user - began.children_system)
        if best < HELP_S:
            break
    assert done.returncode == 0, done.stderr[-500:]
    assert "Usage: posttrain" in done.stdout
    modules = {match.split(".")[0] for match in re.findall(r"\|\s+([\w.]+)$", done.stderr, flags=re.M)}
    assert "typer" in modules
    assert not modules & set(HEAVY)
    assert best < HELP_S


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_help_names_every_verb_and_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name, verb in cli.VERBS.items():
        assert re.search(rf"\b{name}\b", out)
        assert verb.help.split()[0] in out
    assert len(cli.VERBS) == len(set(cli.VERBS.values()))


def test_no_verb_is_left_out_of_the_table() -> None:
    helpers = {"__init__", "help_table", "main", "options", "plain", "settings", "speaking"}
    helpers |= {"stopping", "works"}
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - helpers
    files = {name for name in files if name.partition("_")[0] not in cli.VERBS or name in cli.VERBS}  # a verb's parts
    assert files <= {verb.target.partition(":")[0] for verb in cli.VERBS.values()}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"posttrain {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ruun"], "Did you mean 'run'?"),
        (["run"], "Missing argument"),
        (["run", "x.yaml", "--drry-run"], "--dry-run"),
        (["zzz"], "No such command 'zzz'"),
        (["run", "x.yaml", "--changes", "0"], "greater than or equal to 1"),
    ],
)
def test_usage_errors_exit_2_and_help(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def raising(error: BaseException) -> Any:
    def verb() -> None:
        raise error

    return verb


def with_verb(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    module = importlib.import_module("posttrain.cli.list")
    monkeypatch.setattr(module, "list_kinds", raising(error))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError(Problem("a.yaml:3", "unknown key 'x'", "did you mean 'y'?")), 2, "a.yaml:3: unknown key 'x'; did you"),
        (MissingError("no model"), 3, "no model"),
        (PartlyDone("2 of 3"), 4, "2 of 3"),
        (Interrupted("saved"), 130, "saved"),
        (PosttrainError("failed"), 1, "failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "/x/y: Permission denied; let this user read and write"),
        (FileExistsError(17, "File exists", "/x/y"), 1, "/x/y: File exists; a file stands where a folder is needed"),
        (OSError(30, "Read-only file system", "/x/y"), 1, "/x/y: Read-only file system; let this user read and write"),
        (OSError(28, "No space left on device"), 1, "No space left on device; free some space"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_errors_become_exit_codes_and_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    with_verb(monkeypatch, error)
    got, out, err = run(capsys, "list")
    assert (got, out) == (code, "")
    assert err.startswith(message)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (ConfigError(Problem("a.yaml:3", "unknown key 'x'", "write 'y'"), Problem("b", "bad")), 2, "unknown key 'x'"),
        (Interrupted("saved"), 130, "saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_with_json_a_failure_is_a_document_too(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    cause: str,
    language: str,
) -> None:
    """In English, whatever language people are spoken to."""

    def verb(json: options.JsonOption = False) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("posttrain.cli.list"), "list_kinds", verb)
    got, out, err = run(capsys, "list", "--json", "--language", language)
    told = json.loads(out)
    assert (got, told["exit_code"], told["problems"][0]["cause"]) == (code, code, cause)
    assert err
    if isinstance(error, PosttrainError):
        assert told["problems"] == [{"place": p.location, "cause": p.cause, "mend": p.mend} for p in error.problems]
        assert told["error"] == str(error)


def test_with_json_a_wrong_command_line_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    for language in ("en", "zh-TW"):
        code, out, err = run(capsys, "list", "--json", "--bogus", "--language", language)
        assert (code, json.loads(out)["problems"][0]["cause"]) == (2, "No such option: --bogus")
        assert "--bogus" in err


def test_with_json_there_is_one_document(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told before the failure is the document."""

    def verb(json: options.JsonOption = False) -> None:
        options.emit({"rows": 3})
        raise PartlyDone("2 of 3")

    monkeypatch.setattr(importlib.import_module("posttrain.cli.list"), "list_kinds", verb)
    code, out, _ = run(capsys, "list", "--json")
    assert (code, json.loads(out)) == (4, {"rows": 3})


@pytest.mark.parametrize("how", ["before", "after", "environment"])
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    with_verb(monkeypatch, ConfigError("bad"))
    if how == "environment":
        monkeypatch.setenv("POSTTRAIN_DEBUG", "1")
    words = {"before": ["--debug", "list"], "after": ["list", "--debug"], "environment": ["list"]}[how]
    with pytest.raises(ConfigError):
        cli.main(words)
    monkeypatch.delenv("POSTTRAIN_DEBUG", raising=False)
    assert cli.main(["list"]) == 2


def test_quiet_silences_talk_but_not_data_or_errors(capsys: pytest.CaptureFixture[str]) -> None:
    options.take_global(["x", "--quiet"])
    options.talk("hello")
    options.emit({"臺灣": [1, 2]})
    out = capsys.readouterr()
    assert (out.out, out.err) == ('{\n  "臺灣": [\n    1,\n    2\n  ]\n}\n', "")
    options.take_global(["x"])
    options.talk("hello")
    assert capsys.readouterr().err == "hello\n"
    assert run(capsys, "ruun", "--quiet")[2] != ""


def test_words_after_two_dashes_are_left_alone() -> None:
    assert options.take_global(["chat", "--debug", "--", "--quiet"]) == ["chat", "--", "--quiet"]
    assert options.debug()
    assert not options.quiet()
    options.take_global([])


def test_nan_is_no_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        options.emit({"x": float("nan")})


def test_a_closed_pipe_is_no_traceback() -> None:
    command = [sys.executable, "-m", "posttrain", "list", "--schema", "change"]
    page = 4096  # what the pipe holds: the schema is three times as long
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # which hides broken pipes
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, pipesize=page
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "{\n"
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    if sys.platform == "linux":  # elsewhere the size is not ours to choose
        assert process.returncode == 1  # it noticed


def test_completion_knows_the_options_of_a_verb() -> None:
    env = {**os.environ, "_POSTTRAIN_COMPLETE": "complete_bash", "COMP_WORDS": "posttrain run --dr", "COMP_CWORD": "2"}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "posttrain"], capture_output=True, text=True, env=env, timeout=240)
    assert "--dry-run" in done.stdout, (done.stdout, done.stderr, time.monotonic() - began)


def test_idle_threads_do_not_spin_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cli.main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    cli.main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize("words", [["run"], ["chat"], ["data", "show"], ["data", "make", "changes"], ["model", "show"]])
def test_help_speaks_no_python(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, _ = run(capsys, *words, "--help")
    assert code == 0
    assert "--json" in out
    assert not re.search(r"<(bool|int|float)", out)


def test_a_name_that_is_no_utf8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = run(capsys, "train", "--data", os.fsdecode(b"rows_\xff.jsonl"))
    assert code == 2
    assert told == "'rows_\\udcff.jsonl': these bytes are not UTF-8; rename the file or folder\n"
