"""What is decided from the headers alone: every rule of plan.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.errors import ConfigError, PosttrainError
from posttrain.merging.engine import in_memory
from posttrain.merging.expression import parse
from posttrain.merging.methods.linear import LinearConfig
from posttrain.merging.methods.slerp import SlerpConfig
from posttrain.merging.methods.task_arithmetic import TaskArithmeticConfig
from posttrain.merging.plan import plan, plan_expression
from posttrain.merging.terms import open_term
from tests.merging.folders import SHAPES, drawn, folder, planned, weights, written

HEAD, EMBEDDING, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"


def without(seed: int, *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in drawn(seed).items() if name not in names}


def mean(one: Tensor, other: Tensor) -> Tensor:
    return in_memory({"a": {"w": one}, "b": {"w": other}}, None, LinearConfig())["w"]


# ---- tensors ---------------------------------------------------------------------------------------------------------


def test_a_tensor_that_is_missing(tmp_path: Path) -> None:
    folders = {
        "one": folder(tmp_path / "one"),
        "two": folder(tmp_path / "two", without(1, NORM, "model.layers.1.conv.weight")),
        "three": folder(tmp_path / "three", without(2, HEAD)),
    }
    with pytest.raises(PosttrainError) as told:
        planned(LinearConfig(), folders)
    two, three = map(str, told.value.problems)  # all of them at once
    assert two.startswith("two: it lacks model.layers.1.conv.weight, model.norm.weight; merge models of one kind, or")
    assert three.startswith("three: it lacks lm_head.weight;")
    made = planned(LinearConfig(), folders, missing="base")
    assert "two lacks model.layers.1.conv.weight, model.norm.weight: taken from one" in made.notes
    found = weights(written(made, tmp_path / "out"))
    three_of = in_memory(
        {"a": {"w": drawn()[NORM]}, "b": {"w": drawn()[NORM]}, "c": {"w": drawn(2)[NORM]}}, None, LinearConfig()
    )
    assert torch.equal(found[NORM], three_of["w"])


@pytest.mark.parametrize("said", [{"tie_word_embeddings": True}, {"tie_word_embeddings": None}])
def test_a_tied_head_beside_an_untied_first_one(said: dict[str, Any], tmp_path: Path) -> None:
    """Configurations leave the key out where it is usual for their kind."""
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", without(1, HEAD), **said)
    made = planned(LinearConfig(), {"one": one, "two": two})
    assert made.notes == (f"two has its head tied: its embedding stands for {HEAD}",)
    found = weights(written(made, tmp_path / "out"))
    assert torch.equal(found[HEAD], mean(drawn()[HEAD], drawn(1)[EMBEDDING]))
    assert torch.equal(found[EMBEDDING], mean(drawn()[EMBEDDING], drawn(1)[EMBEDDING]))


def test_an_untied_head_beside_a_tied_first_one(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", without(0, HEAD), tie_word_embeddings=True)
    folders = {"one": one, "two": folder(tmp_path / "two", 1)}
    with pytest.raises(PosttrainError) as told:
        planned(LinearConfig(), folders)
    assert str(told.value) == (
        f"two: its head {HEAD} is apart from its embedding, and in one the two are one; "
        "name two first, so that the merged model has a head of its own"
    )
    assert set(weights(written(planned(LinearConfig(), dict(reversed(folders.items()))), tmp_path / "out"))) == {
        *SHAPES
    }


def test_a_head_that_is_stored_though_it_is_tied(tmp_path: Path) -> None:
    """Some tools write the shared matrix twice."""
    tied = {"tie_word_embeddings": True}
    twice = drawn(1)
    twice[HEAD] = twice[EMBEDDING].clone()
    folders = {
        "one": folder(tmp_path / "one", without(0, HEAD), **tied),
        "two": folder(tmp_path / "two", twice, **tied),
    }
    made = planned(LinearConfig(), folders)
    assert made.notes == (f"two has {HEAD} besides: left out",)
    assert HEAD not in weights(written(made, tmp_path / "out"))
    both = planned(LinearConfig(), dict(reversed(folders.items())))
    found = weights(written(both, tmp_path / "both"))
    assert torch.equal(found[HEAD], found[EMBEDDING])


def test_a_body_that_is_tied_inside_a_text_config(tmp_path: Path) -> None:
    two = folder(tmp_path / "two", without(1, HEAD), text_config={"tie_word_embeddings": True})
    assert "tied" in planned(LinearConfig(), {"one": folder(tmp_path / "one"), "two": two}).notes[0]


def test_tensors_besides(tmp_path: Path) -> None:
    more = {f"extra.{i}": torch.ones(1) for i in range(5)}
    folders = {"one": folder(tmp_path / "one"), "two": folder(tmp_path / "two", drawn(1) | more)}
    made = planned(LinearConfig(), folders)
    assert made.notes == ("two has extra.0, extra.1, extra.2 and 2 more besides: left out",)
    assert weights(written(made, tmp_path / "out")).keys() == SHAPES.keys()


def test_shapes_that_differ_and_types_that_cannot_be_added(tmp_path: Path) -> None:
    two = drawn(1) | {NORM: torch.ones(9), "model.layers.1.conv.weight": torch.ones(6, 6)}
    two["model.layers.0.norm.weight"] = torch.ones(8, dtype=torch.int64)
    folders = {"one": folder(tmp_path / "one"), "two": folder(tmp_path / "two", two)}
    with pytest.raises(PosttrainError) as told:
        planned(LinearConfig(), folders)
    assert {str(problem) for problem in told.value.problems} == {
        "two: model.norm.weight is 9, and 8 in one; merge models of one shape",
        "two: model.layers.1.conv.weight is 6 x 6, and 6 x 2 x 3 in one; merge models of one shape",
        "two: model.layers.0.norm.weight is I64, and F32 in one; convert one of them",
    }


def test_several_types_are_stored_as_the_first(tmp_path: Path) -> None:
    folders = {
        "one": folder(tmp_path / "one", drawn(0, torch.bfloat16)),
        "two": folder(tmp_path / "two", drawn(1, torch.float64)),
    }
    stored = {job.stored.dtype for job in planned(LinearConfig(), folders).merge.jobs}
    assert stored == {"BF16"}
    stored = {job.stored.dtype for job in planned(LinearConfig(), folders, dtype="float16").merge.jobs}
    assert stored == {"F16"}
    based = planned(TaskArithmeticConfig(), folders, base="two")
    assert {job.stored.dtype for job in based.merge.jobs} == {"F64"}  # the base is the first
    with pytest.raises(ConfigError, match="dtype: unknown 'int8'; one of auto, float32, bfloat16, float16"):
        planned(LinearConfig(), folders, dtype="int8")


def test_types_that_are_not_known(tmp_path: Path) -> None:
    folders = {"one": folder(tmp_path / "one"), "two": folder(tmp_path / "two", 1)}
    header = json.dumps({"model.norm.weight": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}).encode()
    (folders["one"] / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(PosttrainError, match=r"one: model.norm.weight is F4: numbers that cannot be added"):
        planned(LinearConfig(), folders)
    with pytest.raises(PosttrainError, match=r"one: model.norm.weight is F4, and F32 in two"):
        planned(LinearConfig(), dict(reversed(folders.items())), missing="base")


def test_bytes_are_counted(tmp_path: Path) -> None:
    folders = {"one": folder(tmp_path / "one"), "two": folder(tmp_path / "two", drawn(1, torch.bfloat16))}
    numbers = sum(tensor.numel() for tensor in drawn().values())
    made = planned(LinearConfig(), folders)
    assert made.reads == 6 * numbers
    assert made.writes == written(made, tmp_path / "out").joinpath("model.safetensors").stat().st_size > 4 * numbers


# ---- models and settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "names", "base", "words"),
    [
        (TaskArithmeticConfig(), "ab", None, "task_arithmetic: it needs the model that all others were made of; name"),
        (TaskArithmeticConfig(), "ab", "z", "base: unknown name 'z'; known: a, b"),
        (TaskArithmeticConfig(), "a", "a", "it merges at least 1 model beside the base, and 0 are given"),
        (LinearConfig(), "ab", "a", "linear: it has no use for a base; leave it out"),
        (SlerpConfig(), "abc", None, "slerp: it merges 2 models, and 3 are given; see posttrain list mergers"),
        (SlerpConfig(), "a", None, "slerp: it merges 2 models, and 1 is given"),
        (LinearConfig(weight={"a": 1, "x": 2}), "ab", None, "linear: weight: unknown model 'x'; known: a, b"),
        (TaskArithmeticConfig(weight={"a": 1}), "ab", "a", "task_arithmetic: weight: unknown model 'a'; known: b"),
        (
            LinearConfig.model_validate({"weight": [{"filter": "mpl", "value": 1}, {"value": 1}]}),
            *("ab", None, "linear: weight: the filter 'mpl' fits no tensor; tensors are called like model.layers."),
        ),
        (
            LinearConfig.model_validate({"weight": {"a": [{"filter": "*.bias", "value": 1}]}}),
            *("ab", None, "the filter '*.bias' fits no tensor"),
        ),
    ],
)
def test_models_and_settings_that_do_not_fit(
    config: Any, names: str, base: str | None, words: str, tmp_path: Path
) -> None:
    folders = {name: folder(tmp_path / name, seed) for seed, name in enumerate(names)}
    with pytest.raises(ConfigError) as told:
        planned(config, folders, base=base)
    assert words in str(told.value)


def test_a_setting_for_all_models_is_not_one_for_each() -> None:
    """It would be read for none of them."""
    with pytest.raises(ValueError, match="scale"):
        TaskArithmeticConfig.model_validate({"scale": {"a": 0.5}})
    with pytest.raises(ValueError, match="t"):
        SlerpConfig.model_validate({"t": {"a": 0.5}})


def test_the_base_is_first_wherever_it_is_named(tmp_path: Path) -> None:
    folders = {name: folder(tmp_path / name, seed) for seed, name in enumerate("abc")}
    made = planned(TaskArithmeticConfig(), folders, base="c")
    assert list(made.terms) == ["c", "a", "b"]
    assert list(made.merge.models) == ["a", "b"]
    assert made.first.path == folders["c"]


def test_the_digest_is_of_all_that_decides(tmp_path: Path) -> None:
    folders = {name: folder(tmp_path / name, seed) for seed, name in enumerate("ab")}
    config = LinearConfig(weight={"a": 0.4, "b": 0.6})
    first = planned(config, folders).merge.digest
    assert first == planned(config, folders).merge.digest
    others = [
        planned(LinearConfig(), folders),
        planned(config, dict(reversed(folders.items()))),
        planned(config, folders, seed=1),
        planned(config, folders, dtype="bfloat16"),
        planned(config, folders, shard=2000),
    ]
    assert len({first, *(other.merge.digest for other in others)}) == 6
    (folders["b"] / "adapter_config.json").write_text("{}", encoding="utf-8")
    terms = {name: open_term(str(path)) for name, path in {"a": folders["a"]}.items()}
    adapted = {**terms, "b": terms["a"]._replace(path=folders["b"])}
    before = plan(config, adapted, base=None).merge.digest
    (folders["b"] / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3}), encoding="utf-8")
    assert before != plan(config, adapted, base=None).merge.digest


def test_expressions_are_weighted_sums(tmp_path: Path) -> None:
    terms = {name: open_term(str(folder(tmp_path / name, seed))) for seed, name in enumerate("abc")}
    made = plan_expression(parse("a + 0.5*(b - a) + 0*c", list(terms)), terms)
    assert list(made.terms) == ["a", "b"]  # c has no part in it
    assert made.what == "a + 0.5*(b - a) + 0*c = 0.5 a + 0.5 b"
    found = weights(written(made, tmp_path / "out"))
    assert all(torch.equal(found[name], mean(drawn(0)[name], drawn(1)[name])) for name in SHAPES)
    made = plan_expression(parse("c + (a - b)", list(terms)), terms)
    found = weights(written(made, tmp_path / "analogy"))
    for name in SHAPES:
        torch.testing.assert_close(found[name], drawn(2)[name] + drawn(0)[name] - drawn(1)[name], atol=2e-6, rtol=1e-6)


def test_a_difference_of_the_same_changes_nothing(tmp_path: Path) -> None:
    """c + (a - b) is c wherever a and b are the same, to the last bit."""
    frozen = drawn(0)
    terms = {
        "a": open_term(str(folder(tmp_path / "a", frozen))),
        "b": open_term(str(folder(tmp_path / "b", frozen))),
        "c": open_term(str(folder(tmp_path / "c", 2))),
    }
    for text in ("c + (a - b)", "c + 0.7*(a - b)", "0.3*(a - b) + c", "a - b + c"):
        found = weights(written(plan_expression(parse(text, list(terms)), terms), tmp_path / text.replace("*", "x")))
        assert all(torch.equal(found[name], drawn(2)[name]) for name in SHAPES), text
