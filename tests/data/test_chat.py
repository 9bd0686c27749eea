from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.data.chat import IGNORED, Encoded, encode_all, encode_prompt, render
from posttrain.data.records import Completion, Conversation, Message, Record, Text
from posttrain.errors import DataError, TemplateError
from posttrain.models.load import load_tokenizer
from tests.pico import CHATML, FAMILIES, MARKED, UNMARKED, tokenizer
from tests.templates import GPT_OSS, learned, shipped, tokenizer_of

GEMMA_LIKE = (  # marks the words but not the end-of-turn token, and a part of the tag
    "{{ bos_token }}{%- for m in messages %}{{ '<|user|>' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ 'model\n' + m.content | trim }}{% endgeneration %}{% else %}{{ m.role + '\n' + m.content | trim }}"
    "{% endif %}{{ '<|end|>\n' }}{% endfor -%}{%- if add_generation_prompt %}{{ '<|user|>model\n' }}{% endif -%}"
)
GLM_LIKE = (  # a turn ends with the next one's tag
    "{{ bos_token }}{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif -%}"
)
QWEN_LIKE = (  # the last answer has a place for reasoning, the earlier ones lose it
    "{%- for m in messages %}{{ '<|user|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n' }}{% endif %}{{ m.content + '<|end|>\n' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif -%}"
)
PHI_LIKE = (  # an end-of-text token after the last turn
    "{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|tool|>\n' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif -%}"
)
ENDS = {
    "marked": (MARKED, "<|end|>"),
    "unmarked": (UNMARKED, "<|end|>"),
    "chatml": (CHATML, "<|end|>"),
    "gemma": (GEMMA_LIKE, "<|end|>"),
    "glm": (GLM_LIKE, "<|user|>"),
    "phi": (PHI_LIKE, "<|tool|>"),
}

ASK, ANSWER = Message("user", "Who?"), Message("assistant", "你好, I.")


def talk(*messages: Message, location: str = "rows.jsonl:1") -> Conversation:
    return Conversation(messages, location)


def using(template: str | None) -> Any:
    return tokenizer(template)


words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<["), min_size=1, max_size=12
).filter(lambda text: text.strip() == text)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=3)


def conversation(pairs: list[tuple[str, str]]) -> Conversation:
    return talk(*(m for ask, say in pairs for m in (Message("user", ask), Message("assistant", say))))


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(pairs=turns, system=st.none() | words)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_labels_written_out(
    family: str, pairs: list[tuple[str, str]], system: str | None, pico_path: Callable[[str], Path]
) -> None:
    tok = LOADED.setdefault(family, load_tokenizer(str(pico_path(family))))

    def ids(text: str) -> list[int]:
        return list(tok(text, add_special_tokens=False)["input_ids"])

    record = conversation(pairs)
    if system is not None:
        record = talk(Message("system", system), *record.messages)
    expected_ids, expected = [1], [IGNORED]
    for message in record.messages:
        tag = {"system": 3, "user": 4, "assistant": 5}[message.role]
        words = [*ids(message.content), 2]
        expected_ids += [tag, *words]
        expected += [IGNORED, *(words if message.role == "assistant" else [IGNORED] * len(words))]
    assert render(record, tok) == Encoded(expected_ids, expected, record.location, False)
    chat = [m.for_template() for m in record.messages]
    assert expected_ids == tok.apply_chat_template(chat, tokenize=True, return_dict=False)


LOADED: dict[str, Any] = {}


@settings(deadline=None, max_examples=40)
@given(pairs=turns)
@pytest.mark.parametrize("kind", ENDS)
def test_every_answer_and_its_end_is_learned(kind: str, pairs: list[tuple[str, str]]) -> None:
    template, end = ENDS[kind]
    tok = using(template)
    record = conversation(pairs)
    row = render(record, tok)
    assert learned(row, tok) == [say + end for _, say in pairs]
    prompt = encode_prompt(record.messages[:1], tok)
    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert row.labels[len(prompt)] != IGNORED  # generation begins exactly where learning begins
    assert all(label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True))


@settings(deadline=None, max_examples=25)
@given(st.lists(turns, min_size=1, max_size=4))
def test_many_together_equal_each_alone(many: list[list[tuple[str, str]]]) -> None:
    for template in (MARKED, CHATML):
        tok = using(template)
        records = [conversation(pairs) for pairs in many]
        assert encode_all(records, tok, max_length=10_000).rows == [render(record, tok) for record in records]


