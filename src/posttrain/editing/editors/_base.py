"""What every editor gets and gives: its settings, the model's places, and figures of each edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator
from torch import Tensor

from posttrain.config.base import Config
from posttrain.editing.contexts import Language
from posttrain.editing.edits import Edit, Form, Row, RowMaker, chinese
from posttrain.editing.moments import Moment
from posttrain.editing.sites import Site, Sites
from posttrain.editing.targets import Search
from posttrain.errors import ConfigError, Problem
from posttrain.models.edit_delta import LowRank

__all__ = ["Change", "EditContext", "EditorConfig", "Figures"]

Change = LowRank | Tensor
"""What an editor adds to a matrix W (D, d): a product of two thin matrices, or a whole matrix."""


class EditorConfig(Config):
    """What every editor has."""

    kind: str
    """Which editor: see `posttrain list editors`."""
    layers: Literal["auto"] | Annotated[tuple[int, ...], Field(min_length=1)] = "auto"
    """The layers whose output matrix is rewritten, from 0; `posttrain trace` recommends some. auto: where published
    editors work, as a share of the model's depth."""
    forms: Literal["auto"] | Annotated[tuple[Form, ...], Field(min_length=1)] = "auto"
    """How the prompt is read while editing: raw, as plain text; chat, as a user's question in the chat template. auto:
    both, but raw only if the model speaks so (a model that knows chats alone can not be made to)."""
    seed: int = 0
    """Seed of the texts before the prompts, and of any order; it is added to the session's or the study's."""

    @field_validator("layers", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """Refuse truth values, which Python takes for 0 and 1, and a layer that is named twice."""
        if isinstance(value, list | tuple):
            if any(isinstance(one, bool) for one in value):
                raise ValueError("whole numbers are expected, not true or false")
            if twice := [one for one in value if value.count(one) > 1]:
                raise ValueError(f"layer {twice[0]} is named twice")
        return value

    needs_subject: ClassVar[bool] = True
    """Whether it works at the subject's last token, so that every edit must name a subject."""

    def layers_of(self, count: int) -> tuple[int, ...]:
        """Return the layers to edit in a model of `count` layers."""
        return self.auto_layers(count) if self.layers == "auto" else self.layers

    def auto_layers(self, count: int) -> tuple[int, ...]:
        """Return the layer at 16 % of the depth, between ROME's choice for Llama (5 of 32) and GPT-J (5 of 28)."""
        return (round(0.16 * count),)

    def lays_out(self, maker: RowMaker, edit: Edit, texts: Sequence[str]) -> list[Row]:
        """Return the rows of an edit, with weights. texts: what stands before its prompt."""
        return maker.rows(edit, texts)

    @property
    def most_steps(self) -> int:
        """Steps of an optimiser for an edit, at most."""
        return 1

    @property
    def texts_before(self) -> int:
        """How many texts stand before each prompt, one at a time."""
        return 0


class Figures(NamedTuple):
    """What is known of one edit.

    nats: of the answer per token, as the search or the training ended; steps: of the optimiser; alignment: cosine
    between its key and the direction that writes it (1 is best); share: the norm of its own part of the change over the
    norm of the matrix, summed over layers; condition: of the system that was solved; realised: how much of the wanted
    change of the output was there after rounding (1 is all); skipped: it was left as it is, and why.
    """

    nats: float
    steps: int
    alignment: float | None = None
    share: float = 0.0
    condition: float | None = None
    realised: float | None = None
    skipped: str = ""


@dataclass
class EditContext:
    """What an editor works with.

    search: the model's places, the maker of rows, known trials; texts: language -> the texts before prompts, of which
    it gets the first ones; moments: the second moments of layers' keys on the untouched model; gradients: those of the
    gradients of their outputs, of the model's own predictions; past: by layer, the keys of earlier edits (d, n);
    memory: what an editor keeps between its calls (factored matrices), emptied when edits are undone; kept: what it has
    learned of all edits so far, which is saved with them, and emptied, too, when some are undone; write: adds a change
    to a matrix, with the edit that each of its columns belongs to; sample: edits that stand for all, for the norm
    anchor; anchors: the anchors of editors and layers, kept with the edits; untouched: a block in which the model has
    its untouched weights; seed: of any order.
    """

    search: Search
    texts: Callable[[Language, int], list[str]]
    moments: Callable[[Sequence[Site]], dict[int, Moment]]
    gradients: Callable[[Sequence[Site]], dict[int, Moment]]
    write: Callable[[Site, Change, Sequence[int]], None]
    past: dict[int, list[Tensor]] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    sample: Sequence[Edit] = ()
    anchors: dict[str, float] = field(default_factory=dict)
    untouched: Callable[[], AbstractContextManager[None]] = nullcontext
    seed: int = 0
    say: Callable[[str], None] = print

    @property
    def sites(self) -> Sites:
        """The model's editable places."""
        return self.search.sites

    @property
    def maker(self) -> RowMaker:
        """The maker of rows."""
        return self.search.maker

    def rows(self, config: EditorConfig, edits: Sequence[Edit]) -> list[list[Row]]:
        """Return the rows of each edit, with texts before the prompt in the edit's language."""
        texts = {language: self.texts(language, config.texts_before) for language in _languages(edits)}
        return [config.lays_out(self.maker, edit, texts[_language(edit)]) for edit in edits]

    def places(self, config: EditorConfig) -> list[Site]:
        """Return the sites of the editor's layers, in their order. Raise ConfigError if two numbers name one layer."""
        location = f"editor {config.kind}: layers"
        numbers = config.layers_of(len(self.sites.layers))
        found: dict[Site, int] = {}
        for number in numbers:
            site = self.sites.at(number, location)
            if site in found:
                cause = f"{found[site]} and {number} are the same layer of {len(self.sites.layers)}"
                raise ConfigError(Problem(location, cause, "name each layer once; negative numbers count from the end"))
            found[site] = number
        return sorted(found)


def _language(edit: Edit) -> Language:
    return "zh" if chinese(edit.question) else "en"


def _languages(edits: Sequence[Edit]) -> list[Language]:
    return sorted({_language(edit) for edit in edits})
