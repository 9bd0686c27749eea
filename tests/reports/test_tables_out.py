"""Plain tables: precision, the best, and what the three formats do with characters that mean something to them."""

import csv
import io
import re
from pathlib import Path

import pytest

from posttrain.cli.main import main
from posttrain.exams.results import ExamInfo
from posttrain.exams.score_spec import specs
from posttrain.reports.folder import read_run
from posttrain.reports.tables_out import (
    direction,
    plain_table,
    pretty,
    tex_escape,
    to_csv,
    to_html,
    to_latex,
    to_text,
    write_tables,
)
from posttrain.reports.texts import text
from posttrain.reports.view import Head, Table, number_table
from tests.reports.exam_study import make_study


def table_of(*rows: tuple[tuple[str, ...], tuple[float | None, ...], str]) -> Table:
    heads, columns = [Head("method"), Head("step")], [Head("acc"), Head("ppl"), Head("n")]
    return number_table("t", heads, columns, rows, (True, False, None))


TABLE = table_of(
    (("before", "0"), (0.5, 20.0, 1000.0), "untouched"),
    (("a_b & <c>", "1"), (0.7004, 30.5, 999.0), "model"),
    (("重播", "2"), (0.7001, 12.0, None), "model"),
    (("human", ""), (0.99, None, None), "reference"),
)


def test_a_column_has_one_precision_and_ties_as_printed_are_both_best() -> None:
    assert [entry.text for entry in TABLE.lines[1].entries] == ["0.700", "30.50", "999.0"]
    best = {(i, j) for i, line in enumerate(TABLE.lines) for j, entry in enumerate(line.entries) if entry.best}
    assert best == {(1, 0), (2, 0), (2, 1)}  # people are no rivals; n has no better end


def test_csv_is_read_by_excel_and_by_python() -> None:
    data = to_csv(TABLE).encode()
    assert data.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert rows[0] == ["method", "step", "acc", "ppl", "n"]
    assert rows[3] == ["重播", "2", "0.700", "12.00", ""]


def test_latex_escapes_and_marks_the_best() -> None:
    tex = to_latex(TABLE)
    assert r"a\_b \& \textless{}c\textgreater{} & 1 & \textbf{0.700} & 30.50 & 999.0 \\" in tex
    assert tex.count(r"\midrule") == 3
    assert tex.count(r"\begin{tabular}{llrrr}") == 1
    assert tex_escape("\\ {x} 5% #1 $ ^ ~\n_") == (
        r"\textbackslash{} \{x\} 5\% \#1 \$ \textasciicircum{} \textasciitilde{} \_"
    )
    negative = table_of((("a", "1"), (-0.25, 1.0, 1.0), "model"))
    assert "$-$0.250" in to_latex(negative)


def test_html_escapes() -> None:
    html = to_html(TABLE, language="zh-TW")
    assert "a_b &amp; &lt;c&gt;" in html
    assert "<c>" not in html
    assert html.startswith('<!doctype html>\n<html lang="zh-TW">')
    assert "<b>0.700</b>" in html


def test_wide_letters_count_twice_in_the_terminal() -> None:
    lines = to_text(TABLE).splitlines()
    assert lines[3] == "重播       2     0.700  12.00"
    assert lines[2] == "a_b & <c>  1     0.700  30.50   999.0"


@pytest.mark.parametrize(
    ("score", "shown"),
    [("bleu4", "BLEU-4"), ("rouge1", "ROUGE-1"), ("rougeL", "ROUGE-L"), ("rouge-l", "ROUGE-L"), ("rougeLsum", "ROUGE-Lsum"),
     ("rouge_jieba-1", "rouge_jieba-1"), ("acc", "acc"), ("bleu", "BLEU")],
)  # fmt: skip
def test_names_as_papers_print_them(score: str, shown: str) -> None:
    assert pretty(score) == shown


def test_the_better_end_of_scores() -> None:
    lower = ExamInfo(name="wiki", kind="perplexity", scores=specs("token_perplexity", "bits_per_byte", better="less"))
    assert direction(lower, "token_perplexity") is False
    assert direction(lower, "bits_per_byte") is False
    assert direction(lower, "word_perplexity") is None  # not declared
    declared = (*specs("acc"), *specs("calibration.ece_em10", better="less"), *specs("tokens", better="none"))
    mmlu = ExamInfo(name="mmlu", kind="mmlu", scores=declared)
    assert direction(mmlu, "calibration.ece_em10") is False
    assert direction(mmlu, "robust.acc") is True
    assert direction(mmlu, "acc~typos") is True
    assert direction(mmlu, "tokens") is None
    assert direction(None, "leak") is False


def test_tables_of_a_study(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", n=20)
    run = read_run(folder)
    table = plain_table(run, "role-test")
    assert [head.name for head in table.heads[3:]] == ["bleu4", "rouge1", "rouge2", "rougeL", "tokens"]
    assert [line.kind for line in table.lines] == ["untouched", *["model"] * 12, "reference"]
    assert [tuple(text(label, "en") for label in line.labels) for line in table.lines[:3]] == [
        ("untouched model", "", "0"), ("lora", "step-100", "100"), ("lora", "step-200", "200"),
    ]  # fmt: skip
    assert "acc/law" not in [head.name for head in plain_table(run, "mmlu").heads]
    assert plain_table(run, "change").heads[3].name == "reliability"
    paths = write_tables(run, folder, names=["mmlu"])
    assert [str(path.relative_to(folder)) for path in paths] == [
        f"tables/mmlu.{kind}" for kind in ("html", "csv", "tex")
    ]


def test_the_verb_prints_and_writes_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_study(tmp_path / "s", n=20)
    assert main(["report", str(folder), "--tables", "role-test"]) == 0
    said = capsys.readouterr()
    assert re.search(r"method +checkpoint +step +BLEU-4 +ROUGE-1 +ROUGE-2 +ROUGE-L", said.out)
    assert "role-test.tex" in said.err
    assert not (folder / "report.html").exists()
    assert main(["report", str(folder), "--tables", "nope"]) == 2
    assert "no exam 'nope'; known: mmlu, role-test" in capsys.readouterr().err
    assert main(["report", str(folder), "--language", "zh-TW"]) == 0
    assert (
        (folder / "tables" / "wiki.csv").read_text(encoding="utf-8-sig").startswith("方法,檢查點,步數,token_perplexity")
    )
