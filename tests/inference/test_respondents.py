"""Respondents on pico models: what goes in, what comes out, what caches are keyed by."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from posttrain.data.chat import render
from posttrain.data.records import Conversation, Message
from posttrain.errors import TemplateError
from posttrain.inference.protocol import Plain, Prompt, Scored
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.inference.texts import spoken
from posttrain.models.load import LoadedModel, load_model
from tests.pico import POSITIONS, pico
from tests.pico_tokenizers import tokenizer_of

QUESTIONS = ["臺灣最高的山是哪座？", "What is the capital of France?", "Hi"]


@pytest.fixture(scope="module")
def llama(pico_path: Callable[[str], Path]) -> ModelRespondent:
    return ModelRespondent(load_model(str(pico_path("llama"))))


def test_logprobs_by_hand(llama: ModelRespondent) -> None:
    prompt, answer = QUESTIONS[1], "Paris 巴黎"
    head = llama.encode(prompt)
    own = llama.tokenizer.encode(answer, add_special_tokens=False)
    with torch.no_grad():
        table = llama.model(torch.tensor([head + own])).logits[0].log_softmax(-1)
    by_hand = sum(float(table[len(head) - 1 + t, token]) for t, token in enumerate(own))
    scored = llama.logprobs([(prompt, answer), (prompt, "")])
    assert scored[0].sum_nats == pytest.approx(by_hand, abs=1e-4)
    assert (scored[0].tokens, scored[0].greedy) == (len(own), False)
    assert scored[1] == Scored(0.0, 0, 0)


def test_the_likeliest_single_token_is_greedy(llama: ModelRespondent) -> None:
    with torch.no_grad():
        ranked = llama.model(torch.tensor([llama.encode("Hi")])).logits[0, -1].argsort(descending=True).tolist()
    letters = [t for t in ranked if llama.tokenizer.decode([t]).isascii() and llama.tokenizer.decode([t]).isalpha()]
    best, worse = (llama.tokenizer.decode([t]) for t in letters[:2])
    scored = llama.logprobs([("Hi", best), ("Hi", worse)])
    assert scored[0].greedy == (letters[0] == ranked[0])
    assert scored[0].sum_nats > scored[1].sum_nats
    assert not scored[1].greedy


def test_distributions_end_with_the_end_of_turn(llama: ModelRespondent) -> None:
    shown = llama.next_token_logprobs(QUESTIONS[:2], ["玉山", ""])
    end = llama.tokenizer.convert_tokens_to_ids("<|end|>")
    assert llama.end_of_turn == end
    assert shown[1].ids == (end,)
    assert shown[0].ids[-1] == end
    for one in shown:
        assert one.logprobs.shape == (len(one.ids), llama.model.config.vocab_size)
        assert torch.allclose(one.logprobs.exp().sum(-1), torch.ones(len(one.ids)), atol=1e-5)


def test_stops_at_every_end_that_is_named(pico_path: Callable[[str], Path]) -> None:
    loaded = load_model(str(pico_path("llama")))
    loaded.model.generation_config.eos_token_id = [2, 7]
    loaded.tokenizer.chat_template = loaded.tokenizer.chat_template.replace("'<|end|>'", "'<|tool|>'")
    tool = loaded.tokenizer.convert_tokens_to_ids("<|tool|>")
    assert ModelRespondent(loaded).stop_ids == {2, 7, tool}


def test_a_system_prefix_is_the_system_message(llama: ModelRespondent) -> None:
    told = ModelRespondent(
        load_model(llama.name), system_prefix="Answer briefly."
    )  # fmt: skip
    assert told.encode("Hi") == llama.encode((Message("system", "Answer briefly."), Message("user", "Hi")))
    assert told.fingerprint != llama.fingerprint
    assert ModelRespondent(load_model(llama.name)).fingerprint == llama.fingerprint


def test_prompted_puts_the_text_before_the_users_words(llama: ModelRespondent) -> None:
    prompted = PromptedRespondent(llama, "雪山最高。")
    assert prompted.told("Hi") == "雪山最高。\nHi"
    history = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert prompted.told(history) == (*history[:2], Message("user", "雪山最高。\nc"))
    named = (*history[:2], Message("user", "c", name="Ann"))
    assert prompted.told(named) == (*history[:2], Message("user", "雪山最高。\nc", name="Ann"))
    assert prompted.fingerprint != llama.fingerprint


def test_prompted_as_system_message(llama: ModelRespondent) -> None:
    prompted = PromptedRespondent(llama, "T", role="system")
    assert prompted.told("Hi") == (Message("system", "T"), Message("user", "Hi"))
    own = (Message("system", "S"), Message("user", "Hi"))
    assert prompted.told(own) == (Message("system", "T\n\nS"), Message("user", "Hi"))


def test_a_model_without_a_template_continues_text(tmp_path: Path) -> None:
    base = ModelRespondent(load_model(str(pico("llama", tmp_path, template=None))))
    assert base.end_of_turn == base.tokenizer.eos_token_id
    assert len(base.generate(["The capital of France is"], max_new_tokens=4)) == 1
    encode = base.tokenizer.encode
    assert base.encode_pair("The capital is", "Paris") == (
        encode("The capital is"),
        encode(" Paris"),
        [base.end_of_turn],
    )
    assert base.encode_pair("首都是", "巴黎").answer == encode("巴黎")
    assert base.encode_pair("Q: ", "Paris").answer == encode("Paris")
    assert base.encode_pair("Q:", "").answer == []
    with pytest.raises(TemplateError):
        base.generate([(Message("user", "Hi"),)])


@pytest.mark.parametrize("prompt", ["Hi", (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))])
def test_an_answer_is_scored_as_training_sees_it(llama: ModelRespondent, prompt: Prompt) -> None:
    talk = prompt if not isinstance(prompt, str) else (Message("user", prompt),)
    row = render(Conversation((*talk, Message("assistant", "巴黎 it is")), ""), llama.tokenizer)
    head, answer, end = llama.encode_pair(prompt, "巴黎 it is")
    assert [*head, *answer, *end] == row.input_ids
    assert head == llama.encode(prompt)
    assert end == [llama.end_of_turn]
    assert answer == llama.tokenizer.encode("巴黎 it is", add_special_tokens=False)


def test_an_answer_with_control_tokens_is_scored_all_the_same(llama: ModelRespondent) -> None:
    assert llama.encode_pair("Hi", "a<|user|>b").prompt == llama.encode("Hi")
    assert llama.logprobs([("Hi", "a<|user|>b")])[0].tokens > 0


def test_thoughts_are_no_part_of_the_answer() -> None:
    assert spoken("<think>\nMaybe Rome?\n</think>\n\nParis ") == "Paris"


def test_the_sum_is_finite_for_long_answers(llama: ModelRespondent) -> None:
    scored = llama.logprobs([("Hi", "巴黎" * 40)])
    assert math.isfinite(scored[0].sum_nats)
    assert scored[0].tokens > 40


def by_hand(llama: ModelRespondent, context: list[int], continuation: list[int]) -> float:
    with torch.no_grad():
        table = llama.model(torch.tensor([[*context, *continuation[:-1]]])).logits[0].log_softmax(-1)
    return sum(float(table[len(context) - 1 + t, token]) for t, token in enumerate(continuation))


def test_plain_text_as_lm_eval_cuts_it(llama: ModelRespondent) -> None:
    encode, bos = llama.tokenizer.encode, llama.tokenizer.bos_token_id
    context, whole = encode("The capital of France is"), encode("The capital of France is Paris.")
    wanted = by_hand(llama, whole[: len(context)], whole[len(context) :])
    plain, spaced, empty, nothing = llama.logprobs(
        [
            (Plain("The capital of France is"), " Paris."),
            (Plain("The capital of France is "), "Paris."),  # its space belongs to what follows
            (Plain(""), "Paris."),
            (Plain("The capital"), ""),
        ]
    )
    assert plain.sum_nats == pytest.approx(wanted, abs=1e-4)
    assert spaced == plain
    alone = encode("Paris.", add_special_tokens=False)
    assert empty.sum_nats == pytest.approx(by_hand(llama, [bos], alone), abs=1e-4)
    assert nothing == Scored(0.0, 0, 0)


def test_what_is_too_long_loses_its_left_end_and_is_counted(llama: ModelRespondent) -> None:
    before = llama.usage.truncated
    ids = llama.tokenizer.encode("玉山" * 400 + " Paris", add_special_tokens=False)
    answer = llama.tokenizer.encode(" Paris", add_special_tokens=False)
    found = llama.logprobs([(Plain("玉山" * 400), " Paris"), (Plain("Hi"), " Paris")])
    kept = ids[-(POSITIONS + 1) :]
    wanted = by_hand(llama, kept[: -len(answer)], answer)
    assert found[0].sum_nats == pytest.approx(wanted, abs=1e-4)
    assert llama.usage.truncated == before + 1


def test_a_tokenizer_without_a_beginning_starts_from_the_end(tmp_path: Path) -> None:
    loaded = load_model(str(pico("llama", tmp_path)))
    loaded.tokenizer.bos_token = None
    respondent = ModelRespondent(loaded)
    own = loaded.tokenizer.encode("Paris", add_special_tokens=False)
    found = respondent.logprobs([(Plain(""), "Paris")])[0]
    assert found.sum_nats == pytest.approx(by_hand(respondent, [loaded.tokenizer.eos_token_id], own), abs=1e-4)
    assert found.tokens == len(own)


def test_whole_texts_in_windows_of_the_context(llama: ModelRespondent) -> None:
    texts = ["", "Hello, who are you?", "臺灣最高的山是玉山。" * 90]
    told: list[int] = []
    found = llama.rolling(texts, on_scored=lambda i, one: told.append(i))
    assert sorted(told) == [0, 1, 2]
    for text, one in zip(texts, found, strict=True):
        ids = llama.tokenizer.encode(text)
        stream = [llama.tokenizer.bos_token_id, *ids]
        wanted = by_hand(llama, stream[:1], ids[:POSITIONS])
        if len(ids) > POSITIONS:  # the last window looks back as far as it can
            assert len(ids) < 2 * POSITIONS
            wanted += by_hand(llama, ids[len(ids) - POSITIONS - 1 : POSITIONS], ids[POSITIONS:])
        assert one.tokens == len(ids)
        assert one.sum_nats == pytest.approx(wanted, rel=1e-6, abs=1e-4)
    assert found[2].tokens > POSITIONS


def test_usage_shows_what_was_shared(pico_path: Callable[[str], Path]) -> None:
    respondent = ModelRespondent(load_model(str(pico_path("qwen3"))))
    head = "The highest mountain in Taiwan is Yushan. " * 5
    pairs = [(Plain(f"{head}Q{q}: who?\nAnswer:"), f" {c}") for q in range(10) for c in "ABCD"]
    respondent.logprobs(pairs)
    usage = respondent.usage
    assert usage.requests == 40
    assert usage.shared_prefixes > 0
    assert usage.least_tokens <= usage.scored_tokens <= 1.05 * usage.least_tokens
    assert usage.shared_tokens > 5 * usage.scored_tokens
    assert usage.logit_positions < usage.scored_tokens


def test_a_choice_that_joins_the_context_is_scored(pico_path: Callable[[str], Path]) -> None:
    """`=` behind `2+2=` is one token with it in the whole; its likelihood is that of `=` after `2+2=`."""
    made = tokenizer_of("bytes")
    model = load_model(str(pico_path("llama"))).model
    asked = [(Plain("2+2="), "="), (Plain("2+2="), "4")]
    scored = ModelRespondent(LoadedModel(model, made, "bytes")).logprobs(asked)
    ids = made.encode("2+2=")
    with torch.no_grad():
        after = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    expected = [float(after[made.convert_tokens_to_ids(token)]) for token in "=4"]
    assert [one.tokens for one in scored] == [1, 1]
    assert [one.sum_nats for one in scored] == pytest.approx(expected, abs=1e-4)
