"""tools/messages.py: what it finds in a source file, and that everything a person meets has its translation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from posttrain import language
from posttrain.catalogue import parse
from tools import messages
from tools.message_texts import messages_in, placeholders

ROOT = Path(__file__).parents[2]


def found(tmp_path: Path, text: str, name: str = "room.py") -> list[str]:
    """The messages of a file, without those of other programs."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return [one.message for one in messages_in(tmp_path, [path]) if one.file != "others"]


def test_everything_is_translated() -> None:
    """Fails when a message is new: `python tools/messages.py` adds it to the .po file, CONTRIBUTING.md says how."""
    told = messages.faults(messages.source_messages(), messages.read_catalogue())
    assert not told, "\n".join(["run python tools/messages.py and translate:", *told])
    assert messages.MO.read_bytes() == messages.as_mo(messages.read_catalogue()), "run python tools/messages.py"


def test_what_the_catalogue_says_is_shown() -> None:
    """Every message with values filled in is found again, as itself and not as another one."""
    language.speak("zh-TW")
    wrong = []
    try:
        for message, translation in messages.read_catalogue().items():
            names = parse(message)[1]
            if "" in names:
                continue
            values = {name: f"v{i}" for i, name in enumerate(names)}
            shown, expected = language.translate(message.format(**values)), translation.format(**values)
            if shown != expected:
                wrong.append(f"{message!r}: {shown!r}, not {expected!r}")
    finally:
        language.speak("en")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('talk("loading the model")', {"loading the model"}),
        ('talk(f"loading {name} now")', {"loading {name} now"}),
        ('talk(f"{len(rows):,} rows of {source.path}")', {"{rows} rows of {path}"}),
        ('talk(f"{a.name} and {b.name} differ")', {"{name} and {name_2} differ"}),
        ("talk(f\"{n} row{'' if n == 1 else 's'} read\")", {"{n} row read", "{n} rows read"}),
        ('talk("the key {kind: ...} is new")', {"the key {{kind: ...}} is new"}),
        ('raise ConfigError(Problem(p, f"no file {x!r}", "look again"))', {"no file {x}", "look again"}),
        ('raise BadRow("an empty row", mend="remove the row")', {"an empty row", "remove the row"}),
        ('cause = "it is broken"\n    raise ConfigError(Problem(p, cause))', {"it is broken"}),
        ('talk("a first part, " + ("seen" if n else "not seen"))', {"a first part, seen", "a first part, not seen"}),
        (
            "parts = [f'{n} tokens read']\n    parts.append('and kept')\n    talk(f\"all: {', '.join(parts)} so far\")",
            {"all: {parts} so far", "{n} tokens read", "and kept"},
        ),
        (
            'for x, y in (("a", "lacks a key"), ("b", "has a key")):\n        talk(f"{y}: {x}")',
            {"lacks a key: a", "lacks a key: b", "has a key: a", "has a key: b"},
        ),
        ('raise KeyError("for programmers alone")', set()),
        ('name = "not said to anybody"', set()),
        ('talk("--set")', set()),
    ],
)
def test_messages_of_a_line(tmp_path: Path, line: str, expected: set[str]) -> None:
    got = set(found(tmp_path, f"def f(n, p, x, name, rows, source, a, b):\n    {line}\n"))
    assert got == expected


def test_what_a_function_gives_back_is_found(tmp_path: Path) -> None:
    text = """
def how(n: int) -> str:
    if n:
        return f"so many: {n} times"
    return "not at all"

def tell(say, n):
    say(f"it was done {how(n)}")
"""
    assert set(found(tmp_path, text)) == {"it was done {how}", "so many: {n} times", "not at all"}


TABLES = """
class Guess(NamedTuple):
    "What it is."
    cause: str
    mend: str
    size: int

MENDS = {"a": "take it away", "b": "put it back"}
ELSE = "leave it alone"

def guess(x, a, b):
    kinds = [(a, "gone from here"), (b, "moved to there")]
    for key, seen in {"k": "seen from afar"}.items():
        talk(f"it was {seen}")
    bad("; ".join(f"{name}: {why}" for name, why in kinds))
    talk(MENDS.get(x, ELSE))
    return Guess("of no use", "look again", 3)
"""


