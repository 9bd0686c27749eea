from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, DataError, MissingError
from posttrain.exams.task import Item
from posttrain.exams.tasks._choice_rows import read_questions
from posttrain.inference.protocol import Plain
from posttrain.language import speak, translate
from tests.exams.tasks.told import build, judged, scores_of, text_of, write_rows

ROW = {"subject": "law", "question": "Who makes laws?", "choices": ["kings", "courts", "parliaments", "guards"]}


def rows(n: int, subject: str = "law", **changes: Any) -> list[dict[str, Any]]:
    return [{**ROW, "subject": subject, "question": f"Question {i}?", "answer": i % 4, **changes} for i in range(n)]


def answers(path: Path) -> list[int]:
    return [question.answer for question in read_questions(path).asked]


# ---- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("B", 1),
        ("b", 1),
        ("Ｂ", 1),
        ("(B)", 1),
        ("（Ｂ）", 1),
        (" B. ", 1),
        ("乙", 1),
        ("courts", 1),
        ("丁", 3),
        ("guards ", 3),
    ],
)
def test_ways_to_write_an_answer(tmp_path: Path, answer: str, index: int) -> None:
    assert answers(write_rows(tmp_path / "q.jsonl", [{**ROW, "answer": answer}])) == [index]


@pytest.mark.parametrize(
    ("written", "indices", "noted"),
    [
        ([0, 3, 1], [0, 3, 1], False),
        (["1", "4", "2"], [0, 3, 1], False),
        (["１", "４", "２"], [0, 3, 1], False),
        ([1, 2, 3], [1, 2, 3], True),
        (["A", 0], [0, 0], False),
    ],
)
def test_numbers_count_from_0_or_from_1_by_what_the_file_has(
    tmp_path: Path, written: list[Any], indices: list[int], noted: bool
) -> None:
    path = write_rows(tmp_path / "q.jsonl", [{**ROW, "answer": answer} for answer in written])
    read = read_questions(path)
    assert [question.answer for question in read.asked] == indices
    assert bool(read.notes) == noted


def test_numbers_from_0_and_from_1_in_one_file_are_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [{**ROW, "answer": 0}, {**ROW, "answer": 4}])
    with pytest.raises(DataError, match=r"q.jsonl:2: answer 4, and .*q.jsonl:1 has 0: do they count from 0 or from 1"):
        read_questions(path)


def test_choices_that_are_numbers_are_taken_by_their_words(tmp_path: Path) -> None:
    row = {"question": "1 + 1", "choices": ["1", "2", "3", "4"], "answer": "2"}
    assert answers(write_rows(tmp_path / "q.jsonl", [row])) == [1]


def test_numbers_are_words_only_when_no_other_answer_is_a_number(tmp_path: Path) -> None:
    sums = {"question": "1 + 1", "choices": ["1", "2", "3", "4"], "answer": "1"}  # counted from 0: the choice "2"
    path = write_rows(tmp_path / "q.jsonl", [{**ROW, "answer": "0"}, sums, {**ROW, "answer": "3"}])
    read = read_questions(path)
    assert [question.answer for question in read.asked] == [0, 1, 3]
    assert read.notes == ["q.jsonl: 1 answers are a number and another choice's words; taken as numbers like the rest"]
    assert answers(write_rows(tmp_path / "q.jsonl", [{**ROW, "answer": "B"}, sums])) == [1, 0]


def test_csv_with_and_without_names_and_with_fewer_choices(tmp_path: Path) -> None:
    named = tmp_path / "named.csv"
    named.write_text("\ufeffquestion,A,B,C,D,answer,subject\r\n"
                     '"one, two?",a,b,c,d,C,law\r\n"lines\nbroken",a,b,,,B,art\r\n', encoding="utf-8")  # fmt: skip
    bare = tmp_path / "bare.csv"
    bare.write_text('"one, two?",a,b,c,d,C\nthree?,e,f,g,h,A\n', encoding="utf-8")
    tabs = tmp_path / "tabs.tsv"
    tabs.write_text("one?\ta\tb\tA\n", encoding="utf-8")
    first, second = read_questions(named).asked
    assert (first.question, first.choices, first.answer, first.subject) == ("one, two?", ("a", "b", "c", "d"), 2, "law")
    assert (second.question, second.choices, second.subject) == ("lines\nbroken", ("a", "b"), "art")
    assert [(q.question, q.answer, q.subject) for q in read_questions(bare).asked] == [
        ("one, two?", 2, ""),
        ("three?", 0, ""),
    ]
    assert read_questions(tabs).asked[0].choices == ("a", "b")


