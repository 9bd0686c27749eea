"""Every command and every Python snippet that README, docs, examples and the Makefile tell a reader to type."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from posttrain.cli.main import VERBS

__all__ = ["PROGRAMS", "ROOT", "Block", "Command", "blocks", "commands", "named", "pages"]

ROOT = Path(__file__).parent.parent
PROGRAMS = ("posttrain", "python", "python3", "make", "pip", "torchrun", "accelerate", "docker", "uv", "git")
SPAN = re.compile(rf"`((?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}) [^`]+)`")
COMMENT = re.compile(
    rf"^#[^`\n]*?\b((?:posttrain (?:{'|'.join(VERBS)}) |python [a-z]+/)[^`\n]*?)(?:  +\(.*)?$", re.MULTILINE
)
USAGE = re.compile(r"^    ((?:posttrain|python) .+)$", re.MULTILINE)
RECIPE = re.compile(r"\$\(BIN\)/((?:posttrain|python) [^;\n]+)")


class Command(NamedTuple):
    """One line that a reader may type: the words, the first place that has it, and whether it stands in running text."""

    line: str
    location: str
    inline: bool

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


class Block(NamedTuple):
    """A fenced block: its page, its language, its number among the page's blocks of that language, its text."""

    page: Path
    language: str
    number: int
    body: str

    @property
    def name(self) -> str:
        return f"{named(self.page)}#{self.number}"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def pages() -> tuple[Path, ...]:
    found = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "examples" / "README.md"]
    return tuple(sorted(path for path in found if path.name != "CHANGELOG.md"))


@cache
def blocks(language: str) -> tuple[Block, ...]:
    fence = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
    found: list[Block] = []
    for page in pages():
        bodies = [body for word, body in fence.findall(page.read_text("utf-8")) if word == language]
        found += [Block(page, language, number, body) for number, body in enumerate(bodies)]
    return tuple(found)


def _lines() -> Iterator[Command]:
    for block in blocks("console"):
        for line in block.body.replace("\\\n", " ").splitlines():
            typed = re.sub(r"\s+#\s.*$", "", line.strip().removeprefix("$ "))
            if typed:
                yield Command(typed, named(block.page), inline=False)
    for page in pages():
        prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for span in SPAN.findall(prose):
            yield Command(" ".join(span.split()), named(page), inline=True)
    for path in sorted((ROOT / "examples").rglob("*.yaml")):
        text = path.read_text("utf-8")
        for line in COMMENT.findall(text):
            yield Command(line, named(path), inline=False)
        for span in SPAN.findall(text.replace("\n#", "\n")):
            yield Command(" ".join(span.split()), named(path), inline=True)
    for path in sorted((ROOT / "examples").rglob("*.py")):
        for line in USAGE.findall(ast.get_docstring(ast.parse(path.read_text("utf-8")), clean=False) or ""):
            yield Command(re.sub(r"\s+#\s.*$", "", line), named(path), inline=False)
    for line in RECIPE.findall((ROOT / "Makefile").read_text("utf-8")):
        yield Command(line.removesuffix(" \\"), "Makefile", inline=False)


@cache
def commands() -> dict[str, Command]:
    """Line -> the command, each once; one that is told on a line of its own counts as that."""
    found: dict[str, Command] = {}
    for command in sorted(_lines(), key=lambda command: command.inline):
        found.setdefault(command.line, command)
    return found
