"""mergekit's recipes, as its documentation writes them: read, and compared with what mergekit itself makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.cli.main import main
from posttrain.config.yaml_text import parse_yaml, plain
from posttrain.errors import ConfigError
from posttrain.merging.mergekit import recipe_of
from tests.pico import pico

Capture = pytest.CaptureFixture[str]
NEAR = 1e-5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base of four layers with a head of its own, and two models that differ from it."""
    return of_family("llama", tmp_path_factory.mktemp("models"))


def of_family(family: str, place: Path) -> dict[str, Path]:
    import transformers

    tokens = pico(family, place)
    config = transformers.AutoConfig.from_pretrained(tokens)
    config.num_hidden_layers, config.tie_word_embeddings = 4, False
    if hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * 4
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made = {}
    for number, name in enumerate(("base", "math", "code")):
        made[name] = place / name
        model.save_pretrained(made[name])
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (made[name] / file).write_bytes((tokens / file).read_bytes())
        held = load_file(made[name] / "model.safetensors")
        draw = torch.Generator().manual_seed(number)
        if number:
            held = {key: one + 0.02 * torch.randn(one.shape, generator=draw) for key, one in held.items()}
            save_file(held, made[name] / "model.safetensors", metadata={"format": "pt"})
    return made


def filled(text: str, models: Mapping[str, Path]) -> str:
    for name, path in models.items():
        text = text.replace(f"<{name}>", str(path))
    return text


def theirs(text: str, output: Path) -> dict[str, Tensor]:
    """Return what mergekit writes."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(plain(parse_yaml(text, "")))
    run_merge(config, str(output), MergeOptions(quiet=True, copy_tokenizer=False))
    return {name: one for path in output.glob("*.safetensors") for name, one in load_file(path).items()}


def ours(text: str, output: Path) -> dict[str, Tensor]:
    recipe = output.with_suffix(".yaml")
    recipe.write_text(text)
    assert main(["merge", str(recipe), "--output", str(output)]) == 0
    found: dict[str, Tensor] = load_file(output / "model.safetensors")
    return found


LINEAR = """
models:
  - model: <base>
    parameters:
      weight: 1.0
  - model: <math>
    parameters:
      weight: [0.3, 0.9]
  - model: <code>
    parameters:
      weight:
        - filter: mlp
          value: 0.5
        - value: 0.25
merge_method: linear
dtype: float32
"""
SLERP = """
slices:
  - sources:
      - model: <math>
        layer_range: [0, 4]
      - model: <base>
        layer_range: [0, 4]
merge_method: slerp
base_model: <base>
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float32
"""
GRADED = """
models:
  - model: <base>
  - model: <math>
merge_method: slerp
base_model: <base>
parameters:
  t: [0.1, 0.9]
dtype: float32
"""
TASK = """
models:
  - model: <math>
    parameters: {weight: 0.7}
  - model: <code>
    parameters: {weight: -0.4}
merge_method: task_arithmetic
base_model: <base>
parameters:
  lambda: 0.9
  int8_mask: true
dtype: float32
"""
TIES = """
models:
  - model: <math>
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: <code>
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: <base>
merge_method: ties
base_model: <base>
parameters:
  normalize: true
  int8_mask: true
dtype: float32
"""
BREADCRUMBS = """
merge_method: breadcrumbs
base_model: <base>
models:
  - model: <math>
    parameters: {weight: 0.8, density: 0.6, gamma: 0.05}
  - model: <code>
parameters: {weight: 0.5, density: 0.9}
dtype: float32
"""
STOCK = """
merge_method: model_stock
base_model: <base>
models: [{model: <math>}, {model: <code>}]
parameters: {filter_wise: true}
"""
NUSLERP = """
merge_method: nuslerp
models:
  - {model: <math>, parameters: {weight: 1}}
  - {model: <code>, parameters: {weight: 3}}
parameters: {nuslerp_flatten: false}
"""
FRANKEN = """
slices:
  - sources:
      - model: <math>
        layer_range: [0, 3]
  - sources:
      - model: <code>
        layer_range: [1, 4]
        parameters:
          scale:
            - filter: o_proj
              value: [0.0, 1.0]
            - value: 1.0
