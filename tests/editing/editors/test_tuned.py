"""What the fine-tuning editors share: how answers are asked, one matrix that moves, what is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.editing.editors._answers import answers_of, nats_of, prompt_last
from posttrain.editing.editors._base import Change
from posttrain.editing.editors._tuned import moving, write_change
from posttrain.editing.edits import Edit, Row, RowMaker
from posttrain.editing.session import EditSession
from posttrain.editing.sites import Site
from posttrain.errors import ConfigError, PosttrainError
from tests.editing.lively import EDIT, TUNED, bits, changed, editor, lively, near, session
from tests.pico import tokenizer

CPU = torch.device("cpu")
LONG = Edit("The capital of France is", "France", "not so far from here", location="a.yaml:2")


def plain_nats(model: Any, row: Row, *, last: bool) -> Tensor:
    """The mean loss of a row's answer, read by itself: token by token, or all tokens from the prompt's last one."""
    ids = torch.tensor([row.ids[: row.start] if last else row.ids])
    logps = model(input_ids=ids).logits[0].log_softmax(-1)
    asked = [row.start - 1] * len(row.targets) if last else list(row.asked)
    return -torch.stack([logps[at, target] for at, target in zip(asked, row.targets, strict=True)]).mean()


@pytest.mark.parametrize("last", [False, True], ids=["token by token", "from the prompt's last token"])
def test_losses_of_rows_together_are_those_of_each_alone(last: bool) -> None:
    model = lively().model
    maker = RowMaker(tokenizer())
    rows = [*maker.rows(LONG, ["So it was."]), *maker.rows(EDIT)]
    with torch.no_grad():
        found = nats_of(model, (prompt_last if last else answers_of)(rows, CPU))
        expected = torch.stack([plain_nats(model, row, last=last) for row in rows])
    assert len({len(row.targets) for row in rows}) > 2
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", TUNED)
def test_one_matrix_moves_and_everything_is_as_before_around_it(kind: str, tmp_path: Path) -> None:
    """Other weights keep their bits, no gradient stays behind, and parameters take gradients as they did."""
    loaded = lively("gpt2")
    model: Any = loaded.model
    model.transformer.wte.weight.requires_grad_(False)
    took = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = bits(model)
    of = session(loaded, tmp_path)
    (made,) = of.apply([EDIT], editor(kind))
    assert changed(model, before) == {"transformer.h.0.mlp.c_proj.weight"}
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == took
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    (delta,) = made.deltas
    assert (delta.rank, delta.owners, delta.transposed) == (None, (0,), True)
    moved = of.sites.weight(of.sites.at(0)).detach() - before["transformer.h.0.mlp.c_proj.weight"]
    share = float(moved.norm() / before["transformer.h.0.mlp.c_proj.weight"].norm())
    assert made.figures[0].share == pytest.approx(share, rel=1e-4)
    assert (made.figures[0].alignment, made.figures[0].realised, made.past) == (None, None, {})


@pytest.mark.parametrize("kind", TUNED)
def test_one_layer_only(kind: str, tmp_path: Path) -> None:
    loaded = lively()
    before = bits(loaded.model)
    with pytest.raises(ConfigError, match=f"layers: {kind} trains one matrix, and 2 layers are given; give one layer"):
        session(loaded, tmp_path).apply([EDIT], editor(kind, layers=(0, 1)))
    assert not changed(loaded.model, before)


@pytest.mark.parametrize("kind", TUNED)
def test_a_loss_that_is_no_number_names_the_edit(kind: str, tmp_path: Path) -> None:
    loaded = lively("qwen3")
    model: Any = loaded.model
    (token,) = loaded.tokenizer.encode(" is")
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    before = bits(model)
    of = session(loaded, tmp_path)
    of.apply([EDIT], editor(kind), force=True)
    with pytest.raises(PosttrainError, match=r"^a.yaml:2: its loss is not finite; take a smaller learning rate"):
        of.apply([LONG], editor(kind, stop_loss=0.0), force=True)
    assert [one.numbers for one in of.applied] == [(0,)]
    of.undo()
    assert all(
        torch.equal(parameter.nan_to_num(1.0), before[name].nan_to_num(1.0))
        for name, parameter in model.named_parameters()
    )


def context_of(of: EditSession) -> Any:
    """What an editor works with, without a session that keeps it: a change is added to the matrix."""

    def write(site: Site, change: Change, owners: Sequence[int]) -> None:
        assert isinstance(change, Tensor)
        of.sites.weight(site).data.add_(change.T if site.transposed else change)

    return of.context(editor("ft_m"), [EDIT], write)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_half_precision_is_trained_on_a_copy_in_float32(family: str, tmp_path: Path) -> None:
    """Steps so small that bfloat16 rounds each of them away are added up."""
    of = session(lively(family, dtype=torch.bfloat16), tmp_path)
    site = of.sites.at(0)
    own = of.sites.weight(site)
    start = own.detach().clone()
    step = start.float().abs() * 2**-10  # half of what rounding to 8 bits notices
    assert torch.equal((start.float() + step).bfloat16(), start)
    with moving(context_of(of), site) as master:
        assert master.dtype == torch.float32
        assert of.sites.module(site).weight is own
        of.sites.model(input_ids=torch.tensor([[5, 6]]))
        assert of.sites.module(site).weight.dtype == torch.bfloat16
        with torch.no_grad():
            for _ in range(8):
                master.add_(step)
    assert of.sites.module(site).weight is own
    assert torch.equal(own, start)
    share = write_change(context_of(of), site, master, [0])
    assert own.dtype == torch.bfloat16
    assert near(own.detach().double(), start.double() + 8 * step.double(), 4e-3)
    assert share == pytest.approx(8 * 2**-10, rel=1e-3)


def test_an_error_in_training_gives_the_matrix_back(tmp_path: Path) -> None:
    of = session(lively(), tmp_path)
    site = of.sites.at(0)
    own, start = of.sites.weight(site), of.sites.weight(site).detach().clone()
    with pytest.raises(IndexError), moving(context_of(of), site) as master:
        of.sites.model(input_ids=torch.stack([torch.tensor([5, 6]), master.data.zero_()[0, :2].long() + 9999]))
    assert of.sites.module(site).weight is own
    assert torch.equal(own, start)
    assert own.requires_grad