class Slow:
    """The same tokenizer without offsets, as one written in Python is."""

    is_fast = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.chat_template = inner.chat_template

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Any]:
        return {"input_ids": self.inner(texts, **options)["input_ids"]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@settings(deadline=None, max_examples=25)
@given(pairs=turns)
@pytest.mark.parametrize("kind", ENDS)
def test_offsets_equal_prefix_lengths(kind: str, pairs: list[tuple[str, str]]) -> None:
    tok = using(ENDS[kind][0])
    slow: Any = Slow(tok)
    assert render(conversation(pairs), tok) == render(conversation(pairs), slow)


def test_offsets_trimmed_by_the_post_processor() -> None:
    from tokenizers.processors import ByteLevel

    tok = copy.deepcopy(using(MARKED))
    tok.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    record = talk(ASK, Message("assistant", "  two spaces "), ASK, Message("assistant", " one"))
    assert learned(render(record, tok), tok) == ["  two spaces <|end|>", " one<|end|>"]


def test_reasoning_is_learned_where_the_template_keeps_it() -> None:
    tok = using(QWEN_LIKE)
    row = render(talk(ASK, ANSWER, ASK, Message("assistant", "It", reasoning="Hm")), tok)
    assert learned(row, tok) == ["你好, I.<|end|>", "<think>\nHm\n</think>\nIt<|end|>"]


def test_train_flags() -> None:
    tok = using(MARKED)
    for template in (MARKED, UNMARKED, CHATML):
        tok = using(template)
        record = talk(
            Message("user", "What?", train=True),
            Message("assistant", "No.", train=False),
            Message("user", "And?"),
            Message("assistant", "So."),
        )
        assert learned(render(record, tok), tok) == ["What?<|end|>", "So.<|end|>"]
    only = render(talk(Message("user", "What?", train=True)), tok)
    assert learned(only, tok) == ["What?<|end|>"]


@settings(deadline=None, max_examples=40)
@given(content=st.sampled_from(["u", "user", "end", "|", "s", ">", "model"]) | words)
@pytest.mark.parametrize("kind", ENDS)
def test_a_trained_question_begins_with_its_content(kind: str, content: str) -> None:
    template, end = ENDS[kind]
    tok = using(template)
    row = render(talk(ASK, ANSWER, Message("user", content, train=True), ANSWER), tok)
    end = {"glm": "<|assistant|>"}.get(kind, end)
    assert learned(row, tok)[1].strip() == content.strip() + end


def test_a_repeated_content_is_found_in_its_own_turn() -> None:
    tok = using(CHATML)
    record = talk(Message("user", "user"), Message("assistant", "x"), Message("user", "user", train=True))
    row = render(record, tok)
    assert learned(row, tok) == ["x<|end|>", "user<|end|>"]
    assert row.labels[-1] == IGNORED  # the line break after the last end-of-turn token


def test_tools_and_reasoning_are_rendered_by_the_template() -> None:
    tok = using(MARKED)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    record = Conversation(
        (
            ASK,
            Message("assistant", "", reasoning="Add.", tool_calls=(call,)),
            Message("tool", "2"),
            Message("assistant", "2"),
        ),
        "a:1",
        ({"name": "add"},),
    )
    row = render(record, tok)
    text = tok.decode(row.input_ids)
    assert text.startswith('<|bos|><|system|>[{"name": "add"}]<|end|>')
    assert learned(row, tok)[0].startswith("(Add.)")
    assert '"arguments": {"a": 1}' in learned(row, tok)[0]
    assert learned(row, tok)[1] == "2<|end|>"


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (Conversation((ASK, ANSWER), "a:1", ({"name": "add"},)), "tools"),
        (talk(ASK, Message("assistant", "x", tool_calls=({"name": "add"},)), location="a:1"), "tool_calls"),
        (talk(ASK, Message("assistant", "x", reasoning="y"), location="a:1"), "reasoning"),
    ],
)
def test_a_field_without_a_place_in_the_template_is_an_error(record: Conversation, field: str) -> None:
    with pytest.raises(TemplateError, match=f"a:1: the chat template has no place for '{field}'"):
        render(record, using(CHATML))


def test_all_tokens() -> None:
    tok = using(GLM_LIKE)
    row = render(talk(ASK, ANSWER), tok, loss_on="all")
    assert row.labels == row.input_ids
    assert row.input_ids[-1] == 4  # <|user|> ends the answer, appended
    assert render(talk(ASK, ANSWER), tok).input_ids == row.input_ids