merge_method: passthrough
dtype: float32
"""
PART = """
slices:
  - sources:
      - {model: <base>, layer_range: [1, 4]}
      - {model: <math>, layer_range: [0, 3]}
merge_method: slerp
base_model: <base>
parameters: {t: [0, 1]}
"""
EVERY = {
    "linear": LINEAR,
    "slerp": SLERP,
    "slerp of a gradient": GRADED,
    "task_arithmetic": TASK,
    "ties": TIES,
    "breadcrumbs": BREADCRUMBS,
    "model_stock": STOCK,
    "nuslerp": NUSLERP,
    "passthrough": FRANKEN,
    "slerp of some layers": PART,
}
PAIR = "\nbase_model: <base>\nmodels: [{model: <math>}, {model: <code>}]\n"
ONE = "\nbase_model: <base>\nmodels: [{model: <math>}]\n"
EVERY |= {
    name: f"merge_method: {name}{models}parameters: {{{settings}}}\n"
    for name, models, settings in (
        ("sce", PAIR, "select_topk: 0.6, int8_mask: true"),
        ("breadcrumbs_ties", PAIR, "weight: 0.7, density: 0.8, gamma: 0.1"),
        ("multislerp", PAIR, "weight: [{filter: mlp, value: 0.3}, {value: 1}]"),
        ("karcher", PAIR, "max_iter: 20"),
        ("ram", PAIR, "epsilon: 0.01"),
        ("ramplus_tl", PAIR, "epsilon: 0.01, r: 0.3"),
        ("nearswap", ONE, "t: [0.001, 0.02]"),
        ("arcee_fusion", ONE, ""),
    )
}


@pytest.mark.parametrize("text", EVERY.values(), ids=EVERY)
def test_the_numbers_are_mergekits(text: str, models: dict[str, Path], tmp_path: Path) -> None:
    text = filled(text, models)
    expected, found = theirs(text, tmp_path / "theirs"), ours(text, tmp_path / "ours")
    assert expected.keys() == found.keys()
    for name, one in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.allclose(found[name], one, rtol=NEAR, atol=NEAR), name


def test_a_model_of_slices_loads(tmp_path: Path) -> None:
    """A list with a word for each layer is put together, too (there mergekit 0.1.5 fails)."""
    from transformers import AutoModelForCausalLM

    ours(filled(FRANKEN, of_family("qwen3", tmp_path / "models")), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == len(model.model.layers) == len(model.config.layer_types) == 6
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).shape == (1, 6)
    assert "passthrough: 6 layers of math, code" in (tmp_path / "out" / "README.md").read_text()


def test_dare_ties_is_mergekits_but_for_the_masks(models: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    text = """
merge_method: dare_ties
base_model: <base>
models:
  - model: <base>
    # no parameters necessary for base model
  - model: <math>
    parameters:
      density: 0.53
      weight: 0.4
  - model: <code>
    parameters:
      density: 0.53
      weight: 0.3
