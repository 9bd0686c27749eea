"""Settings that differ by model, layer and tensor."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from posttrain.merging.values import PerModel, Place, gradient, is_head, patterns_of, place_of, value_of

ADAPTER: TypeAdapter[Any] = TypeAdapter(PerModel)
NAMES = [
    *("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
    *("model.layers.4.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"),
]


def test_places_are_depths() -> None:
    assert [place.depth for place in place_of(NAMES).values()] == [0, 0, 0.25, 1, 1, 1]
    assert [place.name for place in place_of(NAMES).values()] == NAMES
    gpt2 = ["transformer.wte.weight", "wpe.weight", "transformer.h.0.ln_1.weight", "h.11.ln_1.weight", "ln_f.weight"]
    assert [place.depth for place in place_of(gpt2).values()] == [0, 0, 0, 1, 1]
    assert [place.depth for place in place_of(["gpt_neox.embed_in.weight", "embed_out.weight"]).values()] == [0, 1]
    assert place_of(["layers.0.w"])["layers.0.w"].depth == 1  # a single layer is the last one
    assert place_of([]) == {}
    assert [is_head(name) for name in ("lm_head.weight", "a.embed_out.weight", "output.weight", "head_norm.x")] == [
        *(True, True, True, False),
    ]


def test_values_by_model_layer_and_name() -> None:
    def at(given: Any, model: str = "math", depth: float = 0.25, name: str = NAMES[2]) -> float:
        return value_of(ADAPTER.validate_python(given), model, Place(name, depth), 9.0)

    assert at(0.8) == 0.8
    assert [at([0, 1, 0.5], depth=depth) for depth in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.75, 0.5]
    assert at([0.3]) == 0.3
    filters = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "*.mlp.*", "value": 0.2}, {"value": 0.7}]
    assert [at(filters, name=name) for name in (NAMES[3], NAMES[2], NAMES[0])] == [0.25, 0.2, 0.7]
    assert at([{"filter": "norm", "value": 1}]) == 9  # nothing is said of it
    assert (at({"math": [0, 1]}), at({"code": 1})) == (0.25, 9)
    assert at({"math": [{"filter": "mlp", "value": 3}]}) == 3


def test_a_gradient_ends_where_it_says() -> None:
    assert gradient([0.1, 0.2, 0.7], 1.0) == 0.7
    assert gradient([0.1, 0.2, 0.7], 1.5) == 0.7
    assert gradient([0.1, 0.2], -1) == 0.1


@pytest.mark.parametrize(
    "given", [[], {"a": []}, [{"value": []}], float("nan"), [float("inf")], "x", [1, {"value": 1}]]
)
def test_values_that_are_none(given: Any) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(given)


def test_filters_are_found() -> None:
    given = ADAPTER.validate_python({"a": [{"filter": "x", "value": 1}], "b": 1, "c": [1, 2], "d": [{"value": 1}]})
    assert patterns_of(given) == ["x", "*"]
