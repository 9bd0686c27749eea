"""The documentation is true of the code: names, keys, defaults, scores, commands, links, examples within the text."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.core import TyperGroup

from posttrain import errors, registry
from posttrain.cli.main import VERBS, build_app
from posttrain.config.base import Config
from posttrain.config.change import Change, ChatTurn, Generality, Locality, Question
from posttrain.config.load import check, parse_value
from posttrain.data.readers import DataSource, record_of
from posttrain.editing.editors._base import EditorConfig
from posttrain.editing.editors._located import LocatedConfig
from posttrain.editing.editors._tuned import TunedConfig
from posttrain.editing.trace import TraceConfig
from posttrain.exams.records import ProbeResult
from posttrain.exams.scores import score
from posttrain.exams.task import TaskConfig
from posttrain.merging.methods._base import DeltaConfig
from posttrain.studies.config import IMPLIED, MethodConfig, Study
from posttrain.studies.exam import ExamsFile
from posttrain.training.config import BatchConfig, OptimizerConfig, TrainConfig
from tools.pocket.check import GATES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "examples" / "README.md"])
SEAM_HEADINGS = {
    "method": "Methods",
    "objective": "Objectives",
    "tuner": "Tuners",
    "replay": "Replay",
    "penalty": "Penalties",
    "exam": "Kinds",
    "editor": "Editors",
    "merger": "Mergers",
    "respondent": "Respondents",
}
KIND_PAGES = ("methods.md", "editing.md", "merging.md", "exams.md", "exams-tasks.md", "respondents.md")
ANYWHERE = {"--help", "-h", "--debug", "--quiet", "--language"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


class Block(NamedTuple):
    """A fenced block: where it is, its language, its text."""

    page: Path
    language: str
    body: str


def blocks(language: str) -> list[Block]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [Block(page, *match) for page in PAGES for match in fence.findall(text_of(page))]
    return [block for block in found if block.language == language]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def section(page: str, *headings: str) -> str:
    """The text below nested headings, up to the next heading of the last one's level or above."""
    text = text_of(DOCS / page)
    for heading in headings:
        match = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
        assert match is not None, f"docs/{page} has no heading '{heading}'"
        rest = text[match.end() :]
        end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
        text = rest[: end.start()] if end else rest
    return text


def table_rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("|") and not re.match(r"^[|\s:-]+$", line):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def documented_keys(text: str) -> dict[str, str]:
    """First cell's names in backticks -> the second cell, of all tables of a text."""
    return {
        name: cells[1] if len(cells) > 1 else ""
        for cells in table_rows(text)
        for name in re.findall(r"`([^`]+)`", cells[0])
    }


# ---- names, keys, defaults ----------------------------------------------------------------------------------------------


@cache
def kind_sections() -> dict[tuple[str, str], str]:
    found = {}
    text = "\n## \n".join(text_of(DOCS / page) for page in KIND_PAGES)
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        seam = next((s for s, word in SEAM_HEADINGS.items() if part.startswith(word)), "optimizer")
        for paragraph in re.split(r"^### ", part, flags=re.MULTILINE)[1:]:
            title, _, body = paragraph.partition("\n")
            found[seam, title.strip("`")] = body
    return found


COMMON = {
    "exam": {*TaskConfig.model_fields},
    "method": {*MethodConfig.model_fields} - {"name"},
}
EDITORS = (LocatedConfig, TunedConfig, EditorConfig)
"""What editors have in common, the most special first: each has a table of its own."""
ALL_KINDS = [(seam, kind) for seam in registry.SEAMS for kind in registry.kinds(seam)]


@pytest.mark.parametrize(("seam", "kind"), ALL_KINDS)
def test_every_kind_has_its_section_with_every_key(seam: str, kind: str) -> None:
    body = kind_sections()[seam, kind]
    assert len(body.split()) > 15
    config = registry.load(seam, kind).config
    common = COMMON.get(seam, {"kind"})  # these have a table of their own
    if seam == "editor":
        common = {*next(one for one in EDITORS if issubclass(config, one)).model_fields}
    if seam == "merger" and issubclass(config, DeltaConfig):
        common = {*DeltaConfig.model_fields}
    assert_table_is(documented_keys(body), [config], leave_out=common)


def test_no_section_is_about_a_kind_that_is_not() -> None:
    optimisers = OptimizerConfig.model_json_schema()["properties"]["kind"]["enum"]
    assert set(kind_sections()) == {*ALL_KINDS, *(("optimizer", kind) for kind in optimisers)}