MUTE = MARKED.replace("{{ message['content'] }}", "")
NO_PROMPT = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
THINKING_PROMPT = CHATML.replace("assistant\n", "assistant\n<think>\n")
NO_END = "{% for m in messages %}{{ '\n' + m.role + ': ' + m.content }}{% endfor %}{% if add_generation_prompt %}{{ '\nassistant: ' }}{% endif %}"
REVERSED = "{% for m in messages | reverse %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
SHOUTING = CHATML.replace("m.content", "m.content | upper")
DUMB = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' if m.role != 'assistant' else '<|assistant|><|end|>' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (NO_PROMPT, "turn 1 .assistant.*a tag before the words that its generation prompt lacks.*generation %"),
        (
            THINKING_PROMPT,
            r"generation would begin with '<think>\\n' where the text has '你好, I.<|end|>.*\"train\": false",
        ),
        (REVERSED, "turn 1 .assistant.*cannot be told apart"),
        (DUMB, "renders the turn without its content"),
        (MUTE, "renders the turn without its content"),
        (NO_END, "does not end this turn with a special token.*eos_token"),
        ("{{ raise_exception('Roles must alternate') }}", "refuses this conversation .user, assistant.: Roles must"),
        (None, "no chat template.*'prompt' and 'completion'"),
    ],
)
def test_templates_that_cannot_be_used(template: str | None, words: str) -> None:
    with pytest.raises(TemplateError, match="rows.jsonl:1: .*" + words.replace("<|", "<.").replace("|>", ".>")):
        render(talk(ASK, ANSWER), using(template))


def test_a_turn_cannot_be_rendered_otherwise_later() -> None:
    changing = CHATML.replace("m.content", "('*' if m.role == 'assistant' and not loop.last else '') + m.content")
    with pytest.raises(TemplateError, match=r"turn 1 .*renders the turn otherwise when more turns follow"):
        render(talk(ASK, ANSWER, ASK, ANSWER), using(changing))


@pytest.mark.parametrize("template", [GPT_OSS, shipped("gptoss")])
def test_gpt_oss_learns_one_answer_of_a_row(template: str) -> None:
    """Earlier ones end with `<|end|>`, at which generation does not stop."""
    tok = tokenizer_of(template)
    with pytest.raises(TemplateError) as caught:
        render(talk(ASK, ANSWER, ASK, ANSWER), tok)
    problem = caught.value.problems[0]
    assert "turn 1 (assistant)" in problem.cause
    assert problem.mend == (
        'give each answer a row of its own that ends with it, in which earlier answers have "train": false: this '
        "template writes an answer as generation does only where it comes last"
    )
    row = render(talk(ASK, replace(ANSWER, train=False), ASK, ANSWER), tok)
    assert learned(row, tok) == [f"<|channel|>final<|message|>{ANSWER.content}<|return|>"]
    assert tok.decode(row.input_ids).count(ANSWER.content) == 2


def test_a_question_in_a_text_that_depends_on_what_follows_is_not_guessed_at() -> None:
    counting = "{{ messages | length }}" + MARKED
    record = talk(Message("user", "Who?", train=True), ANSWER)
    with pytest.raises(TemplateError, match=r"turn 0 \(user\).*content is not in its text as it is"):
        render(record, using(counting))


def test_words_that_join_the_tag_are_refused() -> None:
    tok = using(CHATML)
    with pytest.raises(TemplateError, match=r"rows.jsonl:1: the first token of a turn joins.*white space"):
        render(talk(ASK, Message("assistant", "\n\nHello")), tok)
    assert learned(render(talk(ASK, Message("assistant", "\n\nHello")), using(MARKED)), tok) == ["\n\nHello<|end|>"]


def test_control_tokens_in_the_words_are_refused() -> None:
    with pytest.raises(TemplateError, match=r"turn 1 \(assistant\) holds the control token '<\|end\|>'"):
        render(talk(ASK, Message("assistant", "Hi<|end|>")), using(MARKED))


def test_markers_around_the_last_answer_only_are_not_trusted() -> None:
    partial = MARKED.replace("== 'assistant' -%}", "== 'assistant' and loop.last -%}")
    tok = using(partial)
    assert learned(render(talk(ASK, ANSWER, ASK, ANSWER), tok), tok) == ["你好, I.<|end|>"] * 2


