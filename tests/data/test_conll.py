"""CoNLL files as they are found: comments, hashtags, numbered lines, CoNLL-U."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.conll import conll_rows
from posttrain.data.fields import BadRow
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import TaggedTokens
from posttrain.errors import DataError


def sentences(text: str) -> list[tuple[list[str], list[str]]]:
    """(tokens, tags) of each sentence."""
    found: list[Any] = [row for _, row in conll_rows(text, "x.conll")]
    return [(row["tokens"], row["tags"]) for row in found]


SENTENCE = (["EU", "rejects"], ["B-ORG", "O"])


@pytest.mark.parametrize(
    "text",
    [
        "# id 5239d808-f300 domain=train\nEU B-ORG\nrejects O\n",
        "# id 5239d808-f300\tdomain=train\nEU _ _ B-ORG\nrejects _ _ O\n",
        "# sent_id = 1\n# text = EU rejects\nEU\tB-ORG\nrejects\tO\n",
        "#sent_id=1\nEU B-ORG\nrejects O\n",
        "# newdoc\nEU B-ORG\nrejects O\n",
        "# a\n\n# b\n\nEU B-ORG\n# c d e\nrejects O\n",
        "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n",
        "# id 7 x\r\nEU B-ORG\r\nrejects O\r\n",
        "EU \t B-ORG\nrejects\t\tO\n",
        "# id\t7\nEU\tB-ORG\nrejects\tO\n",
        "# doc id\tO\nEU\tB-ORG\n#see also\tB-X\nrejects\tO\n",
        "# id\t7\tx\nEU\t_\tB-ORG\nrejects\t_\tO\n",
        "#id\t7\nEU\tB-ORG\nrejects\tO\n",
        "#id\t7\n#domain\tnews\nEU\tB-ORG\nrejects\tO\n",
        "#id\tx\t7\nEU\t_\tB-ORG\nrejects\t_\tO\n",
        "#id 7\nEU B-ORG\nrejects O\n",
    ],
)
def test_comments_are_no_tokens(text: str) -> None:
    assert sentences(text) == [SENTENCE]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#metoo O\nnow O\n", (["#metoo", "now"], ["O", "O"])),
        ("#metoo\tB-TAG\nnow\tO\n", (["#metoo", "now"], ["B-TAG", "O"])),
        ("we O\n#metoo HASH\n", (["we", "#metoo"], ["O", "HASH"])),
        ("# O\n1 O\n", (["#", "1"], ["O", "O"])),
        ("#\tO\n1\tO\n", (["#", "1"], ["O", "O"])),
        ("we NOUN\n# NOUN\n", (["we", "#"], ["NOUN", "NOUN"])),
        ("# B-X\nwe O\n", (["#", "we"], ["B-X", "O"])),
        ("# id\t7\n#metoo\tB-TAG\nnow\tO\n", (["#metoo", "now"], ["B-TAG", "O"])),
        ("New York\tB-LOC\n#new york\tB-LOC\n", (["New York", "#new york"], ["B-LOC", "B-LOC"])),
        ("#a O\n#b B-X\n", (["#a", "#b"], ["O", "B-X"])),
        ("#id\t7\n#Taipei\tB-LOC\nis\tO\n", (["#Taipei", "is"], ["B-LOC", "O"])),
        ("#id\t7\n#Taipei\tPROPN\nis\tAUX\n\nKaohsiung\tPROPN", (["#Taipei", "is"], ["PROPN", "AUX"])),
        ("#Taipei\t7\nis\t4\n\nKaohsiung\t7", (["#Taipei", "is"], ["7", "4"])),
        ("# id 3\n#metoo O\n#blm O\nnow O\n", (["#metoo", "#blm", "now"], ["O", "O", "O"])),
        ("The DT\n# #\n5 CD\n", (["The", "#", "5"], ["DT", "#", "CD"])),
        ("The\tDT\tx\n#\t#\tx\n5\tCD\tx\n", (["The", "#", "5"], ["x", "x", "x"])),
        ("The _ DT\n#1 _ CD\n# _ #\n", (["The", "#1", "#"], ["DT", "CD", "#"])),
        ("# #\n5 CD\n\nThe DT\n# #\n", (["#", "5"], ["#", "CD"])),
        ("The DT\n# see page 3\n5 CD\n", (["The", "5"], ["DT", "CD"])),
        ("The O\n# note\n5 B-X\n", (["The", "5"], ["O", "B-X"])),
        ("# id\nThe DT\n5 CD\n", (["The", "5"], ["DT", "CD"])),
    ],
)
def test_a_hashtag_is_a_token(text: str, expected: tuple[list[str], list[str]]) -> None:
    assert sentences(text)[:1] == [expected]


@pytest.mark.parametrize(
    ("text", "line", "tag"),
    [
        ("It\tPRON\n\n#news\tPROPER\nis\tAUX\n", 3, "PROPER"),
        ("We\t1\n\n#id\t7\nare\t2\n", 3, "7"),
        ("#metoo\tHASH\nnow\tO\n", 1, "HASH"),
    ],
)
def test_what_may_be_either_is_a_bad_row(text: str, line: int, tag: str) -> None:
    found = dict(conll_rows(text, "x.conll"))
    bad = found.pop(f"x.conll:{line}")
    assert isinstance(bad, BadRow)
    assert (
        bad.cause
        == f"line {line} begins with '#' and ends with '{tag}', which is no other's tag: a comment, or a token?"
    )
    assert bad.mend == "write a comment with a space, '# id 7'; the tag of a token must stand in other lines, too"
    assert not any(isinstance(row, BadRow) for row in found.values())


CONLLU = """\
# newdoc id = a
# sent_id = 1
# text = Vámonos al mar.
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\tv\tMood=Imp\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\tp\tCase=Acc\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\ts\t_\t5\tcase\t_\t_
4\tel\tel\tDET\td\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\tn\t_\t1\tobl\t_\tSpaceAfter=No
5.1\thay\thaber\tVERB\tv\t_\t_\t_\t1:conj\t_
6\t.\t.\tPUNCT\tf\t_\t1\tpunct\t_\t_

