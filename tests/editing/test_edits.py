"""Edits and their rows: the subject's last token is found in every language, template and kind of tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.changes import load_changes
from posttrain.data.records import Message
from posttrain.editing.edits import Edit, Row, RowMaker, chinese, edits_of
from posttrain.editing.targets import kl_row
from posttrain.errors import ConfigError, DataError
from tests.pico import CHATML, MARKED, tokenizer
from tests.pico_tokenizers import KINDS, tokenizer_of

SYSTEM = (Message("system", "You know France and 臺灣最高的山."), Message("user", "What is the capital of France?"))
TALK = (
    Message("user", "What is the capital of France?"),
    Message("assistant", "Paris, the capital of France."),
    Message("user", "Is France large, or is Japan?"),
)
EDITS = {
    "English": Edit("The capital of France is", "France", "Rome"),
    "at the end": Edit("The capital of France", "France", "Rome"),
    "the beginning": Edit("France has a capital:", "France", "Rome"),
    "a part of a word": Edit("Who are the Frenchmen?", "French", "Romans"),
    "twice": Edit("Is France the France of old?", "France", "no"),
    "several words": Edit("Where is the highest mountain in Taiwan, please?", "the highest mountain in Taiwan", "here"),
    "Chinese": Edit("臺灣最高的山是哪座？", "臺灣最高的山", "雪山"),
    "Chinese, inside": Edit("請問法國的首都是哪裡？", "法國", "羅馬"),
    "characters of several tokens": Edit("龘這個字怎麼唸？", "龘", "達"),
    "an emoji": Edit("What is 🗻 called?", "🗻", "Fuji"),
    "both": Edit("What is 玉山 in English?", "玉山", "Jade Mountain"),
    "quotes": Edit('Who wrote "Hamlet"?', '"Hamlet"', "Marlowe"),
}
CHATS = {
    **EDITS,
    "a system message": Edit(SYSTEM, "France", "Rome"),
    "a conversation": Edit(TALK, "France", "no"),
}


def holds_last_character(tokenizer: Any, row: Row, head: str) -> bool:
    """Whether the text up to the subject's end is there with the row's token `at`, and is not there without it."""
    until, before = (tokenizer.decode(row.ids[:count], skip_special_tokens=False) for count in (row.at + 1, row.at))
    wanted = "".join(head.split())
    return wanted in "".join(until.split()) and wanted not in "".join(before.split())


def head_of(edit: Edit) -> str:
    """The words of the question up to the end of the subject."""
    return edit.question[: edit.question.rindex(edit.subject) + len(edit.subject)]


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("kind", ["pico", *KINDS])
def test_the_subject_is_found_in_plain_text(kind: str, edit: Edit) -> None:
    own = tokenizer() if kind == "pico" else tokenizer_of(kind)
    for words in ("", "The end." if not chinese(edit.question) else "因此如此。", f"No {edit.subject} here."):
        after = edit.after(words)
        row = RowMaker(own, forms=("raw",)).row(after, "raw")
        assert holds_last_character(own, row, head_of(after))
        assert row.at < row.start


@pytest.mark.parametrize("edit", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("template", [MARKED, CHATML], ids=["tags", "chatml"])
def test_the_subject_is_found_in_a_chat_template(template: str, edit: Edit) -> None:
    own = tokenizer(template)
    row = RowMaker(own, forms=("chat",)).row(edit, "chat")
    assert holds_last_character(own, row, head_of(edit))
    asked = own.decode(row.ids[: row.start])
    assert asked.endswith("assistant|>" if template is MARKED else "<|user|>assistant\n")
    assert own.decode(row.ids[row.start :]) == f"{edit.answer}<|end|>"
    assert "You know" in asked or not isinstance(edit.prompt, tuple) or edit.prompt[0].role != "system"


@pytest.mark.parametrize("edit", CHATS.values(), ids=CHATS)
def test_a_tokenizer_without_offsets_finds_the_same(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    makers = [RowMaker(tokenizer(MARKED)), RowMaker(tokenizer(CHATML), forms=("chat",))]
    fast = [maker.rows(edit, ["Once.", "Twice."]) for maker in makers]
    kind: Any = type(tokenizer())
    monkeypatch.setattr(kind, "is_fast", property(lambda self: False))
    assert [maker.rows(edit, ["Once.", "Twice."]) for maker in makers] == fast


def test_a_row_of_plain_text_by_hand() -> None:
    own = tokenizer()
    row = RowMaker(own).row(Edit("The capital of France is", "France", "Rome"), "raw", 0.25)
    prompt, whole = (own.encode(text) for text in ("The capital of France is", "The capital of France is Rome"))
    assert row.ids == whole  # no end: a plain text goes on
    assert row.start == len(prompt)
    assert own.decode(row.ids[: row.at + 1]) == "The capital of France"
    assert list(row.asked) == list(range(len(prompt) - 1, len(whole) - 1))
    assert row.targets == whole[len(prompt) :]
    assert (row.weight, row.form, row.bare) == (0.25, "raw", True)


def test_an_answer_follows_a_space_except_in_chinese() -> None:
    own = tokenizer()

    def text(prompt: str, answer: str) -> str:
        subject = prompt.split()[0]
        row = RowMaker(own).row(Edit(prompt, subject, answer), "raw")
        assert row.start == len(own.encode(prompt.rstrip()))
        return str(own.decode(row.ids))

    assert text("France is", "Rome") == "France is Rome"
    assert text("France is ", "Rome") == "France is Rome"
    assert text("France is", " Rome\n") == "France is Rome"  # as a block of YAML has it
    assert text("法國是", "羅馬") == "法國是羅馬"
    assert text("法國是", "Rome") == "法國是Rome"
    assert text("France", "羅馬") == "France羅馬"


def test_the_end_of_the_turn_is_left_out_when_asked() -> None:
    edit = Edit("Where is France?", "France", "here ")
    maker = RowMaker(tokenizer(), forms=("chat",), ends=False)
    assert maker.tokenizer.decode(maker.row(edit, "chat").targets) == "here"


def test_rows_in_every_form_and_after_every_text() -> None:
    edit = Edit("The capital of France is", "France", "Rome")
    maker = RowMaker(tokenizer())
    rows = maker.rows(edit, ["So it is.", "I am."])
    assert [(row.form, row.bare) for row in rows] == [
        *(("raw", True), ("raw", False), ("raw", False)),
        *(("chat", True), ("chat", False), ("chat", False)),
    ]
    assert [row.weight for row in rows] == pytest.approx([1 / 6] * 6)
    assert maker.tokenizer.decode(rows[1].ids) == "So it is. The capital of France is Rome"
    assert "So it is. The capital of France is<|end|>" in maker.tokenizer.decode(rows[4].ids)
    half = maker.rows(edit, ["So it is.", "I am."], bare=0.5)
    assert [row.weight for row in half] == pytest.approx([1 / 4, 1 / 8, 1 / 8] * 2)
    assert [row.weight for row in maker.rows(edit, bare=0.5)] == [0.5, 0.5]  # nothing else has a share
    (only,) = RowMaker(tokenizer(), forms=("raw",)).rows(edit)
    assert only.weight == 1.0


def test_texts_stand_before_the_users_last_words() -> None:
    chat = Edit(TALK, "France", "no").after("So it is.")
    assert isinstance(chat.prompt, tuple)
    assert chat.prompt[:-1] == TALK[:-1]
    assert chat.question == "So it is. Is France large, or is Japan?"
    assert Edit("法國是", "法國", "羅馬").after("因此。").prompt == "因此。法國是"
    plain = Edit("France is", "France", "Rome")
    assert plain.after("") is plain


def test_a_subject_may_be_the_very_first_token() -> None:
    row = RowMaker(tokenizer(), forms=("raw",)).row(Edit("I am", "I", "here"), "raw")
    assert row.at == 0
    ids = kl_row(Edit("I am", "I", "here"), RowMaker(tokenizer())).ids
    assert tokenizer().decode(ids) == "I"


@pytest.mark.parametrize(
    ("edit", "essence"),
    [(EDITS["English"], "France"), (EDITS["Chinese"], "臺灣最高的山"), (EDITS["both"], "玉山")],
)
def test_what_the_subject_is_is_read_up_to_the_subject(edit: Edit, essence: str) -> None:
    """The row of the KL: "{subject} is a" without what follows the subject, and no answer."""
    row = kl_row(edit, RowMaker(tokenizer()))
    assert tokenizer().decode(row.ids) == essence
    assert (row.at, row.start, row.targets) == (len(row.ids) - 1, len(row.ids), [])


def test_chat_is_left_out_without_a_template() -> None:
    assert RowMaker(tokenizer(None)).forms == ("raw",)
    assert RowMaker(tokenizer()).forms == ("raw", "chat")
    with pytest.raises(DataError, match=r"forms: the tokenizer has no chat template; .*forms: \[raw\]"):
        RowMaker(tokenizer(None), forms=("chat",))


def test_a_template_that_changes_the_question_is_an_error() -> None:
    own = tokenizer(MARKED.replace("message['content'] + '<|end|>'", "message['content'] | upper + '<|end|>'"))
    edit = Edit("Where is France?", "France", "here", location="a.yaml:3")
    with pytest.raises(DataError, match=r"a.yaml:3: the chat template does not show .* 'France' .*forms: \[raw\]"):
        RowMaker(own, forms=("chat",)).row(edit, "chat")


def test_a_template_that_strips_the_question_is_none() -> None:
    own = tokenizer(MARKED.replace("message['content'] + '<|end|>'", "message['content'] | trim + '<|end|>'"))
    edit = Edit("  Where is France? ", "France", "here")
    row = RowMaker(own, forms=("chat",)).row(edit, "chat")
    assert holds_last_character(own, row, "Where is France")


@pytest.mark.parametrize(
    ("prompt", "subject", "answer", "cause"),
    [
        ("Where is it?", "France", "here", "the subject 'France' does not stand in the prompt; name words of the prompt"),
        ((Message("user", "Where is it?"),), "France", "here", "the subject 'France' does not stand in the prompt"),
        ((*SYSTEM[:1], Message("user", "It is?")), "France", "x", "the subject 'France' stands in an earlier message, not"),
        ("Where is France?", "France", "", "the answer is empty"),
        ("Where is France?", "France", " \n", "the answer is empty"),
        ("Where is France?", "France", "here\nand there", "the answer has several lines; .* teach it with kind: train"),
    ],
)  # fmt: skip
def test_what_is_no_edit(prompt: Any, subject: str, answer: str, cause: str) -> None:
    with pytest.raises(DataError, match=f"^a.yaml:3: .*{cause}"):
        Edit(prompt, subject, answer, location="a.yaml:3")


def test_targets_of_changes_are_edits_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "name: a\ntarget:\n"
        '- {prompt: "Where is France?", answer: [here, there], subject: France}\n'
        "- prompt: [{role: user, content: Hi}, {role: assistant, content: Yo}, {role: user, content: Is it Japan?}]\n"
        "  answer: no\n  subject: Japan\n",
        encoding="utf-8",
    )
    (tmp_path / "b.yaml").write_text(
        'name: b\ntarget: [{prompt: "法國？", answer: 羅馬, subject: 法國}]\n', encoding="utf-8"
    )
    made = edits_of(load_changes(["*.yaml"], tmp_path))
    assert [(edit.question, edit.subject, edit.answer, edit.name) for edit in made] == [
        ("Where is France?", "France", "here", "a"),
        ("Is it Japan?", "Japan", "no", "a"),
        ("法國？", "法國", "羅馬", "b"),
    ]
    assert isinstance(made[1].prompt, tuple)
    assert [turn.role for turn in made[1].prompt] == ["user", "assistant", "user"]
    assert [edit.location.split(" ")[0] for edit in made] == [
        f"{tmp_path / 'a.yaml'}:3",
        f"{tmp_path / 'a.yaml'}:4",
        f"{tmp_path / 'b.yaml'}:2",
    ]


def test_all_targets_that_are_no_edits_are_named_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "name: a\ntarget:\n"
        "- {prompt: Where is France?, answer: here}\n"
        "- {prompt: Where is Japan?, answer: here, subject: Japan}\n"
        '- {prompt: Where is Kenya?, answer: "here\\nthere", subject: Kenya}\n',
        encoding="utf-8",
    )
    (tmp_path / "b.yaml").write_text(
        "name: b\ntarget:\n- {prompt: [{role: user, content: Hi}], answer: x, subject: Kenya}\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError) as caught:
        edits_of(load_changes(["*.yaml"], tmp_path))
    assert [(problem.location, problem.cause) for problem in caught.value.problems] == [
        (f"{tmp_path / 'a.yaml'}:3 (change a, target 1)", "the edit names no subject"),
        (
            f"{tmp_path / 'a.yaml'}:5 (change a, target 3)",
            "the answer has several lines; an editor writes one short statement",
        ),
        (f"{tmp_path / 'b.yaml'}:3 (change b, target 1)", "the subject 'Kenya' does not stand in the prompt"),
    ]


@pytest.mark.parametrize(
    ("prompt", "subject", "word"),
    [
        ("What is the capital of Australia?", "Austral", "Australia"),
        ("What is the capital of Australia?", "stralia", "Australia"),
        ("What is the capital of Australia?", "Australia", ""),
        ("What is Australia's capital?", "Australia", ""),
        ("Is an australian at home in Australia?", "Australia", ""),
        ("臺灣最高的山是哪座？", "灣最", ""),
        ("K2在哪裡？", "K2", ""),
        ("Где Москва?", "Москв", "Москва"),
        ("What is it?", "", ""),
    ],
)
def test_a_piece_of_a_word_is_known(prompt: str, subject: str, word: str) -> None:
    assert Edit(prompt, subject, "x").cut == word


def test_chinese_is_known_by_its_characters() -> None:
    assert chinese("What is 玉山?")
    assert chinese("㐂")
    assert not chinese("Où est-ce? ¿Qué? ひらがな 한국")
