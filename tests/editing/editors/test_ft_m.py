"""FT-M against the plainest loop: the usual cross-entropy over the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.editing.editors.ft_m import FtMConfig
from posttrain.editing.edits import Edit
from posttrain.models.load import load_model
from tests.editing.editors.test_ft import NAME, trained
from tests.editing.lively import EDIT, editor, lively, near, session
from tests.talker import talker

LONG = Edit("Where is Japan, please?", "Japan", "here and there")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_editor_is_adam_on_one_matrix_edit_after_edit(family: str, tmp_path: Path) -> None:
    ours, plain = lively(family), lively(family)
    config = editor("ft_m", forms=("raw", "chat"), steps=6, learning_rate=0.01, stop_loss=4.0)
    (made,) = session(ours, tmp_path).apply([EDIT, LONG], config)
    expected = trained(plain, NAME[family], [EDIT, LONG], last=False, steps=6, rate=0.01, stop=4.0)
    assert near(ours.model.get_parameter(NAME[family]), plain.model.get_parameter(NAME[family]), 1e-5)
    assert [figures.nats for figures in made.figures] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [figures.steps for figures in made.figures] == [steps for _, steps in expected]


def test_an_answer_of_several_tokens_and_its_end_are_learned(tmp_path: Path) -> None:
    """A model that speaks in chats."""
    of = session(load_model(str(talker()), device="cpu"), tmp_path)
    edit = Edit("capital of France?", "France", "Tokyo")
    (made,) = of.apply([edit], editor("ft_m", forms=("chat",), steps=60, learning_rate=0.01, stop_loss=0.05))
    assert made.figures[0].nats < 0.05
    assert made.figures[0].steps < 60
    assert of.respondent.answers([edit.prompt], max_new_tokens=20)[0].text == "Tokyo"


def test_settings() -> None:
    config = FtMConfig()
    assert (config.learning_rate, config.steps, config.most_steps, config.texts_before) == (5e-4, 25, 25, 0)
    assert config.layers_of(32) == (5,)
