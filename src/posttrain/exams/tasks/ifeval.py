"""Instructions that a program can check (IFEval's format and ids, with own ones for Traditional Chinese)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from posttrain.exams.behaviour import CAPABILITIES, SPECS, behaviour
from posttrain.exams.instructions import unsupported, verdicts
from posttrain.exams.records import Sample
from posttrain.exams.rows import Row, read_rows
from posttrain.exams.score_spec import specs
from posttrain.exams.statistics import Score
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, averages, mean_score, resolve, the_answer
from posttrain.inference.protocol import Plain
from posttrain.registry import register

__all__ = ["IfevalConfig", "ifeval"]


class IfevalConfig(TaskConfig):
    """A file of prompts with checkable instructions."""

    kind: Literal["ifeval"] = "ifeval"
    """Checkable instructions."""
    path: str | None = "builtin:instructions"
    """Rows {key, prompt, instruction_id_list, kwargs}, as IFEval's input file; 40 prompts come with posttrain."""
    unsupported: Literal["error", "skip"] = "error"
    """What to do with instructions that cannot be checked: stop, or leave their prompts out and count them."""
    max_new_tokens: int = Field(default=512, gt=0)
    """Tokens of an answer."""


@register("exam", "ifeval", config=IfevalConfig, paper="arXiv:2311.07911")
def ifeval(config: IfevalConfig, base: Path) -> Task:
    """Return the task of a file of prompts with instructions.

    `strict` scores judge the answer as it is. `loose` scores also accept it without asterisks and without its first
    line, its last line or both. Raise DataError with every wrong row.
    """
    path = resolve(config.path or "builtin:instructions", base)
    left_out: list[str] = []
    seen: set[str] = set()

    def made(row: Row) -> Item | None:
        prompt, ids = row.text("prompt"), row.texts("instruction_id_list")
        if prompt is None or ids is None:
            return None
        given = row.value.get("kwargs") or [{} for _ in ids]
        if not isinstance(given, list) or len(given) != len(ids) or not all(isinstance(g, dict) for g in given):
            row.bad(f"'kwargs' must be a list of {len(ids)} objects, one for each instruction")
            return None
        kwargs = [{k: v for k, v in one.items() if v is not None} for one in given]
        wrong = list(filter(None, map(unsupported, ids, kwargs)))
        if config.unsupported == "skip":
            left_out.extend(wrong)
        else:
            for why in wrong:
                row.bad(why, "unsupported: skip leaves such prompts out")
        if wrong:
            return None
        name = str(row.value.get("key", row.number))
        if name in seen:
            row.bad(f"the key '{name}' stands twice", "give every prompt its own key")
            return None
        seen.add(name)
        asked = Plain(f"{prompt}\n") if config.template == "plain" else prompt
        ask = Ask("say", asked, max_new_tokens=config.max_new_tokens)
        return Item(name, prompt, (ask,), doc={"ids": ids, "kwargs": kwargs}, location=row.location)

    items = read_rows(path, made)
    notes = [f"{len(left_out)} prompts left out: {'; '.join(sorted(set(left_out)))}"] if left_out else []
    return Task(
        items=items,
        judge=_judge,
        aggregate=_aggregate,
        headline="prompt_strict",
        capabilities={"prompt_strict": "how.instructions", "instruction_strict": "how.instructions", **CAPABILITIES},
        scores=(*specs(*(f"{of}_{rule}" for of in ("prompt", "instruction") for rule in ("strict", "loose"))), *SPECS),
        signature=f"ifeval|{path.name}|{config.template}|{config.max_new_tokens} tokens|own checkers|v1",
        notes=tuple(notes),
    )


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    said = the_answer(replies)
    strict, loose = verdicts(said.text, item.doc["ids"], item.doc["kwargs"])
    scores = {"prompt_strict": float(all(strict)), "prompt_loose": float(all(loose))}
    scores |= behaviour(item.question, said.text)
    extra = {"ids": list(item.doc["ids"]), "strict": strict, "loose": loose}
    return item.sample(said.text, ", ".join(item.doc["ids"]), scores, said, correct=all(strict), extra=extra)


def _aggregate(samples: Sequence[Sample]) -> dict[str, Score]:
    """Return means over prompts, means over all instructions, and strict means by group of instructions. The group is
    the first part of an instruction's id, such as `keywords` or `startend`."""
    made = averages(samples)
    for rule in ("strict", "loose"):
        made[f"instruction_{rule}"] = mean_score([float(kept) for s in samples for kept in s.extra[rule]])
    groups: dict[str, list[float]] = {}
    for s in samples:
        for name, kept in zip(s.extra["ids"], s.extra["strict"], strict=True):
            groups.setdefault(name.partition(":")[0], []).append(float(kept))
    for group, values in sorted(groups.items()):
        made[f"instruction_strict/{group}"] = mean_score(values)
    return made
