"""Every sample of lm-eval's `hf` backend and of ours, on local tasks: log-likelihoods, flags, answers, accuracies.

Letters and texts as choices with five examples and with none, whole texts longer than the context, and generation with
stop strings, for every family of the pico models and for pocket.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from posttrain.errors import DataError
from posttrain.exams.lm_eval import PosttrainLM
from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.facts import read
from posttrain.models.load import LoadedModel, load_model
from tests.pico import tokenizer
from tests.pico_tokenizers import tokenizer_of

MODELS = ("llama", "qwen3", "gemma3", "glm", "gpt2", "pocket:chat")
NATS = 1e-4

CHOICES = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl, dev: {folder}/dev.jsonl}}}}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
num_fewshot: {shots}
output_type: multiple_choice
description: "Capitals.\\n\\n"
doc_to_text: "{{{{question}}}}\\n{options}Answer:"
doc_to_choice: {choices}
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
LETTERS = "{% for c in choices %}{{'ABCD'[loop.index0]}}. {{c}}\\n{% endfor %}"
OTHER = """\
task: whole_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
---
task: said
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl, dev: {folder}/dev.jsonl}}}}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
num_fewshot: 2
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n\\n", "e", "的"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
TASKS = ["letters_5", "texts_5", "letters_0", "texts_0", "whole_text", "said"]


@pytest.fixture(autouse=True)
def no_report_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`simple_evaluate` asks pip and git about this machine, for seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    folder = tmp_path_factory.mktemp("tasks")
    named = [row for row in read("countries") if row["capital_en"] and row["capital_zh"]]
    countries = sorted(named, key=lambda row: len("".join(row.values()).encode()))  # five fit into 512 pico tokens
    rows: list[dict[str, Any]] = [
        {
            "question": f"Capital of {row['en']}?" if i % 2 else f"{row['zh']}的首都？",
            "choices": [countries[(i + step) % len(countries)]["capital_en" if i % 2 else "capital_zh"] for step in
                        (0, 3, 7, 11)],
            "answer": 0,
        }
        for i, row in enumerate(countries)
    ]  # fmt: skip
    for row in rows[::3]:
        row["choices"].reverse()
        row["answer"] = 3
    write(folder / "dev.jsonl", rows[:5])
    write(folder / "test.jsonl", rows[5:17])
    text = " ".join(f"{row['en']}: {row['capital_en']}，{row['zh']}。" for row in countries)
    write(folder / "texts.jsonl", [{"text": text[: 40 * n + n * n]} for n in (1, 7, 29)])
    for name, options, choices in (
        ("letters", LETTERS, '["A", "B", "C", "D"]'),
        ("texts", "", "choices"),
    ):
        for shots in (0, 5):
            (folder / f"{name}_{shots}.yaml").write_text(
                CHOICES.format(name=f"{name}_{shots}", folder=folder, shots=shots, options=options, choices=choices),
                encoding="utf-8",
            )
    for part in OTHER.split("---\n"):
        filled = part.format(folder=folder)
        (folder / f"{filled.split()[1]}.yaml").write_text(filled, encoding="utf-8")
    return TaskManager(include_path=str(folder), include_defaults=False)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def loaded(pico_path: Callable[[str], Path]) -> Callable[[str], LoadedModel]:
    return cache(lambda name: load_model(name if ":" in name else str(pico_path(name))))


class CountedHF(HFLM):  # type: ignore[misc]
    """lm-eval's backend, counting the positions that it forwards."""

    forwarded = 0

    def _model_call(self, inps: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        self.forwarded += inps.numel()
        logits: torch.Tensor = super()._model_call(inps, *rest, **more)
        return logits


def hf(model: LoadedModel, **settings: Any) -> CountedHF:
    return CountedHF(pretrained=model.model, tokenizer=model.tokenizer, batch_size=8, **settings)


def run(lm: Any, manager: TaskManager, tasks: list[str], **settings: Any) -> Any:
    return simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, **settings)


