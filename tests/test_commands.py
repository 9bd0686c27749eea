"""Every command that the documentation tells a reader to type is typed, or stands in a list with the reason.

A new command is run as it stands, in a folder that has the examples. What takes long is shortened by words that the
documentation has too, or runs with `make test-slow` (slow) or `make test-real` (real): RULES says which, and why.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from posttrain.cli.main import VERBS
from posttrain.config.load import read_yaml
from tests.documented import ROOT, Command, commands
from tests.worlds import World, tiny_study

How = Literal["run", "slow", "real", "make", "listed"]


class Rule(NamedTuple):
    """Lines that match are run so, with more words behind them; the first rule that matches counts."""

    pattern: str
    how: How
    why: str
    more: str = ""


TINY = "TINY"
"""Stands for what `tiny_study` says: every method of the study, two steps each, two questions of each exam."""
STANDS_FOR = {
    "MODEL": "pocket:chat",
    "ADAPTER": "runs/soft/model",
    "FOLDER": "path/to/original",
    "FILE": "changes/tallest.yaml",
    "Qwen/Qwen2.5-0.5B-Instruct": "path/to/original",
}

STEPS = "--set optimizer.max_steps=2 --set optimizer.epochs=null"

RULES = (
    # ---- not typed here ----
    Rule(r"pip install .*|python -m pip .*|python3 -m venv .*", "listed", "fetches packages from the network"),
    Rule(r"python -m pytest.*", "listed", "is what runs this test"),
    Rule(r"make .*", "make", "make says what it would do; those lines of the Makefile are commands here, too"),
    Rule(r'posttrain run "\$\$study"', "listed", "each study of examples/real by the first line of its own"),
    Rule(r"python tools/real_model.py", "listed", "fetches the real model; its parts: tests/tools/test_real_model.py"),
    Rule(r"torchrun .* exam .*", "listed", "several processes: tests/inference/test_shards.py"),
    Rule(r"torchrun .* train .*", "listed", "several processes: tests/training/test_run.py"),
    Rule(r".* --tasks mmlu .*--download.*", "listed", "a data set of the hub"),
    Rule(r"posttrain data show openai/gsm8k .*", "listed", "a data set of the hub"),
    Rule(r".*models=\[Qwen/Qwen2.5-7B-Instruct\].*", "listed", "wants a GPU and the hub"),
    Rule(r"posttrain exam api:.*", "listed", "wants a server: tests/inference/kinds/test_api.py has one"),
    Rule(r"posttrain model pocket build runs/pocket", "listed", "an hour: tests/pocket/test_build.py in small"),
    Rule(r"posttrain model pocket check --folder runs/pocket", "listed", "what that hour makes; here without --folder"),
    Rule(r"posttrain --install-completion", "listed", "writes into the user's shell files"),
    Rule(r"inline python benchmarks/(bf16|train_real|memory_real)\.py .*", "listed", "minutes on a real model"),
    Rule(r"inline posttrain (\w+|data (check|show)|VERB --help)", "listed", "names a verb, no whole command"),
    Rule(r"inline posttrain (exam (--match exact|--change|-o DIR)|train --dry-run)", "listed", "names an option only"),
    # ---- the real model ----
    Rule(r"posttrain run examples/real/.*", "real", "two steps of every method, one change", f"--changes 1 {TINY}"),
    Rule(r"inline posttrain exam smollm2", "real", "three questions of one exam", "--exam refusal --limit 3"),
    Rule(r"posttrain .*smollm2.*", "real", "names the real model"),
    # ---- shortened ----
    Rule(r"posttrain run .* --dry-run", "run", "nothing is trained"),
    Rule(r"posttrain run examples/.*", "slow", "every method in two steps", f"--changes 1 {TINY}"),
    Rule(r"posttrain run .*", "slow", "every method in two steps", f"--changes 1 {TINY}"),
    Rule(r"posttrain train examples/.*", "run", "two steps", STEPS),
    Rule(r"posttrain train .*", "run", "two steps", STEPS),
    Rule(r"posttrain exam .*--(exams|exam|tasks) .*", "run", "two questions of each", "--limit 2"),
    Rule(r"posttrain model pocket check.*", "slow", "three questions a relation", "--questions 3"),
    Rule(r"python benchmarks/exam.py", "slow", "small", "--quick --models pocket"),
    Rule(r"python benchmarks/generation.py", "slow", "small", "--repetitions 1"),
    Rule(r"python benchmarks/train_loop.py", "slow", "small", "--repetitions 1 --steps 2"),
    Rule(r"python benchmarks/tuners.py --choose.*", "slow", "small", "--only lora"),
    Rule(r"python benchmarks/tuners.py.*", "slow", "small", "--changes 1"),
)


def rule_of(command: Command) -> Rule:
    for text in (f"inline {command.line}",) if command.inline else (command.line,):
        for rule in RULES:
            if re.fullmatch(rule.pattern, text) or re.fullmatch(rule.pattern, text.removeprefix("inline ")):
                return rule
    return Rule("", "run", "as it stands")


def typed(line: str) -> str:
    """The line with names of files in the place of words that only stand for some."""
    return " ".join(
        word.replace(word.rpartition("=")[2], STANDS_FOR.get(word.rpartition("=")[2], word.rpartition("=")[2]))
        for word in line.split(" ")
    )


def more_of(line: str, folder: Path) -> list[str]:
    """The words behind a line, by its rule."""
    more = shlex.split(rule_of(Command(line, "", inline=False)).more)
    if TINY in more:
        found = next(word for word in shlex.split(line) if word.endswith(".yaml"))
        at = more.index(TINY)
        more[at : at + 1] = tiny_study(folder / found if (folder / found).exists() else ROOT / found)
    return more