def test_completion_with_and_without_a_template() -> None:
    record = Completion("2+3=", " 5", "rows.jsonl:4")
    assert learned(render(record, using(MARKED)), using(MARKED)) == [" 5<|end|>"]
    assert render(record, using(MARKED)) == render(record.as_conversation(), using(MARKED))
    tok = using(None)
    row = render(record, tok)
    assert tok.decode(row.input_ids) == "2+3= 5<|end|>"
    assert learned(row, tok) == [" 5<|end|>"]
    assert row.input_ids[: len(encode_prompt("2+3=", tok))] == encode_prompt("2+3=", tok)
    assert render(record, tok, loss_on="all").labels == row.input_ids


def test_one_bos_and_one_end() -> None:
    from tokenizers.processors import TemplateProcessing

    tok = copy.deepcopy(using(MARKED))
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|end|>", special_tokens=[("<|bos|>", 1), ("<|end|>", 2)]
    )
    assert render(talk(ASK, ANSWER), tok) == render(talk(ASK, ANSWER), using(MARKED))
    assert encode_prompt("Hi", tok) == encode_prompt("Hi", using(MARKED))
    bare = copy.deepcopy(tok)
    bare.chat_template = None
    assert bare.decode(render(Text("Hi", "a:1"), bare).input_ids) == "<|bos|>Hi<|end|>"
    assert bare.decode(render(Completion("Hi", " you", "a:1"), bare).input_ids) == "<|bos|>Hi you<|end|>"
    assert bare.decode(encode_prompt("Hi", bare)) == "<|bos|>Hi"


def test_text_is_learned_whole() -> None:
    tok = using(MARKED)
    row = render(Text("臺灣 text", "a:1"), tok)
    assert tok.decode(row.input_ids) == "臺灣 text<|end|>"
    assert row.labels == row.input_ids


def test_prompts() -> None:
    tok = using(MARKED)
    assert tok.decode(encode_prompt("Hi", tok)) == "<|bos|><|user|>Hi<|end|><|assistant|>"
    assert (
        tok.decode(encode_prompt("Hi", tok, system="Be")) == "<|bos|><|system|>Be<|end|><|user|>Hi<|end|><|assistant|>"
    )
    assert encode_prompt((Message("user", "Hi"),), tok) == encode_prompt("Hi", tok)
    assert using(None).decode(encode_prompt("Hi", using(None))) == "Hi"
    for messages, system in (((ASK,), None), ("Hi", "Be")):
        with pytest.raises(TemplateError, match="no chat template"):
            encode_prompt(messages, using(None), system=system)


LONG: list[Record] = [
    talk(ASK, Message("assistant", "yes"), location="a:1"),
    talk(Message("user", "long " * 20), Message("assistant", "no"), location="a:2"),
    talk(ASK, Message("assistant", "long " * 20), location="a:3"),
]


def test_over_long_rows() -> None:
    tok = using(MARKED)
    with pytest.raises(DataError) as error:
        encode_all(LONG, tok, max_length=30)
    assert [p.location for p in error.value.problems[:2]] == ["a:2", "a:3"]
    assert "more than max_length 30; raise max_length, or over_long: drop" in str(error.value)
    result = encode_all(LONG, tok, max_length=30, over_long="drop")
    assert (len(result.rows), result.dropped, result.truncated) == (1, 2, 0)
    result = encode_all([LONG[0], LONG[2]], tok, max_length=30, over_long="truncate")
    assert (result.dropped, result.truncated) == (0, 1)
    assert len(result.rows[1].input_ids) == 30
    assert result.rows[1].truncated
    assert result.rows[1].input_ids == render(LONG[2], tok).input_ids[:30]


