"""Estimate the tokens, disk space and time of a study from its plan, before it runs.

Arithmetic is counted (2 operations per parameter and token for a forward pass, 6 for forward and backward; Kaplan et
al. 2020, arXiv:2001.08361, section 2.1) and divided by the speed of one measured matrix product. A small model's time
is mostly overhead, which is added per step and per generated token. The estimate is right within a factor of three, and
the output says so. When cells have run, their times are used instead (`by_finished`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from posttrain.exams.exam import Part
from posttrain.exams.task import Ask
from posttrain.inference.protocol import Plain
from posttrain.models.load import load_tokenizer
from posttrain.retention.selection import ReplayConfig
from posttrain.studies.config import Study, find_model
from posttrain.studies.plan import Cell
from posttrain.studies.rows import trainings
from posttrain.studies.speed import ANSWER_TOKENS, EFFICIENCY, exam_s, flops_per_s, parameters_of, training_s
from posttrain.studies.train_config import Work
from posttrain.studies.train_rows import size_on_disk
from posttrain.training.rates import TRIES

__all__ = ["Estimate", "by_finished", "estimate", "size_of", "work_of"]


class Estimate(NamedTuple):
    """The estimated cost of all cells.

    trained_tokens: tokens read in training, with the search for a learning rate; examined_tokens: tokens processed in
    exams; disk_gib: GiB written; wall_s: rough time in seconds; made_tokens: tokens that a model writes for replay, if
    they are not in the cache yet.
    """

    trained_tokens: int
    examined_tokens: int
    disk_gib: float
    wall_s: float
    made_tokens: int = 0


def trie_characters(texts: Sequence[str]) -> int:
    """Return the characters in the prefix tree of these texts: those to read if shared beginnings are read once."""
    total, before = 0, ""
    for text in sorted(texts):
        total += len(text) - shared_characters(before, text)
        before = text
    return total


def shared_characters(one: str, other: str) -> int:
    """Return the length of the common beginning of two texts, in characters."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def work_of(part: Part) -> tuple[int, int]:
    """Return the characters that an exam must read and the tokens that it may write; perturbations repeat both."""
    texts, written = [], 0
    for item in part.items:
        for ask in item.asks:
            texts.append(words(ask))
            written += min(ask.max_new_tokens, ANSWER_TOKENS) if ask.kind == "say" else 0
    return part.times * trie_characters(texts), part.times * written


def words(ask: Ask) -> str:
    """Return the text of a request that the model reads."""
    prompt = ask.prompt
    if isinstance(prompt, Plain):
        text = prompt.text
    else:
        text = prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
    return text + ask.continuation