@pytest.mark.parametrize(
    ("page", "headings", "configs"),
    [
        ("studies.md", ("Keys",), [Study]),
        ("training.md", ("Keys",), [TrainConfig, OptimizerConfig, BatchConfig]),
        ("training.md", ("Keys", "optimizer"), [OptimizerConfig]),
        ("training.md", ("Keys", "batch"), [BatchConfig]),
        ("data.md", ("Where rows come from",), [DataSource]),
        ("change-files.md", ("Keys",), [Change, Question]),
        ("exams.md", ("Keys of every exam",), [TaskConfig]),
        ("tracing.md", ("Settings",), [TraceConfig]),
        ("studies.md", ("Keys of every method",), [MethodConfig]),
    ],
)
def test_every_key_is_documented_with_its_default(
    page: str, headings: tuple[str, ...], configs: list[type[Config]]
) -> None:
    assert_table_is(documented_keys(section(page, *headings)), configs)


def assert_table_is(rows: dict[str, str], configs: list[type[Config]], leave_out: set[str] | None = None) -> None:
    """The rows are the keys of the configs, no more and no less; a default in backticks is the key's default."""
    fields = {k: f for config in configs for k, f in config.model_fields.items() if k not in (leave_out or ())}
    assert set(rows) == set(fields)
    wrong = []
    for key, cell in rows.items():
        literal = re.fullmatch(r"`([^`]+)`", cell)
        if literal is None:
            continue
        default = fields[key].get_default(call_default_factory=True)
        told = parse_value(literal[1])
        told = tuple(told) if isinstance(told, list) else told
        if told != default:
            wrong.append(f"{key} is {default!r}, not {told!r}")
    assert not wrong, wrong


def test_probes_and_messages_are_documented() -> None:
    page = text_of(DOCS / "change-files.md")
    names = [name for config in (Generality, Locality, ChatTurn) for name in config.model_fields]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_score_is_explained_and_no_other() -> None:
    groups = ["reliability"]
    groups += [f"generality.{kind}" for kind in Generality.model_fields]
    groups += [f"locality.{kind}" for kind in Locality.model_fields]
    samples = [
        ProbeResult("", group, i, "p", ("a",), (), "b", "a", ok=True, kl_nats=1.0, kl_tokens=1)
        if not group.startswith("locality.")
        else ProbeResult(
            "", group, i, "p", (), (), "b", "b", ok=True, strict=True, leak=False, manner=1.0, kl_nats=1.0, kl_tokens=1
        )
        for i, group in enumerate(groups)
    ]
    graded = {"kept": 1.0, "band": "same", "judged": True}
    samples = [
        ProbeResult(**(s.to_json() | graded))
        if s.group.startswith("locality.") and s.group != "locality.refusal"
        else s
        for s in samples
    ]
    samples += [replace(s, ok=False, judged=False) for s in samples if s.judged]  # kappa needs both opinions
    samples = [s if s.strict is not None else ProbeResult(**(s.to_json() | {"new_beats_old": True})) for s in samples]
    assert set(documented_keys(section("exam.md", "Scores"))) == set(score(samples))


def test_every_key_of_a_sample_is_explained() -> None:
    written = {*ProbeResult.__dataclass_fields__, "exam", "change"}
    assert set(documented_keys(section("exam.md", "samples.jsonl"))) == written


def test_every_gate_of_pocket_is_told() -> None:
    rows = list(table_rows(section("pocket.md", "What is checked")))
    for gate in GATES:
        bound = f"at {'most' if gate.most else 'least'} {gate.value:.0%}".replace("%", " %")
        named_here = [r for r in rows if any(re.fullmatch(gate.pattern, n) for n in re.findall(r"`([^`]+)`", r[0]))]
        assert named_here, gate.pattern
        assert all(row[-1] == bound for row in named_here), gate.pattern


def test_every_exit_code_is_told() -> None:
    rows = list(table_rows(section("errors.md", "Exit codes")))
    told = {row[2].strip("`"): int(row[0]) for row in rows if len(row) == 3 and row[2].startswith("`")}
    raised = {
        name: getattr(errors, name).exit_code
        for name in errors.__all__
        if isinstance(getattr(errors, name), type) and issubclass(getattr(errors, name), errors.PosttrainError)
    }
    assert told == raised


