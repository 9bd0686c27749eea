"""Every command that the documentation tells a reader to type is typed, or stands in a list with the reason.

A new command is run as it stands, in a folder that has the examples. What takes long is shortened by words that the
documentation has too, or runs with `make test-slow` (slow) or `make test-real` (real): RULES says which, and why.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from posttrain import registry
from tests.documented import PROGRAMS, ROOT, Command, blocks, commands
from tests.worlds import World, tiny_study

How = Literal["run", "slow", "real", "make", "listed"]


class Rule(NamedTuple):
    """Lines that match are run so, the first rule counts; `inline ` stands before those within a sentence.

    more: words put behind the line. names: what words of the line stand for, as `FILE=law.csv`. codes: of the end.
    """

    pattern: str
    how: How
    why: str
    more: str = ""
    names: str = ""
    codes: tuple[int, ...] = (0,)


TINY = "TINY"
"""Stands for the words of `tiny_study`: every method of the study, two steps each, two questions of each exam."""
STEPS = "--set optimizer.max_steps=2 --set optimizer.epochs=null"
SPEED = (0, 1)
"""Benchmarks end with 1 where a promise of speed is not kept, as beside other programs."""

RULES = (
    # ---- not typed here ----
    Rule(r"(inline )?pip install .*|python -m pip .*|python3 -m venv .*", "listed", "fetches from the network"),
    Rule(r"docker .*", "listed", "wants a builder; what can be checked without: tests/test_docker.py"),
    Rule(r"python -m pytest.*", "listed", "is what runs this test"),
    Rule(r"(inline )?make .*", "make", "asked what it would do; the Makefile's own lines are commands here, too"),
    Rule(r'posttrain run "\$\$study"', "listed", "each study of examples/real by the first line of its own"),
    Rule(r"python tools/real_model.py", "listed", "fetches the real model: tests/tools/test_real_model.py"),
    Rule(r"python tools/messages.py( --check)?", "listed", "of this checkout: tests/tools/test_messages.py"),
    Rule(r"inline python tools/vega.py", "slow", "into a file of its own", "--output vega.js"),
    Rule(r"(inline )?torchrun .* exam .*", "listed", "several processes: tests/inference/test_shards.py"),
    Rule(r"torchrun .* train .*", "listed", "several processes: tests/training/test_run.py"),
    Rule(r".* --tasks mmlu .*--download.*", "listed", "a data set of the hub"),
    Rule(r"posttrain data show openai/gsm8k .*", "listed", "a data set of the hub"),
    Rule(r".*models=\[Qwen/Qwen2.5-7B-Instruct\].*", "listed", "wants a GPU and the hub"),
    Rule(r"posttrain exam api:.*", "listed", "wants a server: tests/inference/kinds/test_api.py has one"),
    Rule(r"(inline )?python -m tools.pocket .*", "listed", "of this checkout, an hour or a minute: tests/tools/pocket"),
    Rule(r"inline python tools/real_facts.py", "listed", "writes into this checkout, from answers of the real model"),
    Rule(r"inline posttrain --install-completion", "listed", "writes into the user's shell files"),
    Rule(r"inline python benchmarks/(bf16|train_real|memory_real)\.py.*", "listed", "minutes on a real model"),
    Rule(
        r"inline posttrain (\w+|data (check|show)|model (export|verify)|VERB --help)",
        "listed",
        "names a verb, is no whole command",
    ),
    Rule(r"inline posttrain (exam (--match exact|--change|-o DIR)|train --dry-run)", "listed", "names an option only"),
    Rule(
        r"(inline )?posttrain merge skills.yaml .*",
        "listed",
        "a recipe of the reader's own models: tests/cli/test_merge.py",
    ),
    # ---- the real model ----
    Rule(r"posttrain run examples/real/.*", "real", "every method in two steps, one change", f"--changes 1 {TINY}"),
    Rule(r"inline posttrain exam smollm2", "real", "three questions of one exam", "--exam refusal --limit 3"),
    Rule(
        r"(inline )?posttrain trace smollm2 .*",
        "real",
        "one fact, one sample",
        "--limit 1 --set samples=1 --set kinds=[mlp]",
    ),
    Rule(r"posttrain .*smollm2.*", "real", "names the real model"),
    # ---- studies ----
    Rule(r"posttrain run .* --dry-run", "run", "trains nothing"),
    Rule(
        r"posttrain run examples/first_study.yaml --download",
        "slow",
        "README's own file is like it",
        f"--changes 1 {TINY} --set models=[pocket:chat]",
    ),
    Rule(
        r"posttrain run .*first_study.yaml --download",
        "run",
        "every method in two steps, on the model in the box",
        f"--changes 1 {TINY} --set models=[pocket:chat]",
    ),
    Rule(r"posttrain run first.yaml", "run", "every method in two steps", f"--changes 1 {TINY}"),
    Rule(
        r"(inline )?(OMP_NUM_THREADS=1 )?posttrain (--language zh-TW )?run .*",
        "slow",
        "every method in two steps; one of the changes",
        f"--changes 1 {TINY}",
    ),
    Rule(r"python examples/skills/summary.py .*", "slow", "of a whole study, shortened"),
    Rule(r"posttrain report runs/(superlative|role).*", "slow", "of a whole study, shortened"),
    Rule(r"posttrain gate runs/superlative .*", "slow", "of a whole study, shortened", codes=(0, 5)),
    Rule(r"posttrain gate runs/base-chat .*", "run", "of the exams of two models, shortened", codes=(0, 5)),
    # ---- training and exams ----
    Rule(r"posttrain trace .* --dry-run", "run", "traces nothing"),
    Rule(
        r"posttrain trace pocket:chat \S+superlatives/\*\.yaml\S* --output .*",
        "run",
        "two facts, one sample",
        "--limit 2 --set samples=1",
    ),
    Rule(
        r"posttrain (--language zh-TW )?trace .*",
        "run",
        "two facts, one sample, one kind of place",
        "--limit 2 --set samples=1 --set kinds=[mlp]",
    ),
    # ---- edits ----
    Rule(
        r"(inline )?posttrain edit (?!.*--(list|undo|dry-run)).*",
        "run",
        "three steps of each search",
        "--set target.steps=3 --set contexts=1 --force",
    ),
    Rule(r"posttrain train .* --dry-run", "run", "trains nothing"),
    Rule(
        r"posttrain train examples/train_(lora|sdft).yaml",
        "run",
        "two steps, eight replayed answers",
        f"{STEPS} --set replay.n=8",
    ),
    Rule(
        r"posttrain train examples/train_dpo.yaml",
        "run",
        "two steps of few rows, eight replayed answers",
        f"{STEPS} --set replay.n=8 --set batch.tokens=256 --set validation_share=0.05",
    ),
    Rule(r"posttrain train .*", "run", "two steps", STEPS),
    Rule(r"(LANG=\S+ )?posttrain exam .*--(exams|exam|tasks) .*", "run", "two questions of each", "--limit 2"),
    Rule(r"inline posttrain exam MODEL --precision bfloat16", "run", "some exam", "--exam refusal --limit 2"),
    # ---- what words stand for ----
    Rule(r".*judge_files.py kept .*", "run", "on two pairs", names="FILE=pairs.jsonl 檔案.jsonl=pairs.jsonl"),
    Rule(r".*--base MODEL -o DIR", "run", "on the prefix's own base", names="MODEL=models/glm DIR=made"),
    Rule(r".*convert DIR --flatten.*", "run", "on what the line before makes", names="DIR=prefix/adapter"),
    Rule(r"inline posttrain report DIR", "run", "on an exam's folder", names="DIR=runs/base-chat"),
    # ---- benchmarks ----
    Rule(r".*fisher.py --model .*", "slow", "few rows", "--rows 4 --repetitions 1", "...=pocket:chat", SPEED),
    Rule(
        r"inline python benchmarks/edit.py",
        "slow",
        "four edits, once",
        "--edits 4 --naive 1 --single 1 --repetitions 1",
        codes=SPEED,
    ),
    Rule(r"python benchmarks/exam.py", "slow", "few questions", "--quick --models pocket", codes=SPEED),
    Rule(r"python benchmarks/generation.py", "slow", "once", "--repetitions 1", codes=SPEED),
    Rule(r"python benchmarks/train_loop.py", "slow", "two steps, once", "--repetitions 1 --steps 2", codes=SPEED),
    Rule(r"(inline )?python benchmarks/tuners.py --choose.*", "slow", "one tuner", "--only lora --output runs/rates"),
    Rule(r"(inline )?python benchmarks/tuners.py.*", "slow", "one change", "--changes 1"),
)
STANDS_FOR = {
    "MODEL": "pocket:chat",
    "ADAPTER": "runs/soft/model",
    "FILE": "changes/tallest.yaml",
    "Qwen/Qwen2.5-0.5B-Instruct": "path/to/original",
}
"""What words stand for where no rule says otherwise."""
EXAMS = frozenset(registry.kinds("exam"))
AS_IT_STANDS = Rule(r".*", "run", "as it stands")
SAID = "Who wrote Hamlet?\n/quit\n"
"""What is typed into a chat."""


def rule_of(command: Command) -> Rule:
    text = f"inline {command.line}" if command.inline else command.line
    return next((rule for rule in RULES if re.fullmatch(rule.pattern, text)), AS_IT_STANDS)


def more_of(line: str, folder: Path) -> list[str]:
    """The words behind a line, by its rule."""
    more = shlex.split(rule_of(commands().get(line) or Command(line, "", inline=False)).more)
    if TINY in more:
        study = folder / next(word for word in shlex.split(line) if word.endswith(".yaml"))
        at = more.index(TINY)
        more[at : at + 1] = tiny_study(study)
    return more


def typed(command: Command) -> str:
    """The line with names in the place of words that stand for some."""
    names = STANDS_FOR | dict(pair.split("=") for pair in rule_of(command).names.split())
    return " ".join(names.get(word, word) for word in command.line.split(" "))


def cases(*hows: How) -> list[object]:
    """Commands that are dealt with so, with their marks."""
    long = pytest.mark.timeout(1800)  # a study on the real model took eight minutes beside eight other programs
    marks = {"slow": [pytest.mark.slow, long], "real": [pytest.mark.real, long]}
    seen: set[tuple[object, ...]] = set()
    made: list[object] = []
    for command in commands().values():
        how = rule_of(command).how
        if how in hows:
            alike = how == "run" and kind_of(command) in seen
            seen.add(kind_of(command))
            made.append(pytest.param(command, id=command.line, marks=marks["slow"] if alike else marks.get(how, [])))
    return made


def kind_of(command: Command) -> tuple[object, ...]:
    """A program, its verb, its options without their values, and its rule: of commands alike in these, the first is
    typed at once and the others with `make test-slow`.
    """
    words = shlex.split(command.line)
    options = frozenset(word.partition("=")[0] for word in words if word.startswith("-"))
    kinds = tuple(word for word in words if word in EXAMS or "=" in word)
    return (*words[: 3 if words[1:2] == ["model"] or words[1:2] == ["data"] else 2], options, kinds, rule_of(command))


@pytest.mark.parametrize("command", cases("run", "slow", "real"))
def test_a_documented_command_runs(
    command: Command,
    documented: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rule = rule_of(command)
    if rule.how == "real":
        monkeypatch.setenv("POSTTRAIN_REAL", str(request.getfixturevalue("real_model")))
    world = World(tmp_path / "world", documented, more_of)
    line, stdin = typed(command), SAID
    if " | " in line:
        said, line = line.split(" | ")
        stdin = f"{shlex.split(said)[1]}\n"
    world.prepare(shlex.split(line))
    more = more_of(command.line, world.folder)
    capsys.readouterr()
    code = world.run(line, more, stdin)
    out, err = capsys.readouterr()
    assert code in rule.codes, (
        f"{command.location}: {line} {shlex.join(more)} gives {code}\n{out[-2000:]}\n{err[-4000:]}"
    )
    does_what_it_says(line, [*shlex.split(line), *more], out, world.folder)


def program(line: str) -> str:
    """The first word that sets no variable."""
    return next(word for word in line.split() if not re.match(r"[A-Z_]+=", word))


def option(words: list[str], *names: str) -> str | None:
    """The last value of an option."""
    found = [value for name, value in pairwise(words) if name in names]
    return found[-1] if found else None


def does_what_it_says(line: str, words: list[str], out: str, folder: Path) -> None:
    """Whether files lie where the line says, hold what it asks for, and --json is one document."""
    if "--json" in words:
        assert json.loads(out) is not None
    output = option(words, "--output", "-o")
    if output is not None and "--dry-run" not in words:
        assert (folder / output).exists(), output
    if line.startswith("posttrain data make changes"):
        n = int(option(words, "--n") or 20)
        made = folder / (output or "changes")
        assert len({path.stem.partition("_")[0] for path in made.glob("*.yaml")}) == n
        rows = int(option(words, "--pattern-rows") or 0)
        lengths = {len(path.read_text("utf-8").splitlines()) for path in made.glob("pattern/*.jsonl")}
        assert lengths == ({rows} if rows else set())
    if line.startswith("posttrain data make prompts"):
        assert len((folder / str(output)).read_text("utf-8").splitlines()) == int(str(option(words, "--n")))
    if line.startswith("posttrain list ") and "--schema" not in words and "--json" not in words and len(words) == 3:
        seam = {"penalties": "penalty"}.get(words[2], words[2].removesuffix("s"))
        assert all(kind in out for kind in registry.kinds(seam))
    if line.startswith("posttrain report ") and "--tables" not in words:
        page = folder / (output or f"{words[2]}/report.html")
        language = "zh-TW" if "zh-TW" in words else "en"
        assert re.search(r"<html[^>]* lang=\"([\w-]+)\"", page.read_text("utf-8"))[1] == language  # type: ignore[index]
    if line.startswith("LANG=zh_TW.UTF-8 ") and "--language" not in words:
        assert re.search(r"[\u4e00-\u9fff]", out)
    if line.startswith("posttrain run ") and "--dry-run" not in words:
        (results,) = (folder / "runs").glob("*/results.json")
        cells = json.loads(results.read_text("utf-8"))["cells"]
        assert cells
        assert not [cell for cell in cells if cell.get("error")]
    if re.match(r"python examples/\w+/make\w*\.py$", line):  # what it writes is what lies there
        for path in (ROOT / Path(words[1]).parent).glob("*.*"):
            assert (folder / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("command", cases("make"))
def test_make_would_do_what_is_run_here(command: Command) -> None:
    words = ["make", "--dry-run", "-C", str(ROOT), *command.words[1:]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    would = re.findall(r"^(?:[A-Z_]+=\S+ )?\.venv/bin/((?:posttrain|python) .*)$", done.stdout, re.MULTILINE)
    fetching = "python -m pip install "  # listed, whatever follows
    would = [line.removesuffix(" \\") for line in would]
    assert [line for line in would if line not in commands() and not line.startswith(fetching)] == []


def test_no_line_is_left_out() -> None:
    """What is in a console block and is no command known here would be neither run nor listed."""
    strange = [
        f"{command.location}: {command.line}"
        for command in commands().values()
        if program(command.line.split(" | ")[-1]) not in PROGRAMS
    ]
    assert strange == []
    unlisted = [
        f"{command.location}: {command.line}"
        for command in commands().values()
        if rule_of(command).how in ("run", "slow", "real")
        and not re.match(r"([A-Z_]+=\S+ )*(posttrain |python \w+/[\w/]+\.py)", command.line.split(" | ")[-1])
    ]
    assert unlisted == []
    lines = [line.strip() for block in blocks("console") for line in block.body.splitlines() if line.strip()]
    told = {re.sub(r"\s+#\s.*$", "", line.removeprefix("$ ")) for line in lines}
    assert told <= set(commands())
    assert len(told) > 120


def test_every_rule_has_a_command() -> None:
    """A rule for what is no longer documented would hide a new command that happens to look like it."""
    found = {rule_of(command) for command in commands().values()}
    assert [rule.pattern for rule in RULES if rule not in found] == []
    assert all(rule.why for rule in RULES)
    listed = [command.line for command in commands().values() if rule_of(command).how == "listed"]
    assert 4 * len(listed) < len(commands()), "too much is not run"
