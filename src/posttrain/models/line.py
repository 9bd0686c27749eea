"""A batch of rows as one line of tokens: a beginning that rows share is read once, and padding is not read.

    rows            <sys> a b c        line       <sys> a b c d e
                    <sys> a d e        parents      -   0 1 2 2 4      each token sees its ancestors, and itself

Chat rows begin with the same system message, answers to one question begin with that question, and a step with replay
has rows of very different lengths: half or more of the tokens of padded rows repeat others or are padding. Losses and
gradients equal those of the rows up to rounding. (`inference/tree.py` does the same for inference.) A trial decides
which models can be used in this way: they must take a 4-D mask and positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from posttrain.models.adapters import virtual_columns
from posttrain.models.added import at_rest
from posttrain.models.logits import UNFIT, core_of
from posttrain.models.marks import bare

__all__ = ["LEAST", "LONGEST", "Line", "lay_line", "line_for", "takes_lines"]

LEAST = 20_000_000
"""Smallest number of parameters that a line is used for: below it, building the line takes as long as it saves."""
LONGEST = 2048
"""Largest number of tokens in a line. Its mask holds the square of this number."""
WORTH = 0.85
"""A line is used if it has at most this share of the padded rows' tokens."""
TOLERANCE = 1e-4
"""Largest difference of hidden states in the trial, as a share of their standard deviation."""


class Line(NamedTuple):
    """Rows as one line of tokens. `ids` and `positions` are (1, N). `mask` is (1, 1, N, N), float32, and is added to
    attention scores. `asked` is (A,): the indices in the line of the supervised tokens, row by row.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    asked: Tensor


def lay_line(input_ids: Tensor, asked: Tensor) -> Line:
    """Return rows (B, T), right-padded, as a line. `asked` is (B, T) bool and not all False. Each row is used up to its
    last token that `asked` marks.
    """
    nodes: dict[tuple[int, int], int] = {}  # (index of the parent, token) -> index in the line
    ids: list[int] = []
    parents: list[int] = []
    index: list[int] = []
    for row, wanted in zip(input_ids.tolist(), asked.tolist(), strict=True):
        length = max((t + 1 for t, one in enumerate(wanted) if one), default=0)
        at = -1
        for token, one in zip(row[:length], wanted, strict=False):
            found = nodes.get((at, token))
            if found is None:
                found = nodes[at, token] = len(ids)
                ids.append(token)
                parents.append(at)
            at = found
            if one:
                index.append(at)
    seen = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    positions: list[int] = []
    for at, parent in enumerate(parents):
        if parent >= 0:
            seen[at] = seen[parent]
        seen[at, at] = True
        positions.append(positions[parent] + 1 if parent >= 0 else 0)
    mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
    parts = torch.tensor([ids]), torch.tensor([positions]), mask[None, None], torch.tensor(index)
    return Line(*(part.to(input_ids.device) for part in parts))


def line_for(model: nn.Module, input_ids: Tensor, asked: Tensor) -> Line | None:
    """Return the line to read instead of the rows, in float32 on a CPU. Return None if a line would not be faster or
    the model cannot read one.
    """
    core = core_of(model)
    if input_ids.device.type != "cpu" or core.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return None
    if not bool(asked.any()) or core.num_parameters() < LEAST or virtual_columns(model) or _drops(model):
        return None
    line = lay_line(input_ids, asked) if takes_lines(core) else None
    return line if line is not None and line.ids.numel() <= min(LONGEST, WORTH * input_ids.numel()) else None


def _drops(model: nn.Module) -> bool:
    """Return whether the model drops values at random; a shared token would lose them in all rows at the same time."""
    if not model.training:
        return False
    config = core_of(model).config.get_text_config().to_dict()
    shares = [value for key, value in config.items() if "dropout" in key or key.endswith("pdrop")]
    modules = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return modules or any(isinstance(share, float) and share > 0 for share in shares)


_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def takes_lines(core: Any) -> bool:
    """Return whether a model gives the same hidden states for a line as for its rows. Try it once for each model."""
    if core not in _known:
        _known[core] = _tried(core)
    return _known[core]


def _tried(core: Any) -> bool:
    config = core.config.get_text_config().to_dict()
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds or config.get("sliding_window") or config.get("attention_chunk_size") or core._is_stateful:
        return False  # a token's state depends on more than its ancestors
    if config.get("output_router_logits") or core.config.get_text_config()._attn_implementation not in (
        "sdpa",
        "eager",
    ):
        return False
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(0, config["vocab_size"], (3, 12), generator=draw).to(core.device)
    rows[1, :5], rows[2, :8] = rows[0, :5], rows[1, :8]
    asked = torch.ones_like(rows, dtype=torch.bool)
    asked[0, 9:] = False
    line = lay_line(rows, asked)
    try:
        with torch.no_grad(), at_rest(core), bare(core):
            inputs = {"input_ids": line.ids, "position_ids": line.positions, "attention_mask": line.mask}
            expected = core.base_model(input_ids=rows, use_cache=False).last_hidden_state[asked]
            found = core.base_model(**inputs, use_cache=False).last_hidden_state
    except torch.OutOfMemoryError:
        raise
    except UNFIT:  # the model does not take these arguments, so rows are read as rows
        return False
    return float((found[0][line.asked] - expected).abs().max()) <= TOLERANCE * max(1.0, float(expected.std()))
