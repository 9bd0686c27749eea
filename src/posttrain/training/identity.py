"""What makes one run the run that it is: a folder is gone on with by the same one only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.load import LoadedModel
from posttrain.training.assembly import bare_forms
from posttrain.training.config import TrainConfig
from posttrain.training.penalties import PENALTIES
from posttrain.training.prepare import rows_fingerprint
from posttrain.training.settings import settings_of

if TYPE_CHECKING:
    from posttrain.training.material import Material

__all__ = ["identity_of"]

HASHED_PARAMETERS = 500_000_000
"""Up to here a run's identity holds the fingerprint of the weights it starts from; above, their name only."""


def identity_of(
    config: TrainConfig,
    loaded: LoadedModel,
    material: Material,
    earlier: Path | None = None,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """Everything that decides the result: settings, start weights, template, rows."""
    parameters = sum(p.numel() for p in loaded.model.parameters())
    forms = bare_forms(config, loaded.tokenizer)
    return {
        "config": settings_of(config),
        **({"earlier": earlier_fingerprint(earlier)} if earlier is not None else {}),
        **({"adapter": file_fingerprint(adapter / "adapter_model.safetensors")} if adapter is not None else {}),
        "weights": weights_fingerprint(loaded.model) if parameters <= HASHED_PARAMETERS else "not computed",
        "template": template_fingerprint(loaded.tokenizer),
        "rows": rows_fingerprint(material.new, forms.new),
        "validation_rows": rows_fingerprint(material.validation, forms.new),
        "replay_rows": rows_fingerprint(material.old, forms.old),
    }


def earlier_fingerprint(earlier: Path) -> dict[str, str]:
    """Hashes of what the earlier task has left for its penalties."""
    files = sorted((earlier / PENALTIES).glob("*.safetensors"))
    return {path.stem: file_fingerprint(path) for path in files}


def file_fingerprint(path: Path) -> str:
    """First 16 hex digits of the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
