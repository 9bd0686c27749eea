from __future__ import annotations

import json
import re
from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from posttrain import registry
from posttrain.config.base import ByKind, Config
from posttrain.studies.config import Study
from posttrain.studies.methods.noise_floor import NoiseFloorConfig
from posttrain.studies.train_config import TrainMethodConfig
from posttrain.training.config import TrainConfig


class Holder(Config):
    """Holds a part chosen by kind."""

    tuner: Annotated[Config, ByKind("tuner")]
    """Which parameters move."""
    also: tuple[Annotated[Config, ByKind("tuner")], ...] = ()
    """More of them."""
    maybe: Annotated[Config, ByKind("tuner")] | None = None
    """One or none."""


def test_a_kind_may_be_a_word_or_a_mapping() -> None:
    short, long = Holder.model_validate({"tuner": "lora"}), Holder.model_validate({"tuner": {"kind": "lora"}})
    assert short == long
    assert short.tuner.model_dump()["rank"] == 16


def test_a_config_is_frozen_and_refuses_unknown_keys() -> None:
    holder = Holder.model_validate({"tuner": "full"})
    with pytest.raises(ValidationError):
        holder.tuner = holder.tuner  # type: ignore[misc]  # that it is frozen is the test
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Holder.model_validate({"tuner": "full", "tunr": "full"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"tuner": 5}, "expected a kind"),
        ({"tuner": {"rank": 8}}, f"'kind' is missing; known: {', '.join(registry.kinds('tuner'))}"),
        ({"tuner": "lroa"}, "did you mean 'lora'"),
        ({"tuner": {"kind": "lora", "rank": 0}}, "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        Holder.model_validate(value)


def test_a_dump_has_the_fields_of_the_kind_and_can_be_read_again() -> None:
    holder = Holder.model_validate({"tuner": {"kind": "lora", "rank": 8}, "also": ["full"]})
    dumped = holder.model_dump(mode="json")
    assert dumped["tuner"]["rank"] == 8
    assert dumped["tuner"]["dropout"] == 0.0
    assert Holder.model_validate(dumped) == holder
    assert holder.model_dump(mode="json", exclude_unset=True) == {
        "tuner": {"kind": "lora", "rank": 8},
        "also": [{"kind": "full"}],
    }


@pytest.mark.parametrize(("written", "kept"), [("bf16", "bf16"), ("bfloat16", "bf16"), ("fp32", "float32")])
def test_a_dtype_has_two_spellings_and_one_is_kept(written: str, kept: str) -> None:
    """Whichever way precision and save_dtype are written, a run is the same run."""
    method = TrainMethodConfig.model_validate({"precision": written, "save_dtype": written})
    assert method.precision == kept
    assert method.save_dtype == {"bf16": "bfloat16"}.get(kept, kept)
    own = TrainConfig.model_validate({"model": "m", "precision": written, "save_dtype": written})
    assert (own.precision, own.save_dtype) == (method.precision, method.save_dtype)
    schema = TrainMethodConfig.model_json_schema()["properties"]
    assert written in json.dumps(schema["precision"])
    assert written in json.dumps(schema["save_dtype"])
    with pytest.raises(ValidationError, match="'auto', 'float32' or 'bf16'"):
        TrainMethodConfig.model_validate({"precision": "int3"})


def test_the_noise_floor_has_two_spellings_too() -> None:
    study = {
        "study": "s",
        "models": "m",
        "methods": [{"kind": "prompt"}],
        "changes": "c.yaml",
        "noise_floor": "bfloat16",
    }
    assert Study.model_validate(study).noise_floor == "bf16"
    assert NoiseFloorConfig.model_validate({"arithmetic": "bfloat16"}).arithmetic == "bf16"


def test_the_schema_offers_every_kind_and_its_references_lead_somewhere() -> None:
    schema = Holder.model_json_schema()
    text = json.dumps(schema)
    assert f'"enum": {json.dumps(registry.kinds("tuner"))}' in text
    assert "low-rank" in text
    assert set(re.findall(r"#/\$defs/([\w-]+)", text)) <= set(schema.get("$defs", {}))
