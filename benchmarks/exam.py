"""Compare lm-eval's exams on its own `hf` backend and on posttrain's in one process: first the results, then the time.

    python benchmarks/exam.py [--json] [--quick] [--repetitions 1] [--threads 1] [--models llama,pocket]

There are four subjects with fifty questions each, from posttrain's fact tables. The cases are letters and texts as
choices, after five examples and after none, and generated answers. The models are a random Llama of 12.5 M parameters
(hidden 256, 6 layers), with 32,000 tokens of a byte-level BPE trained on the text of Python's own library, and
pocket:base. `hf` runs with batches of 8, as a user would.

Every sample is compared first. If log-likelihoods differ by more than 1e-4 nats (or 5e-7 of a long sum, which `hf` adds
up in float32), or a flag, an answer or an accuracy differs at all, the times mean nothing and the exit code is 1.

Then these are reported per case: CPU and wall seconds of scoring alone (from token ids to log-probabilities) and of the
whole run; the positions forwarded, counted by a hook on the embeddings of both; the least possible number of positions,
counted here from the sorted token sequences; and whether the project's promises are met, in CPU seconds, which are
steadier than wall time.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import os
import random
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")

import torch

from posttrain.models.facts import read

EXAMPLES, QUESTIONS, BATCH = 5, 50, 8
VOCABULARY = 32_000
TOKENS_MOST, LETTERS_LEAST, TEXTS_LEAST, ANY_LEAST = 1.05, 8.0, 12.0, 0.95
CASES = ("letters 5-shot", "texts 5-shot", "letters 0-shot", "texts 0-shot", "generation 5-shot")


# ---- questions -------------------------------------------------------------------------------------------------------


def subjects() -> dict[str, list[tuple[str, str]]]:
    """Return subject -> (question, right answer) pairs. The answers of other questions are used as wrong choices."""
    currencies = {row["code"]: row["en"] for row in read("currencies")}
    countries = [row for row in read("countries") if row["capital_en"] and row["currencies"]]
    return {
        "capitals": [
            (f"Which of the following cities is the seat of government and the capital of {row['en']}?",
             f"the city of {row['capital_en']}") for row in countries
        ],
        "currencies": [
            (f"With which of the following kinds of money does one pay for bread at a market in {row['en']}?",
             f"with the {currencies[row['currencies'].split()[0]]}") for row in countries
        ],
        "elements": [
            (f"Which of the following is the symbol of {row['en']}, the chemical element with number {row['number']}?",
             f"the symbol is {row['symbol']}, number {row['number']}") for row in read("elements")
        ],
        "works": [
            (f"Who of the following persons created the famous work that is known in English as {row['en']}?",
             f"it was {row['author']}") for row in (*read("books"), *read("arts"))
        ],
    }  # fmt: skip


def write_tasks(folder: Path, questions: int) -> None:
    """Write the questions as JSONL, and a YAML file for each case and subject."""
    draw = random.Random(0)
    for subject, pairs in subjects().items():
        pairs = draw.sample(pairs, len(pairs))
        answers = sorted({answer for _, answer in pairs})
        rows = []
        for question, answer in pairs[: EXAMPLES + questions]:
            choices = [answer, *draw.sample([a for a in answers if a != answer], 3)]
            draw.shuffle(choices)
            rows.append({"question": question, "choices": choices, "answer": choices.index(answer)})
        if len(rows) < EXAMPLES + questions:  # the tables hold fewer: repeat the questions in other words
            rows += [{**row, "question": f"Once more: {row['question']}"} for row in rows]
        save(folder / f"{subject}_dev.jsonl", rows[:EXAMPLES])
        save(folder / f"{subject}_test.jsonl", rows[EXAMPLES : EXAMPLES + questions])
        for case in CASES:
            kind, shots = case.split()
            name = f"{kind}_{shots[0]}_{subject}"
            (folder / f"{name}.yaml").write_text(json.dumps(task(name, kind, int(shots[0]), folder, subject)))


def save(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def task(name: str, kind: str, shots: int, folder: Path, subject: str) -> dict[str, Any]:
    listed = "".join(f"{letter}. {{{{choices[{i}]}}}}\n" for i, letter in enumerate("ABCD"))
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {s: str(folder / f"{subject}_{s}.jsonl") for s in ("test", "dev")}},
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": shots,
        "description": f"The following are multiple choice questions (with answers) about {subject}.\n\n",
        "doc_to_text": f"{{{{question}}}}\n{listed}Answer:",
    }
    if kind == "generation":
        return common | {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    return common | {
        "output_type": "multiple_choice",
        "doc_to_choice": ["A", "B", "C", "D"] if kind == "letters" else "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


# ---- models ----------------------------------------------------------------------------------------------------------


def llama() -> tuple[Any, Any]:
    """Return the random Llama and its tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    raw.train_from_iterator((path.read_text(encoding="utf-8", errors="ignore") for path in sources), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=2048
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=6, intermediate_size=608, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


def pocket() -> tuple[Any, Any]:
    from posttrain.models.load import load_model

    loaded = load_model("pocket:base", device="cpu")
    return loaded.model, loaded.tokenizer


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {"llama": llama, "pocket": pocket}


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """CPU seconds of the process and wall seconds, summed over all timed blocks."""

    cpu_s: float = 0.0
    wall_s: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu_s += time.process_time() - cpu
            self.wall_s += time.perf_counter() - wall


@dataclass
class Run:
    """A run of one backend on one case. forwarded, logits: positions; sequences: a request's token ids but the last."""

    scoring: Clock = field(default_factory=Clock)
    whole: Clock = field(default_factory=Clock)
    forwarded: int = 0
    logits: int = 0
    sequences: list[tuple[int, ...]] = field(default_factory=list)
    prompts: int = 0
    samples: dict[str, list[Any]] = field(default_factory=dict)
    accuracies: dict[str, float] = field(default_factory=dict)


@contextmanager
def counted(model: Any, run: Run) -> Iterator[None]:
    """Count the positions at the model's input and output embeddings in the block."""

    def embedded(_: Any, inputs: Any, __: Any) -> None:
        run.forwarded += inputs[0].numel()

    def projected(_: Any, inputs: Any, __: Any) -> None:
        run.logits += inputs[0].shape[:-1].numel()

    hooks = [
        model.get_input_embeddings().register_forward_hook(embedded),
        model.get_output_embeddings().register_forward_hook(projected),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def examine(backend: str, model: Any, tokenizer: Any, tasks: Any, *, limit: int | None = None) -> Run:
    """Run lm-eval and return the run. Scoring is the part from token ids to log-probabilities."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    from posttrain.exams.lm_eval import PosttrainLM
    from posttrain.models.load import LoadedModel

    run = Run()
    if backend == "hf":
        lm: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH)
        scored = "_loglikelihood_tokens"
    else:
        lm = PosttrainLM(LoadedModel(model, tokenizer, "benchmark"), say=lambda _: None)
        scored = "_score"
    inner = lm.__getattribute__(scored)
    generate = lm.generate_until

    def timed(pairs: Any, *rest: Any, **more: Any) -> Any:
        run.sequences += [tuple([*pair[-2], *pair[-1]][:-1]) for pair in pairs]
        with run.scoring.running():
            return inner(pairs, *rest, **more)

    def timed_generate(requests: Any, *rest: Any, **more: Any) -> Any:
        with run.scoring.running():
            return generate(requests, *rest, **more)

    lm.__dict__[scored] = timed
    lm.__dict__["generate_until"] = timed_generate
    with counted(model, run), redirect_stderr(io.StringIO()), run.whole.running():  # lm-eval's progress bars
        found = evaluate(lm=lm, task_dict=tasks, limit=limit, bootstrap_iters=0, log_samples=True)
    run.samples = {name: [s["resps"] for s in rows] for name, rows in found["samples"].items()}
    run.accuracies = {
        name: float(value)
        for name, row in found["results"].items()
        for key, value in row.items()
        if key in ("acc,none", "exact_match,none")
    }
    return run


def differences(ours: Run, theirs: Run) -> tuple[int, float, list[str]]:
    """Return (samples compared, largest difference in nats, differences as lines)."""
    wrong = [f"{n}: accuracy" for n, value in theirs.accuracies.items() if ours.accuracies[n] != value]
    compared, largest = 0, 0.0
    for name, rows in theirs.samples.items():
        for i, (mine, other) in enumerate(zip(ours.samples[name], rows, strict=True)):
            compared += 1
            for (a,), (b,) in zip(mine, other, strict=True):
                if isinstance(b, str):
                    wrong += [] if a == b else [f"{name} {i}: {a!r} instead of {b!r}"]
                    continue
                largest = max(largest, abs(a[0] - b[0]))
                if abs(a[0] - b[0]) > max(1e-4, 5e-7 * abs(b[0])) or a[1] != b[1]:
                    wrong.append(f"{name} {i}: {a} instead of {b}")
    return compared, largest, wrong


def least(sequences: Sequence[tuple[int, ...]]) -> int:
    """Return the number of nodes of the prefix tree: what each sequence adds to the one before it in sorted order."""
    nodes = 0
    last: tuple[int, ...] = ()
    for sequence in sorted(set(sequences)):
        shared = next((i for i, (a, b) in enumerate(zip(last, sequence, strict=False)) if a != b), None)
        nodes += len(sequence) - (min(len(last), len(sequence)) if shared is None else shared)
        last = sequence
    return nodes


def case_result(model: Any, tokenizer: Any, tasks: Any, case: str, repetitions: int) -> dict[str, Any]:
    runs: dict[str, list[Run]] = {"hf": [], "posttrain": []}
    for _ in range(repetitions):
        for backend, done in runs.items():  # a new copy of the model, so that nothing is cached from earlier runs
            done.append(examine(backend, copy.deepcopy(model), tokenizer, tasks))
    ours, theirs = runs["posttrain"][0], runs["hf"][0]
    compared, largest, wrong = differences(ours, theirs)
    minimum = least(theirs.sequences)

    def seconds(backend: str, part: str, unit: str) -> float:
        return float(median(run.__dict__[part].__dict__[unit] for run in runs[backend]))

    result: dict[str, Any] = {
        "case": case, "samples": compared, "largest_difference_nats": largest, "unequal": wrong,
        "accuracies": theirs.accuracies, "least_tokens": minimum,
    }  # fmt: skip
    for backend, done in runs.items():
        result[backend] = {
            "scoring_cpu_s": seconds(backend, "scoring", "cpu_s"),
            "scoring_wall_s": seconds(backend, "scoring", "wall_s"),
            "whole_cpu_s": seconds(backend, "whole", "cpu_s"),
            "whole_wall_s": seconds(backend, "whole", "wall_s"),
            "forwarded_tokens": done[0].forwarded,
            "logit_positions": done[0].logits,
        }
    for name in ("scoring_cpu", "scoring_wall", "whole_cpu", "whole_wall"):
        result[f"{name}_ratio"] = result["hf"][f"{name}_s"] / result["posttrain"][f"{name}_s"]
    result["met"] = promises(case, result)
    return result


def promises(case: str, result: dict[str, Any]) -> dict[str, bool]:
    """Return promise -> whether it is kept, for the promises of this case."""
    ratio = result["scoring_cpu_ratio"]
    met = {"equal": not result["unequal"], f"≥ {ANY_LEAST}x": ratio >= ANY_LEAST}
    if result["least_tokens"]:
        met[f"tokens ≤ {TOKENS_MOST}x"] = (
            result["posttrain"]["forwarded_tokens"] <= TOKENS_MOST * result["least_tokens"]
        )
    if case == "letters 5-shot":
        met[f"≥ {LETTERS_LEAST}x"] = ratio >= LETTERS_LEAST
    if case == "texts 5-shot":
        met[f"≥ {TEXTS_LEAST}x"] = ratio >= TEXTS_LEAST
    return met


def show(model: str, result: dict[str, Any]) -> None:
    ours, theirs, minimum = result["posttrain"], result["hf"], result["least_tokens"]
    print(f"{model}, {result['case']}: {result['samples']} questions")
    if result["unequal"]:
        print(f"  NOT EQUAL in {len(result['unequal'])} places, so the times mean nothing: {result['unequal'][:3]}")
    else:
        print(
            f"  equal: accuracies, flags, answers; log-likelihoods within {result['largest_difference_nats']:.1e} nats"
        )
    for part in ("scoring", "whole"):
        print(
            f"  {part:8} CPU {theirs[part + '_cpu_s']:8.2f} s → {ours[part + '_cpu_s']:7.2f} s = "
            f"{result[part + '_cpu_ratio']:5.1f}x    wall {theirs[part + '_wall_s']:8.2f} s → "
            f"{ours[part + '_wall_s']:7.2f} s = {result[part + '_wall_ratio']:5.1f}x"
        )
    beside = f"; least {minimum:,}: {theirs['forwarded_tokens'] / minimum:.2f}x and " if minimum else ""
    beside += f"{ours['forwarded_tokens'] / minimum:.3f}x" if minimum else ""
    print(f"  tokens   {theirs['forwarded_tokens']:,} → {ours['forwarded_tokens']:,}{beside}")
    print(f"  logits   {theirs['logit_positions']:,} → {ours['logit_positions']:,}")
    print(
        "  " + ", ".join(f"{name}: {'met' if kept else 'NOT MET'}" for name, kept in result["met"].items()), flush=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="ten questions per subject instead of fifty")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--cases", default=",".join(CASES))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)

    from lm_eval.tasks import TaskManager

    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_tasks(folder, 10 if options.quick else QUESTIONS)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        for name in options.models.split(","):
            model, tokenizer = MODELS[name]()
            for warm, case in enumerate(options.cases.split(",")):
                kind, shots = case.split()
                tasks = manager.load([f"{kind}_{shots[0]}_{subject}" for subject in subjects()])
                if not warm:
                    for backend in ("hf", "posttrain"):
                        examine(backend, copy.deepcopy(model), tokenizer, tasks, limit=1)
                results.append({"model": name, **case_result(model, tokenizer, tasks, case, options.repetitions)})
                if not options.json:
                    show(name, results[-1])
    if options.json:
        print(json.dumps(results, indent=2))
    return int(any(result["unequal"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
