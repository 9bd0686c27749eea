"""Every Python snippet of the documentation runs as it stands, from a folder that has what it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import pytest

from posttrain import registry
from posttrain.models.load import load_model
from tests.documented import Block, blocks, named
from tests.test_commands import more_of
from tests.worlds import World


class Shown(NamedTuple):
    """What a snippet prints, in part; what it names, to be put beside it; whether it takes more than seconds."""

    printed: tuple[str, ...]
    names: tuple[str, ...] = ()
    slow: bool = False


API, APART = "docs/python-api.md", ("CONTRIBUTING.md", "docs/extending.md")
SHOWN = {
    f"{API}#0": Shown(("['Melbourne'] ['Canberra']", "\nexam             100 ")),
    f"{API}#1": Shown(("['雪山'] 0.0",)),
    f"{API}#2": Shown(("reliability 1.0 ", "locality.unrelated Who wrote Hamlet? William Shakespeare -> ")),
    f"{API}#3": Shown(("mmlu|mmlu_pocket.csv#", "True\n")),
    f"{API}#4": Shown(("1.0 ",), slow=True),  # lm-eval's own tables take seconds to import
    f"{API}#5": Shown(("The capital of Spain is Madrid -0.", "The capital of Poland is Warsaw -0.")),
    f"{API}#6": Shown(("[Answer(text='William', tokens=4, ended=True)]", "Scored(sum_nats=-0.", "Usage(")),
    f"{API}#7": Shown(()),
    "docs/editing.md#0": Shown(("['雪山'] {'nats': 0.",), slow=True),  # python-api.md#1 edits and undoes, too
    "docs/heads.md#0": Shown(("0.",), ("runs/train_classifier/model",)),
    "docs/lm-eval.md#0": Shown(("my_law", "acc,none"), ("my_law",), slow=True),
    "docs/engine.md#0": Shown(()),
    "docs/engine.md#1": Shown(()),
}
"""Page and number -> what it shows. A snippet that is not here fails; the pages in APART have tests of their own."""


def cases() -> list[object]:
    return [
        pytest.param(block, id=block.name, marks=[pytest.mark.slow] if SHOWN.get(block.name, Shown(())).slow else [])
        for block in blocks("python")
        if named(block.page) not in APART
    ]


@pytest.mark.parametrize("block", cases())
def test_a_snippet_runs(
    block: Block,
    tmp_path: Path,
    documented: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert block.name in SHOWN, "say in SHOWN what the new snippet prints"
    shown = SHOWN[block.name]
    monkeypatch.setenv("POSTTRAIN_CACHE", str(documented / "cache"))
    world = World(tmp_path / "world", documented, more_of)
    world.prepare(shown.names)
    capsys.readouterr()
    with chdir(world.folder):
        exec(compile(block.body, block.name, "exec"), {"__name__": "documented"})
    out = capsys.readouterr().out
    assert [part for part in shown.printed if part not in out] == [], out


def test_no_snippet_is_expected_that_is_not_there() -> None:
    found = {block.name for block in blocks("python") if named(block.page) not in APART}
    assert found == set(SHOWN)
    assert all(re.fullmatch(r"[\w/.-]+\.md#\d+", name) for name in SHOWN)


def test_the_method_that_contributing_shows_is_one(
    pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered under the name of the module that it would be; nothing but biases moves."""
    (block,) = (block for block in blocks("python") if named(block.page) == APART[0])
    registry.load("tuner", "bitfit")  # the real one stays what it is
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    exec(compile(block.body, block.name, "exec"), {"__name__": "posttrain.tuners.bitfit"})
    entry = registry.load("tuner", "bitfit")
    assert (entry.paper, entry.config.__doc__) == ("arXiv:2106.10199", "Train biases only.")
    model = entry.function(load_model(str(pico_path("gpt2")), device="cpu").model, entry.config())
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moving
    assert moving == {name for name, _ in model.named_parameters() if name.endswith("bias")}
