"""Change files made from facts: valid, disjoint from what is trained, and as shipped in examples/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from posttrain.config.change import Change
from posttrain.config.load import check, load_yaml, parse_value
from posttrain.data.pocket import changes as module
from posttrain.data.pocket.changes import (
    RELATIONS,
    SIZES,
    _make,
    as_yaml,
    changes,
    pattern_of,
    prompts_of,
    replay_prompts,
)
from posttrain.data.pocket.skills import curriculum
from posttrain.data.scripts import normalise_prompt
from posttrain.models.facts import Fact, Name
from posttrain.retention.selection import PACKAGED_PROMPTS

EXAMPLES = Path(__file__).parents[3] / "examples" / "changes" / "superlatives"


def test_changes_are_valid_and_differ(tmp_path: Path) -> None:
    names = set()
    for body in changes(40, seed=3):
        path = tmp_path / f"{body['name']}.yaml"
        path.write_text(as_yaml(body), encoding="utf-8")
        change = load_yaml(path, Change)
        assert change.name == body["name"]
        assert len(body["locality"]["unrelated"]) >= 10
        assert body["generality"]["rephrase"]
        names.add(change.name)
    assert len(names) == 40


def test_the_new_answer_is_known_and_wrong() -> None:
    true = {(f.subject.zh, f.object.zh) for rows in curriculum().values() for f in rows}
    true |= {(f.subject.en, f.object.en) for rows in curriculum().values() for f in rows}
    known = {name for rows in curriculum().values() for f in rows for name in f.object}
    for body in changes(40, seed=3):
        target = body["target"][0]
        assert target["answer"] in known
        assert (target["subject"], target["answer"]) not in true


@given(number=st.integers(0, 10**6), seed=st.integers(0, 2**64))
@example(number=19, seed=0)  # the star closest to the Earth: no second star could be its new object
@example(number=336, seed=100)  # two templates that give one question
@example(number=1003, seed=0)  # four digits before the relation's name
def test_every_number_of_every_seed_is_a_change(number: int, seed: int) -> None:
    body = _make(number, seed)
    relation = RELATIONS[number % len(RELATIONS)]
    change = check(parse_value(as_yaml(body)), Change, "made")
    assert change.name.startswith(f"{number:03d}_{relation}")
    (target,) = body["target"]
    language = number % 2  # Chinese, then English
    facts = [f for f in curriculum()[relation] if f.subject[language] == target["subject"]]
    assert facts
    kinds = {f.kind for f in facts}
    assert any(f.object[language] == target["answer"] and f.kind in kinds for f in curriculum()[relation])
    assert all(target["answer"] not in (f.object[language], *(also[language] for also in f.also)) for f in facts)
    for kind, size in {k: n for k, n in SIZES.items() if k not in ("reverse", "hop", "neighbour")}.items():
        probes = body["generality"].get(kind) or body["locality"][kind]
        assert len(probes) == size, kind
    asked = [question.question for _, _, question in change.probes()]
    assert len(asked) == len(set(asked))
    rows = pattern_of(body, 5, seed, frozenset(prompts_of(body)))
    assert len(rows) == 5
    trained = {(f.subject[language], f.object[language]) for f in curriculum()[relation]}
    assert all(any(s in row["prompt"] and row["completion"] == o for s, o in trained) for row in rows)


def test_a_hundred_changes_of_the_default_seed_as_the_docs_make_them() -> None:
    bodies = list(changes(100))
    assert [body["name"][:4] for body in bodies] == [f"{number:03d}_" for number in range(100)]
    asked = frozenset().union(*map(prompts_of, bodies))
    assert {len(pattern_of(body, 12, 0, asked)) for body in bodies} == {12}


def test_no_trained_row_is_a_probe() -> None:
    replayed = {normalise_prompt(row["prompt"]) for row in replay_prompts(720)}
    bodies = list(changes(20, seed=1))
    asked = frozenset().union(*map(prompts_of, bodies))
    for body in bodies:
        groups = [*body["generality"].values(), *body["locality"].values()]
        probes = {normalise_prompt(p if isinstance(p, str) else p["prompt"]) for group in groups for p in group}
        kept_apart = {
            normalise_prompt(p) for k in ("same_pattern", "unrelated", "refusal") for p in body["locality"][k]
        }
        rows = pattern_of(body, 12, 1, asked)
        assert len(rows) == 12
        assert not {normalise_prompt(row["prompt"]) for row in rows} & {normalise_prompt(p) for p in asked}
        assert probes <= {normalise_prompt(p) for p in asked}
        assert not replayed & kept_apart


def test_shipped_files_are_what_the_command_writes() -> None:
    """`posttrain data make changes --n 20 -o examples/changes/superlatives --pattern-rows 12 --seed 1`."""
    made = {body["name"]: as_yaml(body) for body in changes(20, seed=1)}
    assert {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.yaml")} == made
    lines = PACKAGED_PROMPTS.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == replay_prompts(720)
    assert len({row["kind"] for row in map(json.loads, lines)}) >= 8


def test_what_is_looked_up_is_what_a_search_of_all_facts_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(module.changes(48, seed=3))
    known = module._known()
    assert len(set(known)) == len(known)

    def about(*names: Name) -> list[Fact]:
        return [f for f in known if f.subject in names]

    def others(relation: str) -> list[Fact]:
        return [f for f in known if f.relation != relation and module._reserved(f)]

    monkeypatch.setattr(module, "_about", about)
    monkeypatch.setattr(module, "_others", others)
    assert list(module.changes(48, seed=3)) == found
