"""Change files made from facts: valid, disjoint from what is trained, and as shipped in examples/."""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.config.change import Change
from posttrain.config.load import load_yaml
from posttrain.pocket.changes import as_yaml, changes, pattern_of, prompts_of, replay_prompts
from posttrain.pocket.skills import curriculum
from posttrain.retention.selection import PACKAGED_PROMPTS, normalise_prompt

EXAMPLES = Path(__file__).parents[2] / "examples" / "changes" / "superlatives"


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
