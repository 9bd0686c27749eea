"""The variants that a task asks (every item unchanged, then disturbed in each way), robustness and calibration scores.

Robustness is the worst case over the original and its disturbed forms (HELM, arXiv:2211.09110, section 4.4). A
perturbation is a pure function of the text and a seed that does not change what is asked (docs/exams.md says what each
one does). If it changes nothing in a text (`lower` in Chinese), nothing is asked: an answer to the same words does not
show robustness.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from posttrain.data.records import Message
from posttrain.data.scripts import CJK
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.exams.records import Sample
from posttrain.exams.statistics import Score
from posttrain.exams.task import Item, Perturbation, R, Task, mean_score
from posttrain.inference.protocol import Plain, Prompt

__all__ = ["Variant", "calibration", "location_in", "perturb", "robustness", "variants_of"]

MIXED_UP = (
    "的得", "在再", "做作", "已以", "因應", "像象", "帳賬", "那哪", "需須", "即既", "記紀", "份分", "會回", "是事",
    "有又", "為位", "他她", "們門", "時實", "於與", "最罪", "後候", "何合", "或獲", "其期", "列例", "種重", "部步",
    "该改", "会回", "为位", "们门", "时实", "于与", "后候", "种重",
)  # fmt: skip
"""Characters that are typed for one another because they sound alike; Traditional pairs first, then Simplified ones."""
VARIANTS = (
    "台臺", "裡裏", "為爲", "群羣", "峰峯", "床牀", "線綫", "啟啓", "眾衆", "麵麪", "著着", "污汙", "鉤鈎", "秘祕",
    "唇脣", "兇凶", "卻却", "腳脚", "強强", "別别", "絕絶", "說説", "閱閲", "鄰隣", "歎嘆", "痺痹", "檐簷", "館舘",
    "鷄雞", "够夠", "决決", "况況", "冲沖", "减減", "凉涼", "僞偽", "嘗甞", "效効", "糉粽", "綉繡",
)  # fmt: skip
"""Two ways to write one character; both are correct."""
HALF = "".join(map(chr, range(0x21, 0x7F)))
FULL = "".join(chr(ord(c) + 0xFEE0) for c in HALF)
_WORD = re.compile(r"[A-Za-z]{4,}")
_CJK = re.compile(f"[{CJK}]")


def perturb(text: str, kind: Perturbation, *, seed: int = 0) -> str:
    """Return the text disturbed in one way; the result depends only on the text, kind and seed."""
    return _KINDS[kind](text, random.Random(f"{kind} {seed} {text}"))


def _both_ways(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return a table of the pairs in both directions; a character in several pairs maps to its partner in the first."""
    table: dict[str, str] = {}
    for pair in pairs:
        a, b = pair[0], pair[1]
        table.setdefault(a, b)
        table.setdefault(b, a)
    return table


_MIX_UP = _both_ways(MIXED_UP)
_VARIANT = _both_ways(VARIANTS)
_WIDTH = str.maketrans(HALF + FULL, FULL + HALF)


def _typos(text: str, draw: random.Random) -> str:
    """Change a fifth of the words of four letters or more and a third of the characters in MIXED_UP, at least one."""
    spots: list[tuple[int, int, float]] = [(*m.span(), 0.2) for m in _WORD.finditer(text)]
    spots += [(i, i + 1, 1 / 3) for i, character in enumerate(text) if character in _MIX_UP]
    chosen = [place for place in spots if draw.random() < place[2]]
    if not chosen and spots:
        chosen = [draw.choice(spots)]
    for start, end, _ in sorted(chosen, reverse=True):
        word = text[start:end]
        text = text[:start] + (_MIX_UP.get(word) or _misspelt(word, draw)) + text[end:]
    return text


def _misspelt(word: str, draw: random.Random) -> str:
    """Return the word with one error after the first letter; never the word itself."""
    swaps = [i for i in range(1, len(word) - 1) if word[i] != word[i + 1]]
    way = draw.choice(["double", "leave", *(["swap"] if swaps else [])])
    if way == "swap":
        i = draw.choice(swaps)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    i = draw.randrange(1, len(word))
    return word[:i] + word[i] + word[i:] if way == "double" else word[:i] + word[i + 1 :]


def _spaces(text: str, draw: random.Random) -> str:
    """Double or triple a third of the spaces; in Chinese insert a space before a sixth of the characters."""
    made, changed = [], False
    for i, character in enumerate(text):
        if character == " " and draw.random() < 1 / 3:
            made.append(" " * draw.choice([2, 3]))
            changed = True
        elif i and _CJK.match(character) and _CJK.match(text[i - 1]) and draw.random() < 1 / 6:
            made.append(" " + character)
            changed = True
        else:
            made.append(character)
    return "".join(made) if changed else text.replace(" ", "  ", 1)


@cache
def _converter(config: str) -> Any:
    from opencc import OpenCC  # imported when called: the command line starts without it

    return OpenCC(config)


_KINDS: dict[Perturbation, Callable[[str, random.Random], str]] = {
    "typos": _typos,
    "spaces": _spaces,
    "lower": lambda text, draw: text.lower(),
    "width": lambda text, draw: text.translate(_WIDTH),
    "simplified": lambda text, draw: str(_converter("t2s").convert(text)),
    "traditional": lambda text, draw: str(_converter("s2twp").convert(text)),
    "variants": lambda text, draw: "".join(_VARIANT.get(character, character) for character in text),
}


