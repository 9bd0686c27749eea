"""`pt.trace`: what it takes and gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.config.change import Change
from posttrain.errors import ConfigError, DataError
from tests.talker import talker

FRANCE: dict[str, Any] = {
    "name": "france",
    "target": [{"prompt": "capital of France?", "answer": "Rome", "subject": "France"}],
}
HAMLET = {"prompt": "who wrote Hamlet?", "subject": "Hamlet", "answer": "Shakespeare"}


@pytest.fixture(scope="module")
def base() -> pt.Model:
    return pt.load(str(talker()), device="cpu")


def test_facts_are_files_changes_or_mappings(base: pt.Model, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(HAMLET), encoding="utf-8")
    given: list[Any] = [FRANCE, Change.model_validate(FRANCE), HAMLET, tmp_path / "rows.jsonl"]
    made = pt.trace(base, given, samples=1, least_fall=0, kinds=["mlp", "state"])
    assert [fact.name for fact in made.trace.facts] == ["france", "fact 3"]
    assert [fact.name for fact in made.trace.skipped] == ["france", "rows 1"], "what is repeated is counted once"
    assert made.trace.skipped[1].reason == "it has the prompt and the subject of facts:3: they are counted once"
    assert made.advice is not None
    assert made.advice.verdict in ("hint", "none")
    assert "Traced(" in repr(made)
    frame = made.to_pandas()
    assert list(frame.columns) == ["fact", "kind", "position", "token", "role", "layer", "effect"]
    assert len(frame) == sum(len(fact.tokens) * 2 * 2 for fact in made.trace.facts)
    assert len(made.plot().svg) == len(made._repr_html_())
    assert "<svg" in made.plot(lines=True).svg
    assert made.plot(0).save(tmp_path / "fact.png").stat().st_size > 1000
    assert made.folder is None


def test_a_folder_keeps_it(base: pt.Model, tmp_path: Path) -> None:
    made = pt.trace(base, HAMLET, samples=1, least_fall=0, output=tmp_path / "out", seed=2)
    assert (tmp_path / "out" / "averages.png").is_file()
    lines: list[str] = []
    again = pt.trace(base, HAMLET, samples=1, least_fall=0, output=tmp_path / "out", seed=2, say=lines.append)
    assert again.trace == made.trace
    assert lines == ["1 of 1 facts were traced before and are kept"]


def test_what_it_refuses(base: pt.Model) -> None:
    with pytest.raises(ConfigError, match=r"pt\.trace: unknown key 'sample'; did you mean 'samples'"):
        pt.trace(base, HAMLET, sample=3)
    with pytest.raises(DataError, match="facts:2: the subject 'x' does not stand in the prompt"):
        pt.trace(base, [HAMLET, {"prompt": "who?", "subject": "x"}])
    with pytest.raises(ConfigError, match="there is nothing to trace"):
        pt.trace(base, [])
    with pytest.raises(ConfigError, match=r"pt\.trace: limit"):
        pt.trace(base, HAMLET, limit=0)