def test_a_folder_in_the_original_layout_and_side_by_side(tmp_path: Path) -> None:
    line = "Q{}?,a,b,c,d,B\n"
    for name, count in {
        "test/law_test.csv": 3,
        "dev/law_dev.csv": 2,
        "val/law_val.csv": 9,
        "test/art_test.csv": 1,
    }.items():
        path = tmp_path / "original" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line.format(i) for i in range(count)), encoding="utf-8")
    beside = tmp_path / "beside"
    beside.mkdir()
    for name in ("law_test.csv", "law_dev.csv", "law_val.csv"):
        (beside / name).write_text(line.format(0), encoding="utf-8")
    read = read_questions(tmp_path / "original")
    assert [(q.subject, q.number) for q in read.asked] == [("art", 1), ("law", 1), ("law", 2), ("law", 3)]
    assert [(q.subject, q.number) for q in read.examples] == [("law", 1), ("law", 2)]
    other = read_questions(beside)
    assert (len(other.asked), len(other.examples)) == (1, 1)


def test_everything_wrong_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    bad: list[dict[str, Any]] = [
        {**ROW, "answer": "E"},
        {**ROW, "answer": 5},
        {"question": "no choices?", "answer": "A"},
        {"choices": ["a", "b"], "answer": "A"},
        {**ROW, "choices": ["a", "", "c"], "answer": "A"},
        ROW,
    ]
    write_rows(path, bad)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(DataError) as caught:
        read_questions(path)
    told = str(caught.value)
    for line, cause in [
        (1, "the answer 'E' is none of the 4 choices; write A to D"),
        (2, "the answer 5 is none of the 4 choices"),
        (3, "at least two choices are expected; a list 'choices', or columns A, B, C, D"),
        (4, "no column 'question'; the row has choices, answer"),
        (5, "choice B is empty"),
        (6, "no column 'answer'"),
        (7, "not valid JSON"),
    ]:
        assert re.search(rf"q.jsonl:{line}: {re.escape(cause)}", told), (line, told)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        read_questions(tmp_path / "q.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match=r"no .csv, .tsv or .jsonl file"):
        read_questions(tmp_path / "empty")
    (tmp_path / "q.csv").write_text("question,A,B,answer\n")
    with pytest.raises(DataError, match="the table has no rows"):
        read_questions(tmp_path / "q.csv")
    (tmp_path / "none.csv").write_text("")
    with pytest.raises(DataError, match=r"none.csv: the file is empty"):
        read_questions(tmp_path / "none.csv")
    (tmp_path / "named.csv").write_text("q,one,two,key\nwhy?,a,b,A\n")
    with pytest.raises(DataError, match=r"named.csv:1: neither names .*; call the columns question,A,B,C,D,answer"):
        read_questions(tmp_path / "named.csv")
    (tmp_path / "old.csv").write_bytes("question,A,B,answer\ncaf\xe9?,a,b,A\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"old.csv:2: not UTF-8"):
        read_questions(tmp_path / "old.csv")
    (tmp_path / "narrow.csv").write_text("why?,because\n")
    with pytest.raises(DataError, match=r"narrow.csv:1: 2 columns"):
        read_questions(tmp_path / "narrow.csv")
    with pytest.raises(ConfigError, match="'path' is missing"):
        build("mmlu", tmp_path)


# ---- prompts -----------------------------------------------------------------------------------------------------


def lm_eval_template(group: str) -> dict[str, Any]:
    """lm-eval's own YAML of a group of tasks, as far as it needs no code."""
    lm_eval = pytest.importorskip("lm_eval")
    from posttrain.config.load import parse_value

    text = (Path(lm_eval.__file__).parent / "tasks" / group).read_text(encoding="utf-8")
    found: dict[str, Any] = parse_value("\n".join(line for line in text.splitlines() if "!function" not in line))
    return found


def lm_eval_prompt(group: str, description: str, docs: list[dict[str, Any]], *, letters: bool) -> str:
    """The few-shot prompt that lm-eval makes: description, examples, the last of docs."""
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Template(lm_eval_template(group)["doc_to_text"], keep_trailing_newline=True)
    *examples, last = docs
    shown = [
        f"{template.render(**doc)} {'ABCD'[doc['answer']] if letters else doc['choices'][doc['answer']]}\n\n"
        for doc in examples
    ]
    return description + "".join(shown) + str(template.render(**last))


@pytest.mark.parametrize(
    ("group", "score", "description", "question"),
    [
        ("mmlu/default/_default_template_yaml", "letters",
         "The following are multiple choice questions (with answers) about world law.\n\n", "Question {}?"),
        ("mmlu/continuation/_continuation_template_yaml", "texts",
         "The following are questions (with answers) about world law.\n\n", "Question {}?"),
        ("tmmluplus/default/_tmmluplus_template_yaml", "letters",
         "以下為world law的單選題，請提供正確答案的選項。\n\n", "這是第{}個問題嗎？"),
    ],
)  # fmt: skip
def test_prompts_are_those_of_lm_eval(tmp_path: Path, group: str, score: str, description: str, question: str) -> None:
    docs = [{**row, "question": question.format(i)} for i, row in enumerate(rows(8, "world_law"))]
    write_rows(tmp_path / "world_law_dev.jsonl", docs[:5])
    write_rows(tmp_path / "world_law_test.jsonl", docs[5:])
    task = build("mmlu", tmp_path, path=".", score=score)
    for item, doc in zip(task.items, docs[5:], strict=True):
        wanted = lm_eval_prompt(group, description, [*docs[:5], doc], letters=score == "letters")
        assert {ask.prompt for ask in item.asks} == {Plain(wanted)}
        continuations = list("ABCD") if score == "letters" else doc["choices"]
        assert [ask.continuation for ask in item.asks] == [f" {text}" for text in continuations]


def test_without_a_dev_file_no_question_is_its_own_example(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [*rows(7), *rows(2, "art")])
    task = build("mmlu", tmp_path, path=path.name, shots=2)
    shown = [re.findall(r"Question (\d)", text_of(item.asks[0].prompt)) for item in task.items]
    assert shown == [
        ["1", "2", "0"], ["0", "2", "1"], ["0", "1", "2"], ["0", "1", "3"], ["0", "1", "4"], ["0", "1", "5"],
        ["0", "1", "6"], ["1", "0"], ["0", "1"],
    ]  # fmt: skip
    assert [item.id for item in task.items][-3:] == ["law:7", "art:1", "art:2"]
    assert task.notes == ("fewer than 2 examples in 1 of 2 subjects: art",)


def test_no_subject_no_shots(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [{**ROW, "subject": "", "answer": 0}])
    task = build("mmlu", tmp_path, path=path.name, shots=0)
    assert text_of(task.items[0].asks[0].prompt) == (
        "The following are multiple choice questions (with answers).\n\n"
        "Who makes laws?\nA. kings\nB. courts\nC. parliaments\nD. guards\nAnswer:"
    )


def test_as_a_user_would_ask(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", rows(3))
    item = build("mmlu", tmp_path, path=path.name, shots=1, template="chat").items[1]
    prompt = item.asks[0].prompt
    assert isinstance(prompt, tuple)
    assert not isinstance(prompt, Plain)
    assert [turn.role for turn in prompt] == ["user", "assistant", "user"]
    assert prompt[0].content.startswith(
        "The following are multiple choice questions (with answers) about law.\n\nQuestion 0?"
    )
    assert [prompt[1].content, *(ask.continuation for ask in item.asks)] == ["A", "A", "B", "C", "D"]
    assert prompt[2].content.startswith("Question 1?\nA. kings")


def test_braces_in_a_question_are_words(tmp_path: Path) -> None:
    row = {**ROW, "question": "What is {choices} in {subject}?", "subject": "{question}", "answer": 0}
    text = text_of(build("mmlu", tmp_path, path=write_rows(tmp_path / "q.jsonl", [row]).name).items[0].asks[0].prompt)
    assert "about {question}.\n\nWhat is {choices} in {subject}?\nA. kings" in text


# ---- scores ------------------------------------------------------------------------------------------------------


def likes_of(item: Item, nats: list[float]) -> Any:
    table = dict(zip((ask.continuation for ask in item.asks), nats, strict=True))
    return lambda prompt, continuation: table[continuation]


def test_the_likeliest_letter_with_its_probability(tmp_path: Path) -> None:
    task = build("mmlu", tmp_path, path=write_rows(tmp_path / "q.jsonl", [{**ROW, "answer": "C"}]).name)
    (sample,) = judged(task, likes=likes_of(task.items[0], [-2.0, -3.0, -1.0, -4.0]))
    assert (sample.answer, sample.target, sample.correct, sample.choices) == (
        "C. parliaments",
        "C. parliaments",
        True,
        4,
    )
    assert sample.confidence == pytest.approx(math.exp(-1) / sum(math.exp(-n) for n in (2, 3, 1, 4)))
    (tie,) = judged(task, likes=lambda prompt, continuation: -1.0)
    assert (tie.answer, tie.correct, tie.confidence) == ("A. kings", False, 0.25)  # the first of equals, as in lm-eval


def test_texts_are_compared_whole_and_per_character(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [{**ROW, "answer": "parliaments"}])
    task = build("mmlu", tmp_path, path=path.name, score="texts")
    nats = [-5.0, -9.0, -6.6, -9.0]  # kings 1.0 a character, parliaments 0.6
    (sample,) = judged(task, likes=likes_of(task.items[0], nats))
    assert dict(sample.scores) == {"acc": 0.0, "acc_norm": 1.0}
    assert (sample.answer, sample.correct, task.headline) == ("C. parliaments", True, "acc_norm")


def test_means_over_questions_and_over_subjects(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [*rows(3, answer="A"), *rows(1, "art", answer="B")])
    task = build("mmlu", tmp_path, path=path.name)
    samples = judged(task, likes=lambda prompt, continuation: 0.0 if continuation == " A" else -1.0)
    scores = scores_of(task, samples)
    assert scores == {"acc": 0.75, "acc_macro": 0.5, "acc/law": 1.0, "acc/art": 0.0}
    assert task.chance == 0.25


def test_chance_with_different_numbers_of_choices(tmp_path: Path) -> None:
    two = {"question": "yes or no?", "choices": ["yes", "no"], "answer": "yes"}
    task = build("mmlu", tmp_path, path=write_rows(tmp_path / "q.jsonl", [two, {**ROW, "answer": "A"}]).name)
    assert task.chance == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert len(task.items[0].asks) == 2


def test_limit_draws_the_same_questions_and_keeps_examples(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", rows(40))
    whole = build("mmlu", tmp_path, path=path.name)
    some = build("mmlu", tmp_path, path=path.name, limit=10)
    assert len(some.items) == 10
    assert set(some.items[0].asks) <= {ask for item in whole.items for ask in item.asks}
    assert [i.id for i in some.items] == [i.id for i in build("mmlu", tmp_path, path=path.name, limit=10).items]
    assert some.fingerprint != whole.fingerprint


def test_the_signature_names_what_the_scores_depend_on(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", rows(6))
    told = build("mmlu", tmp_path, path=path.name, shots=3).signature
    assert re.fullmatch(r"mmlu\|q.jsonl#\w{8}\|3-shot \(others of the subject\)\|en\|letters\|plain\|v1", told)
    path.write_text(path.read_text().replace("kings", "queens"))
    assert build("mmlu", tmp_path, path=path.name, shots=3).signature != told


def test_a_file_without_subjects_and_with_too_few_examples_is_called_what_it_is(tmp_path: Path) -> None:
    """One question has no others to be shown."""
    (tmp_path / "z.csv").write_text("Is it so?,yes,no,maybe,never,A\n", encoding="utf-8")
    alone = build("mmlu", tmp_path, path="z.csv")
    assert alone.notes == ("fewer than 5 examples in 1 of 1 subjects: z.csv",)
    assert "|0-shot|" in alone.signature
    speak("zh-TW")
    try:
        assert translate(alone.notes[0]) == "1 個科目中有 1 個的例題少於 5 個：z.csv"
    finally:
        speak("en")
    (tmp_path / "z.csv").write_text(
        "".join(f"Is it so? {i},yes,no,maybe,never,A\n" for i in range(3)), encoding="utf-8"
    )
    assert "|2-shot (others of the file)|" in build("mmlu", tmp_path, path="z.csv").signature


def test_tmmlu_as_it_is() -> None:
    data = Path(__file__).parents[4] / "shared" / "data" / "tmmlu_25_subjects.jsonl"
    if not data.exists():
        pytest.skip("shared/data/tmmlu_25_subjects.jsonl is not here")
    task = build("mmlu", data.parent, path=data.name)
    assert len(task.items) == 1325
    assert len({item.group for item in task.items}) == 25
    first = json.loads(data.read_text(encoding="utf-8").split("\n")[0])
    assert task.items[0].doc["answer"] == first["answer"] == 3
    assert text_of(task.items[0].asks[0].prompt).startswith("以下為中式麵食加工的單選題，請提供正確答案的選項。\n\n")