dtype: bfloat16
out_dtype: float32
tokenizer_source: union
chat_template: auto
"""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(filled(text, models))
    node = parse_yaml(recipe.read_text(), "")
    assert recipe_of(node, "recipe.yaml") == {
        "dtype": "float32",
        "tokenizer": "union",
        "models": {name: str(path) for name, path in models.items()},
        "base": "base",
        "method": {
            "kind": "dare_ties",
            "compat": "mergekit",
            "weight": {"math": 0.4, "code": 0.3},
            "density": {"math": 0.53, "code": 0.53},
            "scale": 1.0,
            "normalize": False,
            "rescale": True,
        },
    }
    assert main(["merge", str(recipe), "--check", "--set", "seed=3"]) == 0
    assert capsys.readouterr().out.startswith("fits     yes")


HEAD = "merge_method: ties\nbase_model: b\nmodels:\n  - model: a\n    parameters: {weight: 1}\n"
WRONG = {
    "a top-level normalize": (HEAD + "normalize: true\n", ":6: mergekit reads 'normalize' under parameters: only"),
    "a misspelt key": (HEAD + "dtyp: float32\n", ":6: unknown key 'dtyp'; did you mean 'dtype'?"),
    "a misspelt parameter": (HEAD + "parameters: {densty: 0.5}\n", ":6: unknown parameter 'densty'; did you mean"),
    "a misspelt method": (HEAD.replace("ties", "tise"), ":1: unknown method 'tise'; did you mean 'ties'?"),
    "a shared one of a model": (
        HEAD.replace("weight: 1", "weight: 1, lambda: 2"),
        ":5: mergekit does not read 'lambda' for a single model",
    ),
    "one of the base": (
        HEAD + "  - model: b\n    parameters: {weight: 1}\n",
        ":7: mergekit does not read 'weight' for the base",
    ),
    "no weight": (HEAD.replace("weight: 1", "density: 1"), "no weight of a; write it under parameters:"),
    "filters that leave tensors": (
        HEAD.replace("weight: 1", "weight: [{filter: mlp, value: 1}]"),
        ":5: no weight of a for tensors that no filter fits",
    ),
    "a filter with a star": (
        HEAD.replace("weight: 1", "weight: [{filter: '*.mlp', value: 1}, {value: 1}]"),
        ":5: mergekit's filter '*.mlp' is no pattern",
    ),
    "no base": (HEAD.replace("base_model: b\n", ""), "ties needs base_model:"),
    "a setting that does nothing": (HEAD + "parameters: {rescale: true}\n", ":6: rescale: ties does not read it"),
    "a built-in template": (HEAD + "chat_template: chatml\n", ":6: chat_template: mergekit's own 'chatml'"),
    "another model's tokenizer": (HEAD + "tokenizer_source: a\n", ":6: the merged model has the vocabulary of b"),
    "tokens by hand": (HEAD + "tokenizer: {tokens: {x: {source: a}}}\n", ":6: tokens: rows of single tokens"),
    "an adapter": (HEAD.replace("model: a", "model: a+c"), ":4: 'a+c': a model and an adapter"),
    "a revision": (HEAD.replace("model: a", "model: a@main"), ":4: 'a@main': a revision cannot be chosen"),
    "text for a number": (HEAD.replace("weight: 1", "weight: much"), ":5: a number is expected, got much"),
    "parts": ("merge_method: linear\nmodules: {}\n", ":2: modules: models of several parts"),
    "several slices": (
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
        + "  - sources: [{model: a, layer_range: [0, 1]}]\n  - sources: [{model: b, layer_range: [0, 1]}]\n",
        ":3: linear of several slices is not done",
    ),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_of(parse_yaml(text, "m.yaml"), "m.yaml")
    assert len(caught.value.problems) == 1
    assert f"m.yaml{said}" in str(caught.value) if said.startswith(":") else said in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    text = HEAD + "normalize: true\ndtyp: float32\n"
    with pytest.raises(ConfigError) as caught:
        recipe_of(parse_yaml(text, "m.yaml"), "m.yaml")
    assert [problem.location for problem in caught.value.problems] == ["m.yaml:6", "m.yaml:7"]


def test_models_get_names(tmp_path: Path) -> None:
    text = (
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a/7b-it}, {model: b/7b-it}, {model: c/x.y}]\n"
    )
    made = recipe_of(parse_yaml(text, "m.yaml"), "m.yaml")
    assert made["models"] == {"m_7b_it": "a/7b-it", "m_7b_it_2": "b/7b-it", "x_y": "c/x.y"}


def test_layers_that_are_not_there(models: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(filled(FRANKEN.replace("[1, 4]", "[1, 9]"), models))
    assert main(["merge", str(recipe), "--check"]) == 2
    assert "the layers 1 to 9 of code are not there; it has 4: from 0 to 4" in capsys.readouterr().err


def test_the_origin_is_noted(models: dict[str, Path], tmp_path: Path) -> None:
    ours(filled(TASK, models), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert told["method"]["weight"] == {"math": 0.7, "code": -0.4}
    assert list(told["models"]) == ["base", "math", "code"]