def estimate(study: Study, cells: Sequence[Cell], exams: Sequence[Part] = (), base: Path | None = None) -> Estimate:
    """Estimate the tokens, disk space and time of these cells. exams: the study's exams without the change exam."""
    base = base or Path()
    speed = flops_per_s()
    trained = examined = made = 0
    known_before: set[tuple[str, str]] = set()
    known_replays: set[str] = set()
    disk_bytes = wall_s = 0.0
    sizes: dict[str, tuple[int, float]] = {}
    needed = {folder for cell in cells for folder in cell.needs.values()}
    work_of_exams = [work_of(part) for part in exams]
    to_read, written = sum(characters for characters, _ in work_of_exams), sum(tokens for _, tokens in work_of_exams)
    samples = sum(len(part.items) * part.times for part in exams)

    for cell in cells:
        first = cell.model not in sizes
        if first:
            sizes[cell.model] = _size_of(study, cell.model, cells, exams, base)
        parameters, per_character = sizes[cell.model]
        read = round(to_read * per_character)
        asked_of = cell.changes if study.change_exam else ()
        probes = [question.question for change in asked_of for _, _, question in change.probes()]
        told = sum(len(t.question + t.answer[0]) for change in cell.changes for t in change.target)
        own = [method for _, method in trainings([cell])]
        taught = round(told * per_character) + 16 if cell.changes else 0
        stages = [round(size_on_disk([stage.data.at(base)]) * per_character) for stage in cell.stages]
        files = [round(size_on_disk(method.sources(cell.names, base)) * per_character) for method in own]
        work = Work.of(
            [
                method.stage_work(stages) if stages else method.work(taught * method.learns_targets + more)
                for method, more in zip(own, files, strict=True)
            ]
        )
        times = len([step for step in study.saves.due(work.steps) if step != work.steps]) + 1
        times += len(cell.method.parts) - 1 + sum(part.named_points(len(stages)) for part in cell.method.parts)
        asked = round(sum(map(len, probes)) * per_character) + len(probes) * ANSWER_TOKENS
        unasked = (cell.model, cell.change_name) not in known_before  # the untouched model answers once for all methods
        known_before.add((cell.model, cell.change_name))
        examined += (times + unasked) * asked + (times + first) * (read + written)
        wall_s += (times + unasked) * exam_s(parameters, asked, 1, speed) if probes else 0.0
        wall_s += (times + first) * exam_s(parameters, read + written, len(exams), speed) if exams else 0.0
        searched = TRIES * sum(method.optimizer.learning_rate == "find" for method in own)  # steps
        searching = searched * work.tokens // max(work.steps, 1)
        trained += work.tokens + searching
        wall_s += training_s(parameters, work.tokens + searching, work.steps + searched, speed)
        replays = [m.replay.for_change(cell.names[0]) for m in own if isinstance(m.replay, ReplayConfig)]
        key = f"{cell.model} {cell.seed} {[m.replayed(cell.names[0]) for m in own if m.replay is not None]}"
        if replays and key not in known_replays:
            known_replays.add(key)
            replay = sum(one.made_tokens(base) for one in replays)
            made += replay
            wall_s += 2 * parameters * replay / (speed * EFFICIENCY)
        disk_bytes += times * 1000 * (len(probes) + samples) + 300 * work.steps
        if (work.steps and study.keep != "none") or cell.folder in needed:
            disk_bytes += 4 * parameters * (times if study.keep == "all" else 1)
    return Estimate(trained, examined, disk_bytes / 2**30, wall_s, made)


def by_finished(cells: Sequence[Cell], walls: Mapping[str, float]) -> tuple[float, int]:
    """Return the estimated seconds for the cells without a result, and the number of these cells.

    Each is estimated by the mean of its method's finished cells, or of all finished cells if its method has none.
    walls: the seconds of each finished cell, by folder.
    """
    means: dict[str, list[float]] = {}
    for cell in cells:
        if cell.folder in walls:
            means.setdefault(cell.method.label, []).append(walls[cell.folder])
    overall = [wall for each in means.values() for wall in each]
    left = [cell for cell in cells if cell.folder not in walls]
    if not overall:
        return 0.0, len(left)
    return sum(fmean(means.get(cell.method.label, overall)) for cell in left), len(left)


def _size_of(study: Study, model: str, cells: Sequence[Cell], exams: Sequence[Part], base: Path) -> tuple[int, float]:
    """Return the number of a model's parameters, and its tokens per character of this study's questions."""
    found, _ = find_model(model, base)
    changes = [change for cell in cells[:200] for change in cell.changes]
    sample = [question.question for change in changes for _, _, question in change.probes()][:500]
    sample += [item.question for part in exams for item in part.items[:100] if item.question]
    return size_of(found, sample, offline=not study.download, trust_remote_code=study.trust_remote_code)


def size_of(model: str, questions: Sequence[str], *, offline: bool, trust_remote_code: bool) -> tuple[int, float]:
    """Return the number of a model's parameters, and its tokens per character of some questions."""
    sample = list(questions[:500])
    tokenizer = load_tokenizer(model, offline=offline, trust_remote_code=trust_remote_code)
    tokens = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False)["input_ids"]) if sample else 1
    parameters = parameters_of(model, download=not offline, trust_remote_code=trust_remote_code)
    return parameters, tokens / max(sum(map(len, sample)), 1)