def test_weights_follow_their_rows() -> None:
    rows: list[Record] = [
        Conversation((Message("user", f"q{i}"), Message("assistant", "a")), f"x:{i}", weight=weight)
        for i, weight in enumerate([1.0, 0.25, 0.5])
    ]
    rows.insert(1, Text("b", "x:text"))
    rows.insert(2, Conversation((Message("user", "<|end|>"), Message("assistant", "a")), "x:bad", weight=0.1))
    made = encode_all(rows, tokenizer(), max_length=64, on_bad_row="skip")
    assert [(row.location, row.weight) for row in made.rows] == [
        ("x:0", 1.0),
        ("x:text", 1.0),
        ("x:1", 0.25),
        ("x:2", 0.5),
    ]
    cut = encode_all(rows[3:], tokenizer(), max_length=6, over_long="truncate", loss_on="all").rows[0]
    assert (cut.truncated, cut.weight) == (True, 0.25)


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
@pytest.mark.parametrize("answer", ["你好，我在", "I am a very"])
@pytest.mark.parametrize("kind", ENDS)
def test_a_turn_that_was_cut_off_stops_at_its_last_word(kind: str, answer: str, loss_on: Any) -> None:
    tok = using(ENDS[kind][0])
    turns = (ASK, ANSWER, ASK, Message("assistant", answer))
    whole = render(Conversation(turns, "cut"), tok, loss_on=loss_on)
    cut = render(Conversation(turns, "cut", ended=False), tok, loss_on=loss_on)
    length = len(cut.input_ids)
    assert cut.input_ids == whole.input_ids[:length]
    assert cut.labels == whole.labels[:length]
    assert tok.decode(cut.input_ids).endswith(answer)
    assert tok.decode(whole.input_ids[length:]).strip() == tok.eos_token or ENDS[kind][1] in tok.decode(
        whole.input_ids[length:]
    )
    if loss_on == "assistant":  # the turn before still ends
        assert [run.rstrip() for run in learned(cut, tok)][-2:] == ["你好, I." + ENDS[kind][1], answer]


def test_a_row_with_nothing_left_to_learn_is_an_error() -> None:
    tok = using(MARKED)
    with pytest.raises(DataError, match=r"a:2: no supervised token is left after cutting \d+ tokens to max_length 30"):
        encode_all(LONG, tok, max_length=30, over_long="truncate")
    result = encode_all(LONG, tok, max_length=30, over_long="truncate", on_bad_row="skip")
    assert [p.location for p in result.problems] == ["a:2"]
    with pytest.raises(DataError, match=r"a:8: no supervised token is left"):  # the first token is told from nothing
        encode_all([Text("Hi", "a:8")], tok, max_length=1, over_long="truncate")
    with pytest.raises(DataError, match="a:9: no supervised token"):
        render(talk(ASK, location="a:9"), tok)


def test_all_bad_rows_at_once() -> None:
    tok = using(MARKED)
    bad = [talk(ASK, Message("assistant", "<|end|>"), location=f"a:{i}") for i in (2, 4)]
    rows = [LONG[0], bad[0], LONG[0], bad[1]]
    with pytest.raises(TemplateError) as refused:
        encode_all(rows, tok, max_length=100)
    assert [p.location for p in refused.value.problems[:2]] == ["a:2", "a:4"]
    result = encode_all(rows, tok, max_length=100, on_bad_row="skip")
    assert (len(result.rows), len(result.problems)) == (2, 2)
    with pytest.raises(DataError, match="no row is left of 2: all are bad") as error:
        encode_all(bad, tok, max_length=100, on_bad_row="skip")
    assert "max_length" not in str(error.value), "none was dropped"
    same = [talk(ASK, Message("assistant", "<|end|>"), location=f"a:{i}") for i in range(1, 41)]
    with pytest.raises(DataError) as error:
        encode_all(same, tok, max_length=100, on_bad_row="skip")
    assert [p.location for p in error.value.problems] == ["", "a:1-40"], "one fault of many rows is said once"
    with pytest.raises(DataError) as error:
        encode_all([LONG[0], bad[0]], tok, max_length=3, over_long="drop", on_bad_row="skip")
    assert str(error.value).splitlines()[0] == (
        "no row is left of 2 (1 dropped as longer than 3, 1 bad); "
        "raise max_length or look at the rows with: posttrain data show"
    )


def test_a_changed_template_is_noticed() -> None:
    tok = copy.deepcopy(using(MARKED))
    before = render(talk(ASK, ANSWER), tok)
    tok.chat_template = CHATML
    assert render(talk(ASK, ANSWER), tok) != before
    assert render(talk(ASK, ANSWER), tok) == render(talk(ASK, ANSWER), using(CHATML))


def test_many_rows_are_quick() -> None:
    import time

    tok = using(MARKED)
    records = [talk(Message("user", f"What is {i}?"), Message("assistant", f"It is {i}, 你好。")) for i in range(3000)]
    start = time.process_time()
    assert len(encode_all(records, tok, max_length=100).rows) == 3000
    assert (time.process_time() - start) / 3000 < 0.002  # 0.0002 or less on an idle core