def assert_same(ours: Any, theirs: Any) -> int:
    """The number of samples compared, all alike."""
    compared = 0
    for task, samples in theirs["samples"].items():
        own = {s["doc_id"]: s for s in ours["samples"][task]}
        assert len(own) == len(samples)
        for sample in samples:
            mine = own[sample["doc_id"]]
            assert mine["arguments"] == sample["arguments"]
            assert_responses(mine["resps"], sample["resps"])
            compared += 1
        for metric, value in theirs["results"][task].items():
            if isinstance(value, float):
                assert ours["results"][task][metric] == pytest.approx(value, rel=1e-5), (task, metric)
    return compared


def assert_responses(mine: Any, expected: Any) -> None:
    for own, other in zip(mine, expected, strict=True):
        assert len(own) == len(other) == 1
        if isinstance(other[0], tuple):
            assert own[0][0] == pytest.approx(other[0][0], abs=NATS, rel=5e-7)  # hf sums in float32
            assert own[0][1] == other[0][1]
        elif isinstance(other[0], float):
            assert own[0] == pytest.approx(other[0], abs=NATS, rel=5e-7)
        else:
            assert own[0] == other[0]


@pytest.mark.parametrize(
    ("name", "part"),
    [(name, i % 2) for i, name in enumerate(MODELS)]
    + [pytest.param(name, 1 - i % 2, marks=pytest.mark.slow) for i, name in enumerate(MODELS)],
)
def test_every_sample(name: str, part: int, tasks: TaskManager, loaded: Callable[[str], LoadedModel]) -> None:
    """Every model does half of the tasks, every task is done by half of the models; the rest is slow."""
    model, chosen = loaded(name), TASKS[part::2]
    theirs_lm, ours_lm = hf(model), PosttrainLM(model)
    theirs, ours = run(theirs_lm, tasks, chosen), run(ours_lm, tasks, chosen)
    assert assert_same(ours, theirs) == sum(3 if task == "whole_text" else 12 for task in chosen)
    usage = ours_lm.usage
    assert usage.shared_prefixes > 0
    assert usage.scored_tokens < theirs_lm.forwarded
    assert usage.plain_requests == 0


def test_with_a_chat_template(tasks: TaskManager, loaded: Callable[[str], LoadedModel]) -> None:
    model = loaded("pocket:chat")
    for turns in (True, False):
        settings = {
            "apply_chat_template": True,
            "fewshot_as_multiturn": turns,
            "num_fewshot": 3,
            "system_instruction": "Be brief." if turns else None,
        }
        names = ["letters_5", "said"]
        ours = run(PosttrainLM(model), tasks, names, **settings)
        assert assert_same(ours, run(hf(model), tasks, names, **settings)) == 24
        prompt = ours["samples"]["said"][0]["arguments"][0][0]
        assert prompt.count("<|user|>") == (4 if turns else 1)


# ---- requests by hand: what few tasks have, and every task can ----------------------------------------------------------


def ask(lm: Any, kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return list(getattr(lm, kind)([Instance(kind, {}, args, i) for i, args in enumerate(arguments)]))


LONG = "The capital of France is Paris. 臺灣最高的山是玉山。" * 60

ODD: list[tuple[str, str]] = [
    ("", "Paris"),  # no context
    ("", " Paris is"),
    ("<|bos|>The capital", " is"),  # bos is there already
    ("The capital of France is ", "Paris"),  # spaces at the end move over
    ("The capital of France is \n\n", "Paris"),
    ("A title\n", "\n\nmore"),  # tokens that join over the border
    (LONG, " Paris"),  # cut on the left
    (LONG, LONG[:700]),
    (LONG + " ", "Paris"),
    ("Paris", " x"),
]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "pocket:base"])
def test_odd_requests(name: str, loaded: Callable[[str], LoadedModel]) -> None:
    model = loaded(name)
    ours = PosttrainLM(model, max_length=512)
    found = ask(ours, "loglikelihood", *ODD)
    expected = ask(hf(model, max_length=512), "loglikelihood", *ODD)

    assert_responses([[each] for each in found], [[each] for each in expected])
    assert ours.usage.truncated == 3