class Variant(NamedTuple):
    """An item as it is asked: unchanged or perturbed. key: of the record that it becomes."""

    item: Item
    key: str
    perturbation: str = ""


def variants_of(task: Task[Any]) -> tuple[list[Variant], dict[str, int]]:
    """Return every variant, and how many questions each perturbation leaves unchanged. DataError for a task without
    items, or with two items of the same id.
    """
    if not task.items:
        raise DataError(Problem(task.name, "the task has no items", "look at its file and its limit"))
    twice = [name for name, count in Counter(item.id for item in task.items).items() if count > 1]
    if twice:
        raise DataError(*(Problem(task.name, f"two items have the id '{name}'", "give each its own") for name in twice))
    found = [Variant(item, item.id if task.compares else f"{item.id}|") for item in task.items]
    unchanged: dict[str, int] = {}
    for kind in task.perturbations:
        other = [_perturbed(task, item, kind) for item in task.items]
        found += [Variant(item, f"{item.id}|{kind}", kind) for item in other if item is not None]
        unchanged[kind] = sum(item is None for item in other)
    return found, unchanged


def location_in(task: Task[Any], variant: Variant) -> str:
    """Return the location of a variant for errors: the exam, the item, and its file and line if known."""
    if task.location is not None:
        return task.location(variant.item)
    disturbed = f", disturbed by '{variant.perturbation}'" if variant.perturbation else ""
    name = variant.item.id.removeprefix(":")  # an id such as :1 is of a file that names no subject
    named = f"exam {task.name}, item '{name}'{disturbed}"
    return f"{variant.item.location} ({named})" if variant.item.location else named


def _perturbed(task: Task[Any], item: Item, kind: Perturbation) -> Item | None:
    """Return the item with its question disturbed, None if nothing changes. PosttrainError if no prompt has it."""
    words = perturb(item.question, kind, seed=task.seed)
    if words == item.question:
        return None
    try:
        asks = tuple(ask._replace(prompt=_said(ask.prompt, item.question, words)) for ask in item.asks)
    except ValueError as error:
        cause = f"the task cannot be asked with '{kind}': the words of item '{item.id}' are not in its prompt"
        raise PosttrainError(
            Problem(location_in(task, Variant(item, "")), cause, "leave the perturbation out")
        ) from error
    return replace(item, question=words, asks=asks)


def _said(prompt: Prompt, old: str, new: str) -> Prompt:
    """Return the prompt with the last `old` replaced; earlier ones may be examples. ValueError if there is none."""
    if isinstance(prompt, Plain):
        return Plain(str(_said(prompt.text, old, new)))
    if isinstance(prompt, str):
        before, found, after = prompt.rpartition(old)  # ValueError if `old` is empty
        if not found:
            raise ValueError(old)
        return before + new + after
    for at in range(len(prompt) - 1, -1, -1):
        if old in prompt[at].content:
            turn: Message = replace(prompt[at], content=str(_said(prompt[at].content, old, new)))
            return (*prompt[:at], turn, *prompt[at + 1 :])
    raise ValueError(old)


ENOUGH_FOR_CALIBRATION = 300
"""With fewer samples a calibration error is mostly noise (HELM states this for its own)."""


def robustness(task: Task[R], samples: Sequence[R]) -> tuple[dict[str, Score], list[str]]:
    """Return the robustness scores and notes.

    `<headline>~<perturbation>`: the headline over the questions that this perturbation changed. `robust.<headline>`:
    the mean, over the questions that were changed at least once, of the worst among the original and its disturbed
    forms.
    """
    name = task.headline
    scores: dict[str, Score] = {}
    notes: list[str] = []
    for kind in task.perturbations:
        own = [sample for sample in samples if sample.perturbation == kind]
        made = task.aggregate(own) if own else {}
        if name in made:
            scores[f"{name}~{kind}"] = made[name]
    forms: dict[str, list[Sample]] = {}
    for sample in samples:
        if isinstance(sample, Sample):
            forms.setdefault(sample.id, []).append(sample)
    several = [own for own in forms.values() if len(own) > 1]
    if several and all(name in sample.scores for own in several for sample in own):
        worst = min if task.spec.higher_is_better else max
        scores[f"robust.{name}"] = mean_score([worst(sample.scores[name] for sample in own) for own in several])
    elif several:
        notes.append(f"no robust.{name}: it is not a mean over questions; see its values by perturbation")
    return scores, notes


def calibration(samples: Sequence[Sample]) -> tuple[dict[str, Score], list[str]]:
    """Return the calibration scores and notes; empty if no sample has a confidence."""
    sure = [s for s in samples if s.confidence is not None and s.correct is not None]
    if not sure:
        return {}, []
    from posttrain.exams.metrics import calibration as metrics

    confidence = [float(s.confidence or 0.0) for s in sure]
    correct = [bool(s.correct) for s in sure]
    made = {
        "ece_em10": metrics.ece_equal_mass(confidence, correct, bins=10),
        "ece_ew10": metrics.ece_equal_width(confidence, correct, bins=10),
        "selective_acc": metrics.selective_accuracy(confidence, correct, coverage=0.1),
        "selective_area": metrics.selective_area(confidence, correct),
    }
    few = len(sure) < ENOUGH_FOR_CALIBRATION
    notes = [f"calibration is over {len(sure)} samples only; below 300 it is mostly noise"] if few else []
    return {f"calibration.{name}": Score(value, None, len(sure)) for name, value in made.items()}, notes
