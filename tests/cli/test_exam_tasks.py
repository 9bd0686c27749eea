from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from posttrain import language
from posttrain.cli import exam_tables
from posttrain.cli.exam import _own
from posttrain.cli.main import main
from posttrain.cli.options import talk
from posttrain.cli.works import Works
from posttrain.errors import ConfigError, MissingError, PosttrainError
from posttrain.exams.capabilities import Drift, DriftScore
from posttrain.exams.compare import Comparison
from posttrain.exams.results import Results, read_results
from posttrain.exams.sample_log import read_samples
from posttrain.exams.statistics import Interval
from posttrain.inference.protocol import Respondent
from posttrain.studies.events import ExamEvent
from posttrain.studies.exam import ExamRun, build_exams, cost_line
from posttrain.training.lock import only_one
from tests.exams.table import Table
from tests.exams.tasks.told import write_rows

ROWS = [
    {"subject": "law" if i % 2 else "art", "question": f"Question {i}?", "choices": ["w", "x", "y", "z"], "answer": "A"}
    for i in range(20)
]
CHANGE = "name: it\ntarget: [{prompt: Who is it?, answer: me}]\nlocality: {unrelated: [What is one?]}\n"
MODELS = {"good": 20, "bad": 5}
"""Model -> how many of the questions it knows."""


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_rows(tmp_path / "questions.jsonl", ROWS)


@pytest.fixture
def load() -> Callable[[str], Respondent]:
    loaded: dict[str, Table] = {}

    def one(name: str) -> Table:
        assert name not in loaded, "a model is loaded once"

        def likes(prompt: str, continuation: str) -> float:
            number = int(prompt.rsplit("Question ", 1)[1].split("?")[0])
            return -1.0 if (continuation == " A") == (number < MODELS[name]) else -2.0

        loaded[name] = Table(name=name, likes=likes)
        return loaded[name]

    return one


def exam_tasks(
    model: str,
    load: Callable[[str], Respondent],
    *,
    exams: Sequence[str] = (),
    exams_file: Path | None = None,
    before: str | None = None,
    output: Path | None = None,
    limit: int | None = None,
    sets: Sequence[str] = (),
    by_group: bool = False,
) -> Results:
    """As the command does it."""
    run = ExamRun(output, open=load, say=talk, taken=partial(exam_tables.print_part, by_group=by_group))
    return run.take(model, before=before, exams=build_exams(_own(exams, exams_file, sets), limit))


