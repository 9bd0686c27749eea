"""The forms of training data: a form says how the rows of an objective are encoded, collated and scored.

An objective is a pure function of tensors. Its config names the form that computes them: `form: ClassVar = "tokens"`
stands for the class `TokensForm` in `tokens.py`, or in the file that `SHARED` names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.training.forms.base import Form

__all__ = ["form_of"]

SHARED = {
    "classes": "headed",
    "tags": "headed",
    "spans": "headed",
    "ranking": "pairs",
    "representations": "unlearning",
    "distilling": "distributions",
}
"""The file of each form that shares a file with another form."""


def form_of(objective: Any) -> type[Form]:
    """Return the form that an objective's config names."""
    name: str = objective.form
    module = importlib.import_module(f"posttrain.training.forms.{SHARED.get(name, name)}")
    found: type[Form] = vars(module)[f"{name.title().replace('_', '')}Form"]
    return found
