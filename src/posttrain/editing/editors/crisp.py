"""CrispEdit: fine-tune one matrix on all edits, in directions that cost the model little. arXiv:2602.15823 (ICML 2026).

What the model can do shall stay: the KL divergence between its predictions before and after, on other texts. Around the
untouched model it is a quadratic form, that of the Gauss-Newton matrix, whether or not the model was trained to its end
(the paper's Bregman divergence). For one matrix W (D, d) that is about

    KL(M)  ~  1/2 tr(G M A M^T)       A = E[k k^T]: keys;   G = E[g g^T]: gradients of the outputs (`models/kfac.py`)

whose eigenvectors are the products of those of G and A. The few with the largest eigenvalues hold nearly all of it;
these are left alone, and training has the rest. The projector is never formed:

    P(M) = U_G (free * (U_G^T M U_A)) U_A^T

The paper projects the gradients that Adam gets. But Adam scales each number by itself, so its steps leave the space;
here the change of the matrix is projected, too, after each step. It trains five output matrices (19 to 23 of 32), here
it is one, as in LocFT, and with nothing protected the two are the same. Measured on Wikipedia there, on the model's own
answers here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from posttrain.editing.editors._base import EditContext, Figures
from posttrain.editing.editors._tuned import one_site
from posttrain.editing.editors.locft import TogetherConfig, tune_together
from posttrain.editing.edits import Edit
from posttrain.models.kfac import LowCurvature, low_curvature
from posttrain.registry import register

__all__ = ["CrispConfig", "crisp"]


class CrispConfig(TogetherConfig):
    """Fine-tune one matrix on all edits together, in directions of low curvature."""

    kind: Literal["crisp"] = "crisp"
    """CrispEdit."""
    energy: float = Field(0.9, ge=0, lt=1)
    """Share of the curvature of the model's predictions that is protected; 0 protects nothing. 0.8 to 0.99 in the
    paper."""


@register("editor", "crisp", config=CrispConfig, paper="arXiv:2602.15823")
def crisp(config: CrispConfig, context: EditContext, edits: Sequence[Edit]) -> list[Figures]:
    """Train on all edits together, within the directions of low curvature."""
    if config.energy == 0:
        return tune_together(config, context, edits)
    site = one_site(context, config)
    key = ("crisp", site.layer, config.energy)
    if key not in context.memory:
        keys, gradients = context.moments([site])[site.layer], context.gradients([site])[site.layer]
        context.memory[key] = low_curvature(keys.matrix, gradients.matrix, config.energy)
    found: LowCurvature = context.memory[key]
    return tune_together(config, context, edits, found.project)