def test_results_and_samples_are_written(
    questions: Path, tmp_path: Path, load: Callable[[str], Respondent], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    document = exam_tasks("good", load, exams=["mmlu=questions.jsonl"], output=out)
    assert document.study == "exam"
    assert (document.exams["mmlu"].headline, document.exams["mmlu"].chance) == ("acc", 0.25)
    (cell,) = document.cells
    assert cell.scores | {"mmlu.acc": 1.0, "mmlu.acc/law": 1.0, "mmlu.acc_macro": 1.0} == cell.scores
    assert cell.n["mmlu.acc/law"] == 10
    assert [*cell.ci95["mmlu.acc"]] == pytest.approx([0.8389, 1.0], abs=1e-4)  # Wilson, 20 of 20
    assert cell.cost["scored_tokens"] == 80
    assert len((out / "exams" / "mmlu.jsonl").read_text().splitlines()) == 20
    assert read_results(out) == document
    shown = capsys.readouterr()
    assert "mmlu.acc " in shown.out
    assert "(guessing 0.250)" in shown.out
    assert "calibration is over 20 samples only" in shown.out
    assert "[1/1] mmlu on good: 20 samples, " in shown.err
    assert "80 tokens forwarded" in shown.err


def test_before_and_after_with_what_was_forgotten(
    questions: Path, tmp_path: Path, load: Callable[[str], Respondent], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    document = exam_tasks("bad", load, exams=["mmlu=questions.jsonl"], before="good", output=out)
    (before,) = document.before
    assert (before.model, before.folder, before.scores["mmlu.acc"]) == ("good", "before/good", 1.0)
    assert (out / "before" / "good" / "exams" / "mmlu.jsonl").exists()
    (cell,) = document.cells
    compare = cell.compare["mmlu"]
    assert (compare.before, compare.after, compare.forgotten, compare.gained) == (1.0, 0.25, 15, 0)
    assert compare.different
    assert cell.drift["can.knowledge"].change == pytest.approx(-0.75)
    shown = capsys.readouterr().out
    assert "good → bad" in shown
    assert "-0.750" in shown
    assert "worse" in shown
    assert "mmlu: 15 were right and are wrong now, 0 the other way" in shown
    assert "can.knowledge: changed by -75.0 %\n" in shown
    language.speak("zh-TW")
    try:
        exam_tables.print_part(document, [Mock(info=document.exams["mmlu"], change="")], "good")
    finally:
        language.speak("en")
    shown = capsys.readouterr().out
    assert "mmlu：15 題原本對、現在錯，0 題相反" in shown
    assert "can.knowledge：改變了 -75.0 %" in shown


def test_no_difference_is_called_none(
    questions: Path,
    load: Callable[[str], Respondent],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODELS, "bad", 18)
    document = exam_tasks("bad", load, exams=["mmlu=questions.jsonl"], before="good")
    assert not document.cells[0].compare["mmlu"].different
    assert "no difference that can be told from chance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("difference", "different", "shown", "verdict"),
    [
        (0.0004, True, "+0.000", "too small to show"),
        (-0.0004, True, "-0.000", "too small to show"),
        (0.0006, True, "+0.001", "better"),
        (-0.0006, True, "-0.001", "worse"),
        (0.0004, False, "+0.000", "no difference that can be told from chance"),
    ],
)
def test_nothing_is_better_by_0(difference: float, different: bool, shown: str, verdict: str) -> None:
    one = Comparison(
        n=100_000,
        headline="acc",
        score="acc",
        before=0.5,
        after=0.5 + difference,
        difference=difference,
        ci95=Interval(difference - 1e-5, difference + 1e-5),
        p_value=0.001,
        different=different,
        better=(difference > 0) if different else None,
    )
    cells = [next(iter(column.cells)) for column in exam_tables.differences({"mmlu": one}).columns]
    assert (cells[0], cells[3], cells[6]) == ("mmlu.acc", shown, verdict)
    language.speak("zh-TW")
    try:
        chinese = [next(iter(column.cells)) for column in exam_tables.differences({"mmlu": one}).columns][6]
    finally:
        language.speak("en")
    words = {"too small to show": "小到看不出來", "better": "較好", "worse": "較差"}
    assert chinese == words.get(verdict, "與運氣無法區分")


@pytest.mark.parametrize(
    ("change", "different", "said", "chinese"),
    [
        (-0.5, False, "changed by -50.0 % (not told from chance)", "改變了 -50.0 %（與運氣無法區分）"),
        (4.553, True, "changed by +455.3 %", "改變了 +455.3 %"),
        (0.0, False, "unchanged", "沒有改變"),
        (0.0002, False, "changed by less than 0.1 % (not told from chance)", "改變不到 0.1 %（與運氣無法區分）"),
    ],
)
def test_what_a_group_changed_by(change: float, different: bool, said: str, chinese: str) -> None:
    """Five answers are no fact: a percentage of a score that was not told from chance says so."""
    one = Comparison(
        n=5, headline="acc", score="acc", before=0.5, after=0.25, difference=-0.25, ci95=None, p_value=None,
        different=different, better=None,
    )  # fmt: skip
    drift = Drift(change, scores=(DriftScore("mmlu.acc", 0.5, 0.25),))
    assert exam_tables.changed(drift, {"mmlu": one}) == said
    other = Drift(-0.5, scores=(DriftScore("mmlu.length", 2.0, 1.0),))
    assert exam_tables.changed(other, {"mmlu": one}).endswith("(not told from chance)"), "another score was compared"
    language.speak("zh-TW")
    try:
        assert language.translate(said) == chinese
    finally:
        language.speak("en")


@pytest.mark.parametrize(
    ("prefixes", "requests", "english", "chinese"),
    [
        (
            1, 0, "7.2 s, 577 tokens forwarded, 1 prefix shared (saved 40 tokens), 0.61 GiB",
            "7.2 秒，前向 577 個詞元，共用 1 個開頭（省下 40 個詞元），0.61 GiB",
        ),
        (
            3, 1, "7.2 s, 577 tokens forwarded, 3 prefixes shared (saved 40 tokens), 1 request shared none, 0.61 GiB",
            "7.2 秒，前向 577 個詞元，共用 3 個開頭（省下 40 個詞元），1 個請求沒有共用，0.61 GiB",
        ),
        (
            0, 0, "7.2 s, 577 tokens forwarded (scoring 1.20x the least, 1,480), 0.61 GiB",
            "7.2 秒，前向 577 個詞元（計分是最少 1,480 的 1.20 倍），0.61 GiB",
        ),
    ],
)  # fmt: skip
def test_what_an_exam_cost_in_both_languages(prefixes: int, requests: int, english: str, chinese: str) -> None:
    least = 0.0 if prefixes else 1480.0
    cost = {
        "wall_s": 7.2, "forwarded_tokens": 577.0, "least_tokens": least, "scored_tokens": 1.2 * least,
        "generated_tokens": 0.0, "shared_prefixes": float(prefixes), "shared_tokens": 40.0,
        "plain_requests": float(requests), "cost_usd": 0.0, "peak_gib": 0.61,
    }  # fmt: skip
    line = cost_line(cost)
    assert line == english
    language.speak("zh-TW")
    try:
        assert language.translate(line) == chinese
        assert language.translate(f"[1/1] mmlu on good: 1 sample, {line}") == f"[1/1] mmlu，good：1 個樣本，{chinese}"
    finally:
        language.speak("en")


def test_a_file_of_exams_its_paths_and_overrides(
    questions: Path, tmp_path: Path, load: Callable[[str], Respondent]
) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "exams.yaml").write_text(
        "exams:\n"
        "  - {kind: mmlu, path: ../questions.jsonl, shots: 0}\n"
        "  - {kind: mmlu, name: other, path: ../questions.jsonl, limit: 3, perturbations: [lower, width]}\n"
    )
    document = exam_tasks("good", load, exams_file=folder / "exams.yaml", sets=["exams.0.shots=2"])
    assert "|2-shot" in document.exams["mmlu"].signature
    scores, n = document.cells[0].scores, document.cells[0].n
    assert (scores["other.robust.acc"], n["other.robust.acc"], n["other.acc~width"]) == (1.0, 3, 3)
    assert document.cells[0].cost["wall_s"] > 0
    limited = exam_tasks("bad", load, exams_file=folder / "exams.yaml", limit=4)
    assert limited.cells[0].n["mmlu.acc"] == limited.cells[0].n["other.acc"] == 4