def test_what_stands_in_records_tables_and_defaults_is_found(tmp_path: Path) -> None:
    assert set(found(tmp_path, TABLES)) == {
        "it was seen from afar",
        "{name}: gone from here",
        "{name}: moved to there",
        "take it away",
        "put it back",
        "leave it alone",
        "of no use",
        "look again",
    }


def test_constants_of_other_modules_are_found(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text('GONE = "it is not there"\nUNSEEN = "nobody says this"\n', encoding="utf-8")
    path = tmp_path / "room.py"
    path.write_text("from posttrain.words import GONE as LOST\n\ntalk(f'sorry, {LOST}')\n", encoding="utf-8")
    got = [one.message for one in messages_in(tmp_path, [path, tmp_path / "words.py"]) if one.file != "others"]
    assert got == ["sorry, it is not there"]


def test_help_is_found(tmp_path: Path) -> None:
    text = """
@app.command()
def show(rows: Annotated[int, typer.Option(help="How many rows.")] = 3):
    \'\'\'Show rows,
    as they are.

    And then the lengths.
    \'\'\'
""".replace("\\'", "'")
    assert set(found(tmp_path, text)) == {"How many rows.", "Show rows, as they are.", "And then the lengths."}


def test_what_is_missing_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "room.py"
    path.write_text('\n\ntalk(f"something new about {thing}")\ntalk("loading it all")\n', encoding="utf-8")
    new = [one for one in messages_in(tmp_path, [path]) if one.file != "others"]
    told = messages.faults(new, {"loading it all": "載入{x}", "gone from here": "走了"})
    assert told == [
        "src/posttrain/room.py:3: not translated: 'something new about {thing}'",
        "src/posttrain/room.py:4: other placeholders than 'loading it all': '載入{x}'",
        "messages.po: no longer in the source: 'gone from here'",
    ]
    refused = messages.faults(new, {"something new about {thing}": "{thing} 的變更", "loading it all": "加載"})
    assert [line.split(": ")[1] for line in refused] == [
        "'變更' is not used, but 改變（change）；設定或檔案則用「改動」",
        "'加載' is not used, but 載入",
    ]


def test_placeholders() -> None:
    assert placeholders("a {b} of {{c}} and {d_2}") == ["b", "d_2"]


def test_the_mo_file_is_gnu_gettext() -> None:
    import gettext

    with messages.MO.open("rb") as file:
        catalogue = gettext.GNUTranslations(file)
    assert catalogue.gettext("no such file") == "沒有這個檔案"
    assert catalogue.info()["language"] == "zh_TW"


PAGES = ["README.zh-TW.md", *sorted(f"docs/zh-TW/{path.name}" for path in (ROOT / "docs" / "zh-TW").glob("*.md"))]
PAGES.remove("docs/zh-TW/words.md")  # the table of the words that are not used


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_use_the_same_words(page: str) -> None:
    prose, fenced = [], False
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            prose.append((number, re.sub(r"`[^`]*`", "", line)))
    wrong = [
        f"{page}:{n}: {word} ({messages.REFUSED[word]})" for n, line in prose for word in messages.refused_in(line)
    ]
    wrong += [f"{page}:{n}: token (詞元)" for n, line in prose if re.search(r"(?<![\w/#.-])tokens?(?![\w_.-])", line)]
    assert not wrong, "\n".join(wrong)


def test_the_report_uses_the_same_words() -> None:
    path = messages.SOURCE / "reports" / "messages.json"
    texts = {key: said["zh-TW"] for key, said in json.loads(path.read_text(encoding="utf-8")).items()}
    assert texts["exams.tiny"] == messages.read_catalogue()["too small to show"]
    wrong = [f"{key}: {word} ({messages.REFUSED[word]})" for key in texts for word in messages.refused_in(texts[key])]
    assert not wrong, "\n".join(wrong)


def test_the_glossary_is_of_these_words() -> None:
    """What the glossary says not to say is what the tests refuse."""
    text = (ROOT / "docs" / "zh-TW" / "words.md").read_text(encoding="utf-8")
    table = [re.split(r" *\| *", line.strip("| \n")) for line in text.splitlines() if line.startswith("| ")]
    refused = {word for row in table[1:] if len(row) == 3 for word in re.findall(r"「(.+?)」", row[2])}
    assert refused
    assert refused <= set(messages.REFUSED)