@pytest.mark.parametrize("settings", [{"add_bos_token": True}, {"add_bos_token": False}, {"prefix_token_id": 5}])
def test_who_puts_bos_in_front(settings: dict[str, Any], loaded: Callable[[str], LoadedModel]) -> None:
    """A tokenizer that does it by itself, and settings against it."""
    from tokenizers.processors import TemplateProcessing

    model = loaded("llama")
    own = tokenizer.__wrapped__()
    own.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    model = LoadedModel(model.model, own, "llama with bos")
    asked = [*ODD[:5], ("   ", "Paris")]
    for given in ({}, settings):
        skip = -1 if given.get("add_bos_token") is False else len(asked)  # HFLM has no tokens there
        found = ask(PosttrainLM(model, **given), "loglikelihood", *asked[:skip])
        expected = ask(hf(model, **given), "loglikelihood", *asked[:skip])
        assert_responses([[each] for each in found], [[each] for each in expected])


def test_a_continuation_keeps_tokens_of_its_own(loaded: Callable[[str], LoadedModel]) -> None:
    """HFLM refuses what has no token; what joins the context's last token has none there, and one here."""
    model = LoadedModel(loaded("llama").model, tokenizer_of("bytes"), "llama that joins")
    with pytest.raises(AssertionError):
        ask(hf(model), "loglikelihood", ("2+2=", "="))
    ((nats, _), (other, _)) = ask(PosttrainLM(model), "loglikelihood", ("2+2=", "="), ("2+2=", "4"))
    respondent = ModelRespondent(model)
    expected = respondent.logprobs([(Plain("2+2="), "="), (Plain("2+2="), "4")])
    assert [nats, other] == pytest.approx([one.sum_nats for one in expected], abs=NATS)
    assert nats < -1
    with pytest.raises(DataError, match="'2\\+2=' '': the tokenizer makes no token of this continuation"):
        ask(PosttrainLM(model), "loglikelihood", ("2+2=", ""), ("2+2=", "4"))


def test_a_tokenizer_without_bos(loaded: Callable[[str], LoadedModel]) -> None:
    own = tokenizer.__wrapped__()
    own.bos_token = None
    model = LoadedModel(loaded("qwen3").model, own, "qwen3 without bos")
    asked = [("", "Paris"), ("", "<|end|>Paris"), ("The capital is", " Paris")]
    ours = PosttrainLM(model)
    assert ours.prefix_token_id == own.eos_token_id
    expected = ask(hf(model), "loglikelihood", *asked)
    assert_responses([[each] for each in ask(ours, "loglikelihood", *asked)], [[each] for each in expected])
    texts = [("Paris is",), (LONG,)]
    mine, theirs = ask(ours, "loglikelihood_rolling", *texts), ask(hf(model), "loglikelihood_rolling", *texts)
    assert_responses([[each] for each in mine], [[each] for each in theirs])


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["\n"], "max_gen_toks": 20},
        {"until": " the", "max_new_tokens": 9},
        {"until": [], "max_gen_toks": 3},
        {"until": ["ab", "b", "a c"], "max_gen_toks": 40, "temperature": 0.0},
        {"until": ["x"], "max_gen_toks": 12, "repetition_penalty": 1.3},  # model.generate's own
    ],
)
def test_generation(settings: dict[str, Any], loaded: Callable[[str], LoadedModel]) -> None:
    model = loaded("llama")
    asked = [(text, settings) for text in ("The capital", LONG, "臺灣", "<|bos|>Hello")]
    ours = PosttrainLM(model)
    theirs = CountedHF(pretrained=model.model, tokenizer=model.tokenizer, batch_size=1)
    assert ask(ours, "generate_until", *asked) == ask(theirs, "generate_until", *asked)
    assert ours.usage.truncated == 1
    assert bool(ours.usage.plain_requests) == ("repetition_penalty" in settings)