def test_a_kind_that_stands_twice_is_told_apart_by_its_files(
    questions: Path, load: Callable[[str], Respondent]
) -> None:
    write_rows(Path("more.jsonl"), ROWS[:8])
    document = exam_tasks("good", load, exams=["mmlu=questions.jsonl", "mmlu=more.jsonl"])
    assert list(document.exams) == ["mmlu-questions", "mmlu-more"]
    with pytest.raises(ConfigError, match="several exams are called mmlu-more"):
        exam_tasks("bad", load, exams=["mmlu=more.jsonl", "mmlu=more.jsonl"])


def test_what_is_wrong_is_told_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def load(name: str) -> Any:
        raise AssertionError(name)

    with pytest.raises(ConfigError, match=r"--exam mlu=x: .*unknown exam 'mlu'; did you mean 'mmlu'\?"):
        exam_tasks("good", load, exams=["mlu=x"])
    with pytest.raises(MissingError, match=r"a\.jsonl: no such file(.|\n)*b\.csv: no such file"):
        exam_tasks("good", load, exams=["mmlu=a.jsonl", "truthfulqa=b.csv"])
    with pytest.raises(ConfigError, match=r"'path' is missing(.|\n)*no such file"):
        exam_tasks("good", load, exams=["mmlu", "truthfulqa=b.csv"])
    with pytest.raises(ConfigError, match="use --change FILE --before MODEL"):
        exam_tasks("good", load, exams=["change"])
    (tmp_path / "e.yaml").write_text("exams:\n  - {kind: mmlu, path: a.jsonl, shotz: 3}\n")
    with pytest.raises(ConfigError, match=r"e.yaml:2: .*shotz"):
        exam_tasks("good", load, exams_file=tmp_path / "e.yaml")


