"""How objectives are fed: one file per form of training data, which says how rows are encoded, collated and scored.

An objective is a pure function of tensors; its config names the form that computes them (`form: ClassVar = "tokens"`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from posttrain.config.base import Config

if TYPE_CHECKING:
    from posttrain.training.forms.base import Form

__all__ = ["FORMS", "form_of"]

FORMS: dict[str, str] = {
    "tokens": "posttrain.training.forms.tokens:TokensForm",
    "pairs": "posttrain.training.forms.pairs:PairsForm",
    "graded": "posttrain.training.forms.graded:GradedForm",
    "ranking": "posttrain.training.forms.ranking:RankingForm",
    "classes": "posttrain.training.forms.classes:ClassesForm",
    "tags": "posttrain.training.forms.tags:TagsForm",
    "spans": "posttrain.training.forms.spans:SpansForm",
    "distilling": "posttrain.training.forms.distilling:DistillingForm",
    "representations": "posttrain.training.forms.representations:RepresentationsForm",
    "on_policy": "posttrain.training.forms.on_policy:OnPolicyForm",
    "unlearning": "posttrain.training.forms.unlearning:UnlearningForm",
}
"""What an objective's config may name -> module and class."""


def form_of(objective: Config) -> type[Form]:
    """The form that an objective's config names."""
    module, _, name = FORMS[type(objective).form].partition(":")  # type: ignore[attr-defined]  # every objective's config has it
    found: type[Form] = vars(importlib.import_module(module))[name]
    return found