def test_common_errors_are_the_ones_that_are_raised() -> None:
    source = "\n".join(text_of(path) for path in (ROOT / "src").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # strings written over several lines
    lost = [
        part
        for cells in table_rows(section("errors.md", "Common errors"))
        for message in re.findall(r"^`([^`]+)`", cells[0])
        for part in re.split(r"\.\.\.|'", message)
        if len(part.strip()) > 8 and part.strip() not in joined
    ]
    assert lost == []


# ---- commands ---------------------------------------------------------------------------------------------------------


@cache
def commands_of(verb: str) -> dict[tuple[str, ...], set[str]]:
    """("data", "show") -> its options; ("data",) too, with none of its own."""
    found: dict[tuple[str, ...], set[str]] = {}

    def walk(words: tuple[str, ...], command: Any) -> None:
        found[words] = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        if isinstance(command, TyperGroup):
            for name, child in command.commands.items():
                walk((*words, name), child)

    root: Any = typer.main.get_command(build_app(verb))
    walk((verb,), root.commands[verb])
    return found


def problem_of(line: str) -> str | None:
    """What is wrong with a command line that begins with `posttrain`; None when it parses."""
    words = shlex.split(line, comments=True)[1:]
    if words[:1] == ["--language"]:
        words = words[2:]
    if not words or words[0].startswith("-") or words[0] == "VERB":
        return None if not words or words[0] in {"--version", "--install-completion", "VERB"} else f"{words[0]}?"
    if words[0] not in VERBS:
        return f"no verb '{words[0]}'"
    known = commands_of(words[0])
    name: tuple[str, ...] = ()
    for word in words:
        if (*name, word) not in known:
            break
        name = (*name, word)
    rest = words[len(name) :]
    if any(len(other) > len(name) and other[: len(name)] == name for other in known) and rest:
        return f"'{' '.join(name)}' has no '{rest[0]}'"
    for word in rest:
        file = re.sub(r"\[\d*:\d*\]$", "", word)  # a slice of a data set
        if word.startswith("examples/") and "*" not in word and not (ROOT / file).exists():
            return f"{word} is not there"
        if word.startswith("-") and word not in known[name] | ANYWHERE:
            return f"'{' '.join(name)}' has no option {word}"
    return None


def command_lines() -> list[tuple[str, str]]:
    lines = []
    for block in blocks("console"):
        for line in block.body.splitlines():
            found = re.search(r"(?:^|\| )(posttrain .*)", line)
            if found:
                lines.append((named(block.page), found[1]))
    for page in PAGES:
        for span in re.findall(r"`(posttrain [^`]+)`", prose(page)):
            lines.append((named(page), " ".join(span.split())))
    return lines


def test_commands_parse() -> None:
    lines = command_lines()
    assert len(lines) > 60
    assert {shlex.split(line)[1] for _, line in lines} >= set(VERBS)
    wrong = [f"{page}: {line}: {problem}" for page, line in lines if (problem := problem_of(line))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("posttrain train x.yaml --lr 3", "'train' has no option --lr"),
        ("posttrain data shwo x.jsonl", "'data' has no 'shwo'"),
        ("posttrain tarin x.yaml", "no verb 'tarin'"),
        ("posttrain run examples/nothing.yaml", "examples/nothing.yaml is not there"),
        ("posttrain data show x.jsonl -n 3 --debug  # see", None),
        ("posttrain --language zh-TW data show x.jsonl", None),
        ("posttrain --language zh-TW dato show x.jsonl", "no verb 'dato'"),
    ],
)
def test_the_command_test_itself(line: str, problem: str | None) -> None:
    assert problem_of(line) == problem


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented(verb: str) -> None:
    for readme in ("README.md", "README.zh-TW.md"):
        assert f"| `posttrain {verb}` |" in text_of(ROOT / readme)
    told = section("verbs.md", verb)
    for words in commands_of(verb):
        if len(words) == 1 or words not in {w[:-1] for w in commands_of(verb)}:
            assert f"posttrain {' '.join(words)}" in told


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    used = {word for block in blocks("console") for word in re.findall(r"^make ([\w-]+)", block.body, re.MULTILINE)}
    assert {"demo", "test"} <= used <= targets


# ---- links and the site ------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        outside = page.is_relative_to(DOCS) and not target.is_relative_to(DOCS)
        if not target.exists() or outside or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_site_has_every_page_and_loads_nothing_from_outside() -> None:
    site = parse_value(text_of(ROOT / "mkdocs.yml"))
    listed = re.findall(r"[\w/-]+\.md", json.dumps(site["nav"]))
    assert sorted(listed) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))
    assert site["theme"]["font"] is False
    assert "http" not in json.dumps(site)


# ---- examples within the text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: f"{named(block.page)}: {block.body[:30]}")
def test_yaml_in_the_text_validates(block: Block) -> None:
    node = parse_value(block.body)
    if isinstance(node, list):
        for entry in node:
            kind = entry.get("kind") or next(kind for key, kind in IMPLIED if key in entry)
            seam = "exam" if kind in registry.kinds("exam") else "method"
            check({"kind": kind, **entry}, registry.load(seam, kind).config, named(block.page))
        return
    if "kind" in node:  # a respondent's own file
        check(node, registry.load("respondent", node["kind"]).config, named(block.page))
        return
    if "methods" in node and "study" not in node:  # of a study that the text does not write out
        node = {"study": "docs", "models": "pocket:chat", "changes": "change.yaml", **node}
    kinds: dict[str, type[Config]] = {"study": Study, "target": Change, "model": TrainConfig, "exams": ExamsFile}
    config = next((kinds[key] for key in kinds if key in node), None)
    assert config is not None, "neither a study, a change nor a training"
    check(node, config, named(block.page))


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: f"{named(block.page)}: {block.body[:30]}")
def test_json_in_the_text_is_json(block: Block) -> None:
    row = json.loads(block.body)
    if "scores" not in row:
        assert record_of(row, "docs") is not None


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"{named(block.page)}: {block.body[:30]}")
def test_python_in_the_text_names_what_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.body)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if alias.name not in dir(module)] == []