def test_one_exam_at_a_time_writes_into_a_folder(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []

    def opened(name: str, **_: Any) -> Table:
        loaded.append(name)
        with pytest.raises(PosttrainError, match="another run is working in this folder"), only_one(Path("out")):
            pass
        return Table(name=name)

    monkeypatch.setattr("posttrain.inference.opening.open_respondent", opened)
    words = ["exam", "good", "--exam", "mmlu=questions.jsonl", "-o", "out"]
    with only_one(Path("out")):
        assert main(words) == 1
    assert "out: another run is working in this folder; wait for it, or choose another" in capsys.readouterr().err
    assert loaded == []  # a refusal comes at once
    assert not Path("out").exists()
    assert main(words) == 0
    assert loaded == ["good"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["exams", "results.json"]


@pytest.mark.parametrize("kept", [True, False])
def test_control_c_says_how_to_go_on(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kept: bool
) -> None:
    class Stopped(Table):
        def logprobs(self, pairs, *, on_scored=None):  # type: ignore[no-untyped-def]
            replies = super().logprobs(pairs)
            for i in range(44):
                on_scored(i, replies[i])
            raise KeyboardInterrupt

    out = tmp_path / "out" if kept else None
    wanted = "the same command goes on where it stopped" if kept else "nothing was kept: give --output to go on"
    monkeypatch.setattr("posttrain.inference.opening.open_respondent", lambda name, **_: Stopped(name=name))
    assert main(["exam", "good", "--exam", "mmlu=questions.jsonl", *(["-o", "out"] if kept else [])]) == 130
    assert capsys.readouterr().err.endswith(f"stopped; {wanted}\n")
    if out:
        assert len((out / "exams" / "mmlu.jsonl").read_text().splitlines()) == 11
        rest = Table(name="good")
        exam_tasks("good", lambda name: rest, exams=["mmlu=questions.jsonl"], output=out)
        assert [len(asks) for _, asks in rest.calls] == [36]


def test_progress_off_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 11.0, 12.0, 3700.0])
    monkeypatch.setattr("posttrain.cli.works.time.monotonic", lambda: next(clock))
    works = Works()
    for done, left_s in [(1, None), (50, None), (51, 9.0), (3000, 3725.0)]:
        works.exam(ExamEvent("good", "final", "mmlu", done, 4000, left_s, 2500.0))
    assert capsys.readouterr().err.splitlines() == [
        "mmlu on good: 50/4,000  2,500 tokens/s",
        "mmlu on good: 3,000/4,000  2,500 tokens/s  1 h 02 min left",
    ]


