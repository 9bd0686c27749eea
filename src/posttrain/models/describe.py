"""Return a model's architecture, sizes and fingerprints for `posttrain model show`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Unpack

from posttrain.models.edit_delta import read_edits
from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.load import Source, load_model, stop_ids
from posttrain.models.names import resolve
from posttrain.models.notes import EDIT_KIND

__all__ = ["describe"]

MARKERS = re.compile(r"\{%-?\s*generation\b")


def describe(name: str, **how: Unpack[Source]) -> dict[str, Any]:
    """Load a model and return its architecture, sizes, vocabulary, template and fingerprints. Errors as in
    `load_model`.
    """
    loaded = load_model(name, allow_template_mismatch=True, **how)
    model, tokenizer = loaded.model, loaded.tokenizer
    config = model.config.get_text_config()
    stops = stop_ids(name, tokenizer, **how)
    return {
        "model": name,
        **_edits(Path(resolve(name))),
        "architecture": type(model.get_base_model() if "peft" in type(model).__module__ else model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "positions": config.max_position_embeddings,
        "vocabulary": len(tokenizer),
        "tied embeddings": bool(config.tie_word_embeddings),
        "dtype": str(model.dtype).removeprefix("torch."),
        "stops at": [tokenizer.convert_ids_to_tokens(i) for i in stops],
        "chat template": "yes" if tokenizer.chat_template else "none",
        "loss mask": "generation markers" if MARKERS.search(str(tokenizer.chat_template)) else "verified prefixes",
        "template fingerprint": template_fingerprint(tokenizer),
        "weights fingerprint": weights_fingerprint(model),
    }


def _edits(folder: Path) -> dict[str, Any]:
    """Return of a folder of edits its base, what was edited by which editors, and where; of others nothing."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.get("posttrain_tuner") != EDIT_KIND:
        return {}
    rows = read_edits(folder)
    said = [row["said"]["right"] for row in rows if row.get("said", {}).get("right") is not None]
    return {
        "base": config["base_model_name_or_path"],
        "edits": len(rows),
        "said": f"{sum(said)} of {len(said)}",
        "editors": list(dict.fromkeys(row["editor"] for row in rows)),
        "edited": list(dict.fromkeys(delta["weight"] for delta in config["deltas"])),
    }