# sent_id = 2
1\t100 000\t100 000\tNUM\tz\t_\t0\troot\t_\t_
2\t#\t#\tSYM\ty\t_\t1\tdep\t_\t_
"""


@pytest.mark.parametrize("name", ["x.conllu", "x.conll", "x.txt"])
def test_conllu(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(CONLLU, encoding="utf-8")
    result = read_records(DataSource(path=str(path), format="tags"))
    assert result.records == [
        TaggedTokens(
            ("Vamos", "nos", "a", "el", "mar", "."), ("VERB", "PRON", "ADP", "DET", "NOUN", "PUNCT"), f"{path}:5"
        ),
        TaggedTokens(("100 000", "#"), ("NUM", "SYM"), f"{path}:15"),
    ]
    assert result.notes == (
        "4 comment lines (#) are left out",
        "3 lines numbered like 3-4 or 8.1 are left out: they are no words of their own",
        "the lines are numbered: tokens are in column 2, tags in UPOS, column 4",
    )
    named = read_records(DataSource(path=str(path), format="tags", columns={"tags": "deprel"})).records[1]
    assert isinstance(named, TaggedTokens)
    assert named.tags == ("root", "dep")


def test_conllu_without_upos(tmp_path: Path) -> None:
    text = "\n".join(line.replace("\tNUM\t", "\t_\t").replace("\tSYM\t", "\t_\t") for line in CONLLU.split("\n")[14:])
    assert sentences(text) == [(["100 000", "#"], ["z", "y"])]


def test_other_numbered_lines() -> None:
    germeval = "#\thttp://a [2009]\n1\tSchartau\tB-PER\tO\n2\tsagte\tO\tO\n\n#\tx\n1\tJa\tO\tO\n2\t#gut\tO\tO\n"
    assert sentences(germeval) == [(["Schartau", "sagte"], ["B-PER", "O"]), (["Ja", "#gut"], ["O", "O"])]
    # two columns: the numbers are the words
    assert sentences("1 O\n2 O\n") == [(["1", "2"], ["O", "O"])]


def test_words_may_hold_other_spaces() -> None:
    assert sentences("a\xa0b O\n\u3000 O\n") == [(["a\xa0b", "\u3000"], ["O", "O"])]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("EU B-ORG\nrejects\n", ":1: line 2 has one column"),
        ("EU NNP B-ORG\nrejects VBZ\n", ":1: line 2 has 2 columns, others have 3"),
        ("1\ta\tO\n2\tb\n", ":1: line 2 has 2 columns, others have 3"),
        ("# only\n# comments\n", ": the file is empty"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.conll"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_records(DataSource(path=str(path)))
    assert words in str(error.value)