def test_the_command_on_a_small_model(
    questions: Path, pico_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["exam", str(pico_path("llama")), "--exam", "mmlu=questions.jsonl", "-o", "out", "--limit", "6", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    samples = Path("out/exams/mmlu.jsonl").read_bytes()
    assert first["cells"][0]["n"]["mmlu.acc"] == 6
    assert first["cells"][0]["cost"]["shared_prefixes"] > 0
    assert json.loads(Path("out/results.json").read_text())["cells"] == first["cells"]
    assert main(command) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["cells"][0]["scores"] == first["cells"][0]["scores"]
    assert second["cells"][0]["cost"]["forwarded_tokens"] == 0
    assert Path("out/exams/mmlu.jsonl").read_bytes() == samples


def test_a_larger_limit_goes_on_in_the_same_folder(
    questions: Path, pico_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It gives what a run in one piece gives; a smaller one would lose answers, and is refused."""
    write_rows(questions, [{**row, "question": f"{row['question']} {i}"} for i in range(15) for row in ROWS])
    command = ["exam", str(pico_path("llama")), "--exam", "mmlu=questions.jsonl", "--before", str(pico_path("gpt2"))]

    def taken(limit: int, folder: str) -> dict[str, Any]:
        assert main([*command, "--limit", str(limit), "-o", folder]) == 0, capsys.readouterr().err
        found: dict[str, Any] = json.loads(Path(folder, "results.json").read_text())
        return found

    taken(3, "out")
    more, whole = taken(40, "out"), taken(40, "whole")
    (cell,), (old,) = more["cells"], more["before"]
    assert cell["scores"] == pytest.approx(whole["cells"][0]["scores"], abs=1e-6)
    assert old["scores"] == pytest.approx(whole["before"][0]["scores"], abs=1e-6)
    assert cell["compare"]["mmlu"]["n"] == 40
    assert cell["n"]["mmlu.acc"] == 40
    assert "mmlu: 3 of 40 samples were there already; time and tokens are of the others" in cell["notes"]
    path = Path("out/exams/mmlu.jsonl")
    made, one_piece = (read_samples(file) for file in (path, Path("whole/exams/mmlu.jsonl")))
    assert [(s.id, s.answer, s.correct) for s in made] == [(s.id, s.answer, s.correct) for s in one_piece]
    kept = path.read_bytes(), Path("out/results.json").read_bytes()
    assert main([*command, "--limit", "30", "-o", "out"]) == 2
    said = "holds 10 samples of another exam: questions that are not asked now (such as with a smaller limit); give ano"
    assert said in capsys.readouterr().err
    assert (path.read_bytes(), Path("out/results.json").read_bytes()) == kept


@pytest.mark.parametrize("asked", [False, True])
def test_many_groups_are_shown_only_when_asked_for(
    questions: Path, load: Callable[[str], Respondent], capsys: pytest.CaptureFixture[str], asked: bool
) -> None:
    write_rows(questions, [{**row, "subject": f"field {i % 9}"} for i, row in enumerate(ROWS)])
    document = exam_tasks("good", load, exams=["mmlu=questions.jsonl"], by_group=asked)
    assert document.cells[0].n["mmlu.acc/field 8"] == 2
    out = capsys.readouterr().out
    assert ("mmlu.acc/field 8" in out) == asked
    assert ("mmlu: 9 groups are not shown (acc/field 0, ...); results.json has them, --by-group" in out) != asked


def test_one_folder_is_filled_by_several_commands(
    questions: Path, pico_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(pico_path("llama"))
    write_rows(Path("others.jsonl"), ROWS[:4])
    Path("exams.yaml").write_text("exams: [{kind: mmlu, path: others.jsonl, name: others}]")
    base = str(pico_path("gpt2"))

    def run(*words: str) -> dict[str, Any]:
        assert main(["exam", *words, "-o", "out"]) == 0
        found: dict[str, Any] = json.loads(Path("out/results.json").read_text())
        return found

    first = run(model, "--exam", "mmlu=questions.jsonl", "--limit", "6", "--before", base)
    both = run(model, "--exams", "exams.yaml", "--before", base)
    assert list(both["exams"]) == ["mmlu", "others"]
    (cell,), (old,) = both["cells"], both["before"]
    assert (cell["n"]["mmlu.acc"], cell["n"]["others.acc"], old["n"]["mmlu.acc"]) == (6, 4, 6)
    assert list(cell["compare"]) == ["mmlu", "others"]
    assert [one["score"] for one in cell["drift"]["can.knowledge"]["scores"]] == ["mmlu.acc", "others.acc"]
    again = run(model, "--exam", "mmlu=questions.jsonl", "--limit", "6", "--before", base)
    assert again["cells"][0]["scores"] == cell["scores"]  # taken again: once, and the other stays
    assert (
        again["cells"][0]["notes"].count("mmlu: calibration is over 6 samples only; below 300 it is mostly noise") == 1
    )
    assert first["cells"][0]["scores"].items() <= cell["scores"].items()

    kept = Path("out/results.json").read_bytes()
    capsys.readouterr()
    assert main(["exam", base, "--exam", "refusal", "--limit", "1", "-o", "out"]) == 2
    assert "results.json: holds results of other weights" in capsys.readouterr().err
    assert Path("out/results.json").read_bytes() == kept
    assert list(run(base, "--exam", "refusal", "--limit", "1", "--restart")["exams"]) == ["refusal"]


def test_a_folder_that_is_not_ours_is_left_alone(
    questions: Path, pico_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["exam", str(pico_path("llama")), "--exam", "mmlu=questions.jsonl", "--limit", "2", "-o"]
    Path("out").mkdir()
    for text, cause in [
        ('{"study": "role", "cells": []}', "is of the study 'role', which would be lost; give another --output"),
        ("[]", "is not posttrain's"),
        ("{", "not valid JSON"),
    ]:
        Path("out/results.json").write_text(text)
        assert main([*command, "out", "--restart"]) == 2
        assert cause in capsys.readouterr().err
        assert Path("out/results.json").read_text() == text
    assert main([*command, "questions.jsonl/out"]) == 1
    told = capsys.readouterr().err
    assert "a file stands where a folder is needed" in told
    assert "loading" not in told  # the place is looked at first


def test_overrides_without_a_file_are_refused(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exam", "good", "--exam", "mmlu=questions.jsonl", "--set", "exams.0.shots=0"]) == 2
    assert "--set exams.0.shots=0: there is no file to override; --set is for --exams FILE" in capsys.readouterr().err


def test_scores_beyond_all_numbers_are_left_out_and_said(
    questions: Path, pico_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.txt").write_text("see " + "x%q" * 300 + "\n", encoding="utf-8")
    assert main(["exam", str(pico_path("llama")), "--exam", "perplexity=text.txt", "-o", "out", "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert "perplexity.word_perplexity" not in cell["scores"]
    assert "perplexity.bits_per_byte" in cell["scores"]
    assert "perplexity: word_perplexity is left out: it is too large for a number, or none" in cell["notes"]


def test_a_report_of_an_exam_has_its_samples(
    questions: Path, pico_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("change.yaml").write_text(CHANGE, encoding="utf-8")
    models = [str(pico_path("llama")), "--before", str(pico_path("gpt2"))]
    words = ["--exam", "mmlu=questions.jsonl", "--change", "change.yaml", "-o", "out"]
    assert main(["exam", *models, *words]) == 0
    capsys.readouterr()
    assert main(["report", "out", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == []
    lines = [len(Path("out", name).read_text().splitlines()) for name in ("samples.jsonl", "floor/samples.jsonl")]
    assert lines[0] == lines[1]
    assert told["answers"] == sum(lines)  # none of them in the cell of mmlu
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert '"Question 7?"' in page  # the questions behind the quadrants


def test_both_models_are_there_before_one_is_asked(
    questions: Path, pico_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["exam", "no-such-model", "--before", str(pico_path("llama")), "--exam", "mmlu=questions.jsonl"]
    assert main([*command, "-o", "out"]) == 3
    assert "samples" not in capsys.readouterr().err
    assert not list(Path("out").rglob("*.jsonl"))
