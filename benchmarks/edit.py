"""Edits in batches against one edit at a time, and against the naive way; and the price of second moments.

    python benchmarks/edit.py                       # pocket, 64 edits
    python benchmarks/edit.py --model smollm2 --edits 8 --naive 2
    python benchmarks/edit.py --model random:7b     # a random Llama shape in bfloat16, on a GPU

Three ways search the same target vectors, on the same rows, with the same steps:

- naive: as the published code does. For each edit and each step, every template and prefix is read again from the first
  layer on, and logits are computed at all positions.
- single: this package, one edit at a time: from the edited layer and the subject on, logits at the answer alone.
- batched: this package, all edits together.

The vectors must agree (within 1e-4 of their length) before any time counts. The second part measures the second moments
of the keys of all layers in one pass, against plain forward passes over the same texts. Times are CPU seconds of the
process (on a GPU wall seconds with a synchronisation), medians of the repetitions.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.data.pocket.changes import changes as pocket_changes
from posttrain.editing.edits import Edit, Form, Row, RowMaker, chinese
from posttrain.editing.moments import measure_moments
from posttrain.editing.reading import batches, look, padded
from posttrain.editing.session import EditSession
from posttrain.editing.sites import Site
from posttrain.editing.solve import row_means
from posttrain.editing.targets import Search, TargetConfig, kl_row, search
from posttrain.models.facts import by_relation
from posttrain.models.load import LoadedModel, load_model

SAME = 1e-4
"""Largest difference of target vectors, as a share of their length."""


def edits_of(count: int, prompts: str) -> list[Edit]:
    """Return wrong facts to write: questions in Chinese and English as pocket's changes have them, or statements to be
    completed ("The capital of France is"), as CounterFact has them.
    """
    if prompts == "questions":
        targets = [body["target"][0] for body in pocket_changes(count, 0)]
        return [Edit(one["prompt"], one["subject"], one["answer"], location=str(i)) for i, one in enumerate(targets)]
    known = by_relation()
    wordings = {"capital": "The capital of {} is", "currency": "The money of {} is the", "language": "{} speaks"}
    each = [
        Edit(text.format(fact.subject.en), fact.subject.en, other.object.en, location=f"{name} of {fact.subject.en}")
        for name, text in wordings.items()
        for fact, other in zip(known[name], known[name][7:], strict=False)
    ]
    return each[:: max(1, len(each) // count)][:count]


class Work:
    """The model, the edits with their rows, and the settings that all ways share."""

    def __init__(self, loaded: LoadedModel, chosen: argparse.Namespace) -> None:
        self.session = EditSession(loaded, say=lambda text: print(f"# {text}"))
        self.edits = edits_of(chosen.edits, chosen.prompts)
        forms: tuple[Form, ...] = ("raw",) if chosen.prompts == "statements" else ("chat",)
        self.maker = RowMaker(loaded.tokenizer, forms=forms, ends=chosen.prompts == "questions")
        texts = {language: self.session.before(language, chosen.contexts) for language in ("en", "zh")}
        self.rows = [self.maker.rows(edit, texts["zh" if chinese(edit.question) else "en"]) for edit in self.edits]
        self.site: Site = self.session.sites.at(chosen.layer)
        self.config = TargetConfig(steps=chosen.steps)
        self.model: Any = loaded.model
        self.model.requires_grad_(False)
        self.task = Search(self.session.sites, self.maker, print, {})

    def batched(self, edits: Sequence[int]) -> Tensor:
        """Search the vectors of some edits together."""
        chosen = [self.edits[i] for i in edits], [self.rows[i] for i in edits]
        return search(self.task, *chosen, self.site, "value", self.config).deltas

    def single(self, edits: Sequence[int]) -> Tensor:
        """Search the vectors of some edits, one at a time."""
        return torch.cat([self.batched([i]) for i in edits])

    def naive(self, edits: Sequence[int]) -> Tensor:
        """Search the vectors of some edits in the naive way."""
        return torch.stack([self._naive(self.edits[i], self.rows[i]) for i in edits]).double()

    def _naive(self, edit: Edit, rows: Sequence[Row]) -> Tensor:
        config, model = self.config, self.model
        essence = kl_row(edit, self.maker)
        every = [*rows, essence]
        ids = padded([row.ids for row in every], model.device)
        at = torch.tensor([row.at for row in every], device=model.device)
        index = torch.arange(len(every), device=model.device)
        seen = look(self.session.sites, rows, [self.site]).values[self.site.layer]
        weights = torch.tensor([row.weight for row in rows], device=model.device)
        base = row_means(seen, weights, torch.zeros_like(weights, dtype=torch.long), 1)[0]
        precise = torch.promote_types(model.dtype, torch.float32)
        length = base.norm().to(precise)
        delta = torch.zeros(len(base), dtype=precise, device=model.device, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=config.learning_rate)

        def add(module: Any, args: Any, output: Tensor) -> Tensor:
            more = torch.zeros_like(output)
            more[index, at] = delta.to(output.dtype)
            return output + more

        before: Tensor | None = None
        with self.session.sites.module(self.site).register_forward_hook(add):
            for step in range(config.steps):
                logps = model(input_ids=ids, use_cache=False).logits.to(precise).log_softmax(-1)  # (B, T, V)
                said = torch.stack([
                    row.weight * -logps[i, list(row.asked)][torch.arange(len(row.targets)), row.targets].mean()
                    for i, row in enumerate(rows)
                ]).sum()  # fmt: skip
                now = logps[len(rows), essence.at]
                before = now.detach() if before is None else before
                divergence = (now.exp() * (now - before)).sum()
                loss = said + config.kl * divergence + config.weight_decay * delta.norm() / length.square()
                if float(loss.detach()) < config.stop_loss or step == config.steps - 1:
                    break
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    delta.mul_((config.clamp * length / delta.norm().clamp_min(1e-30)).clamp_max(1.0))
        return delta.detach()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, or on a GPU its wall seconds, and its result."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    began = clock()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    return clock() - began, result


def gap(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between vectors, as a share of their length."""
    return float(((one - other).norm(dim=1) / other.norm(dim=1)).max())


def target_vectors(work: Work, naive: int, single: int, repetitions: int) -> dict[str, Any]:
    """Return the seconds of an edit in each way, and how far the vectors are apart."""
    count = len(work.edits)
    few, some = range(0, count, count // naive)[:naive], range(0, count, count // single)[:single]
    every = range(count)
    work.batched(range(min(2, len(work.edits))))  # the trial of the fast reading, and warm caches
    times: dict[str, list[float]] = {"naive": [], "single": [], "batched": []}
    for _ in range(repetitions):
        for name, way, edits in (
            ("naive", work.naive, few),
            ("single", work.single, some),
            ("batched", work.batched, every),
        ):
            spent, found = seconds(lambda way=way, edits=edits: way(edits))  # type: ignore[misc]
            times[name].append(spent / len(edits))
            if name == "naive":
                reference = found
            elif name == "single":
                one_by_one = found
            else:
                together = found
    middle = {name: statistics.median(each) for name, each in times.items()}
    return {
        "seconds_per_edit": middle,
        "ratio_naive_to_batched": middle["naive"] / middle["batched"],
        "ratio_naive_to_single": middle["naive"] / middle["single"],
        "gap_single_to_batched": gap(one_by_one, together[list(some)]),
        "gap_naive_to_batched": gap(reference, together[list(few)]),
        "edits": {"naive": naive, "single": single, "batched": len(work.edits)},
        "rows_per_edit": len(work.rows[0]),
    }


def second_moments(work: Work, repetitions: int) -> dict[str, Any]:
    """Return the seconds of second moments of all layers in one pass, and of plain passes over the same texts."""
    texts = [list(row.ids) for rows in work.rows for row in rows]
    line = [t for text in texts for t in text]
    texts = [line[i : i + 256] for i in range(0, len(line), 256)][:32]
    sites = [work.session.sites.at(layer) for layer in range(len(work.session.sites.layers))]
    model = work.model

    @torch.no_grad()
    def plain() -> None:
        for batch in batches([len(text) for text in texts], 4096):
            model(input_ids=padded([texts[i] for i in batch], model.device), use_cache=False)

    passes: list[float] = []
    measured: list[float] = []
    plain()
    for _ in range(repetitions):
        passes.append(seconds(plain)[0])
        measured.append(seconds(lambda: measure_moments(work.session.sites, texts, sites))[0])
    ratio = statistics.median(b / a for a, b in zip(passes, measured, strict=True))
    return {
        "layers": len(sites),
        "tokens": sum(map(len, texts)),
        "seconds_plain": statistics.median(passes),
        "seconds_moments": statistics.median(measured),
        "ratio": ratio,
    }


def loaded_model(name: str) -> LoadedModel:
    """Return a model by name; `random:7b` is a random Llama 2 shape in bfloat16 with pocket's tokenizer."""
    if name != "random:7b":
        return load_model(name)
    from transformers import LlamaConfig, LlamaForCausalLM

    pocket = load_model("pocket:chat", device="cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return LoadedModel(model.eval(), pocket.tokenizer, name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket:chat")
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--naive", type=int, default=8, help="edits that are searched in the naive way")
    parser.add_argument("--single", type=int, default=0, help="edits that are searched one by one; all if 0")
    parser.add_argument("--prompts", choices=("questions", "statements"), default="statements")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--contexts", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    work = Work(loaded_model(chosen.model), chosen)
    vectors = target_vectors(work, min(chosen.naive, chosen.edits), chosen.single or chosen.edits, chosen.repetitions)
    moments = second_moments(work, chosen.repetitions)
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"model": chosen.model, "vectors": vectors, "moments": moments, "peak_gib": peak / 2**30}
    exact = vectors["gap_single_to_batched"] <= SAME and vectors["gap_naive_to_batched"] <= SAME
    if chosen.json:
        print(json.dumps(result, indent=2))
    else:
        for name, spent in vectors["seconds_per_edit"].items():
            print(f"{name:8} {spent:8.3f} s per edit   ({vectors['edits'][name]} edits)")
        print(f"naive / batched {vectors['ratio_naive_to_batched']:.2f}")
        print(f"naive / single  {vectors['ratio_naive_to_single']:.2f}")
        print(f"vectors differ by {vectors['gap_single_to_batched']:.1e} between single and batched")
        print(f"vectors differ by {vectors['gap_naive_to_batched']:.1e} between naive and batched")
        print(f"second moments of {moments['layers']} layers: {moments['ratio']:.2f} x plain forward passes")
        print(f"peak {result['peak_gib']:.2f} GiB")
    return 0 if exact else 1


if __name__ == "__main__":
    raise SystemExit(main())
