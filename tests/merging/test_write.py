"""What is written: a folder that loads, with the configuration, tokenizer and template of the right parents."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.errors import ConfigError
from posttrain.merging.methods.linear import LinearConfig
from posttrain.merging.methods.task_arithmetic import TaskArithmeticConfig
from posttrain.merging.recipe import Recipe, planned
from posttrain.merging.terms import open_term
from posttrain.merging.write import template_of, write_merge
from posttrain.models.disk import alone_in
from tests.merging.folders import SHAPES, contents, folder, weights, written
from tests.merging.folders import planned as plan_of
from tests.pico import CHATML, MARKED

PicoPath = Callable[[str], Path]


@pytest.fixture(scope="module")
def parents(pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, which has no template, `math` and `chat`, which have one each; all in bfloat16."""
    home = tmp_path_factory.mktemp("parents")
    for seed, (name, template) in enumerate((("base", None), ("math", CHATML), ("chat", MARKED))):
        path = Path(shutil.copytree(pico_path("llama"), home / name))
        draw = torch.Generator().manual_seed(seed)
        tensors = load_file(path / "model.safetensors")
        changed = {n: (t + 0.1 * torch.randn(t.shape, generator=draw)).bfloat16() for n, t in tensors.items()}
        save_file(changed, path / "model.safetensors", {"format": "pt"})
        (path / "chat_template.jinja").unlink(missing_ok=True)
        if template:
            (path / "chat_template.jinja").write_text(template, encoding="utf-8")
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        config |= {"dtype": "float32", "_name_or_path": str(home / name)}
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        generation = {"eos_token_id": seed + 2, "transformers_version": "5"}
        (path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
        for more in ("README.md", "posttrain.json", "training_state.bin", "optimizer.pt"):
            (path / more).write_text(f"{{}} of {home}", encoding="utf-8")
    return home


def merged(parents: Path, output: Path, *names: str, **settings: Any) -> Path:
    """Write a merge of parents by their names, of the mean unless settings say more."""
    models = {name: str(parents / name) for name in names or ("base", "math", "chat")}
    recipe = Recipe.model_validate({"models": models, "method": {"kind": "linear"}, **settings})
    return write_merge(planned(recipe), output, recipe=recipe.noted(), template=recipe.template, say=lambda line: None)


def test_it_loads_as_a_model(parents: Path, tmp_path: Path) -> None:
    import transformers

    out = merged(parents, tmp_path / "out")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    state, found = model.state_dict(), weights(out)
    given = [weights(parents / name) for name in ("base", "math", "chat")]
    for name, tensor in found.items():
        assert torch.equal(state[name], tensor)
        mean = sum(one[name].double() for one in given) / 3
        assert isinstance(mean, torch.Tensor)
        assert torch.equal(tensor, mean.float().bfloat16()) or (tensor - mean).abs().max() < 1e-3
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.isfinite(model(torch.tensor([[1, 4, 70]])).logits).all()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == CHATML
    assert tokenizer("a")["input_ids"] == transformers.AutoTokenizer.from_pretrained(parents / "base")("a")["input_ids"]
    sharded = merged(parents, tmp_path / "shards", shard_gb=2e-5)
    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 2
    again: Any = transformers.AutoModelForCausalLM.from_pretrained(sharded)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_what_is_in_the_folder(parents: Path, tmp_path: Path) -> None:
    out = merged(parents, tmp_path / "out", template="chat", dtype="float16")
    assert {path.name for path in out.iterdir()} == {
        *("model.safetensors", "config.json", "generation_config.json", "README.md", "merge.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    before = json.loads((parents / "base" / "config.json").read_text(encoding="utf-8"))
    del before["_name_or_path"]
    assert config == {**before, "dtype": "float16"}
    told = json.loads((out / "merge.json").read_text(encoding="utf-8"))
    assert (told["template"], told["dtype"], told["seed"]) == ("chat", "float16", 0)
    assert told["method"] == {"kind": "linear", "weight": 1.0, "normalize": True}
    assert [one["name"] for one in told["models"].values()] == ["base", "math", "chat"]
    assert len({one["samples_sha256"] for one in told["models"].values()}) == 3
    for name, text in contents(out).items():
        assert str(tmp_path).encode() not in text, name
        assert str(parents).encode() not in text, name
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "- `math`: math\n" in card
    assert {oct(path.stat().st_mode & 0o777) for path in out.iterdir()} == {oct(0o666 & ~umask())}


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_the_card_names_base_and_notes(tmp_path: Path) -> None:
    folders = {name: folder(tmp_path / name, seed) for seed, name in enumerate(("base", "math"))}
    save_file(weights(folders["math"]) | {"more": torch.ones(1)}, folders["math"] / "model.safetensors")
    out = written(plan_of(TaskArithmeticConfig(), folders, base="base"), tmp_path / "out")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "`task_arithmetic`. `base` is the base.\n" in card
    assert "Decided:\n\n- math has more besides: left out\n" in card


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None])
def test_the_type_is_written_where_it_stood(key: str | None, tmp_path: Path) -> None:
    said = {} if key is None else {key: "float32"}
    one = folder(tmp_path / "one", 0, **said)
    out = written(plan_of(LinearConfig(), {"one": one}, dtype="bfloat16"), tmp_path / "out")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert {name for name in config if "dtype" in name} == {key or "dtype"}
    assert config[key or "dtype"] == "bfloat16"


# ---- templates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "settings", "template", "eos"),
    [
        (("base", "math", "chat"), {}, CHATML, 3),
        (("base", "chat", "math"), {}, MARKED, 4),
        (("base", "math", "chat"), {"template": "chat"}, MARKED, 4),
        (("math", "chat"), {}, CHATML, 3),
        (("math", "chat"), {"template": "chat"}, MARKED, 4),  # though the first one has a template, too
        (("math", "chat"), {"template": "math"}, CHATML, 3),
        (("base",), {}, None, 2),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_the_template_of_the_right_parent(
    names: tuple[str, ...], settings: dict[str, Any], template: str | None, eos: int, inside: bool,
    parents: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Templates are in a file, or, as older models have them, in tokenizer_config.json."""
    import transformers

    if inside:
        parents = Path(shutil.copytree(parents, tmp_path / "parents"))
        for path in parents.glob("*/tokenizer_config.json"):
            config = json.loads(path.read_text(encoding="utf-8"))
            file = path.with_name("chat_template.jinja")
            config["chat_template"] = file.read_text(encoding="utf-8") if file.is_file() else None
            if path.parent.name != "math":  # so that there is one of each sort
                file.unlink(missing_ok=True)
            path.write_text(json.dumps(config), encoding="utf-8")
    out = merged(parents, tmp_path / "out", *names, **settings)
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == template
    assert json.loads((out / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == eos


def test_templates_that_are_not_there(parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = {name: open_term(str(parents / name)) for name in ("base", "math")}
    assert (template_of(terms), template_of({"base": terms["base"]})) == ("math", "base")
    with pytest.raises(ConfigError, match="template: unknown name 'x'; known: base, math"):
        template_of(terms, "x")
    monkeypatch.setattr("posttrain.merging.write.run", None)  # told before anything is computed
    with pytest.raises(ConfigError, match="template: base has no chat template; name another model"):
        merged(parents, tmp_path / "out", template="base")
    assert not list(tmp_path.iterdir())


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two models."""
    return {name: folder(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}


def test_a_folder_with_other_things_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    made = plan_of(LinearConfig(), folders)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("dear", encoding="utf-8")
    before = contents(tmp_path)
    for name in ("letters", "letters/mine.txt"):
        with pytest.raises(ConfigError, match="it holds other things than a model; choose a new or an empty folder"):
            written(made, tmp_path / name)
    assert contents(tmp_path) == before


def test_a_model_that_is_merged_is_not_overwritten(folders: dict[str, Path], tmp_path: Path) -> None:
    inner = Path(shutil.copytree(folders["two"], folders["one"] / "checkpoints" / "two"))
    (tmp_path / "link").symlink_to(folders["one"])
    before = contents(tmp_path)
    for given, output in (
        (folders, folders["one"]),
        (folders, folders["two"]),
        (folders, tmp_path / "link"),
        ({"one": inner, "two": folders["two"]}, folders["one"]),  # it would be gone with the folder around it
    ):
        with pytest.raises(ConfigError, match="it is, or it contains, one of the models that are merged"):
            written(plan_of(LinearConfig(), given), output)
    assert contents(tmp_path) == before


def test_an_older_model_is_replaced_as_a_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    made = plan_of(LinearConfig(), folders)
    expected = contents(written(made, tmp_path / "new"))
    old = folder(tmp_path / "old", 7)
    (old / "more.txt").write_text("gone", encoding="utf-8")
    shutil.copytree(old, tmp_path / ".tmp-old-old")  # an earlier process was killed while it deleted this
    assert contents(written(made, old)) == expected
    (tmp_path / "empty").mkdir()
    assert contents(written(made, tmp_path / "empty")) == expected
    assert contents(written(made, tmp_path / "a" / "b" / "deep")) == expected
    assert not list(tmp_path.rglob(".*"))


def test_between_two_renames_the_old_model_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    """An earlier process was killed there; an error now does not lose it."""
    old = folder(tmp_path / ".tmp-old-out", 7)
    before = contents(old)
    save_file({"x": torch.tensor([float("nan")])}, folders["one"] / "extra.safetensors")
    made = plan_of(LinearConfig(), {"one": folders["one"]})
    with pytest.raises(Exception, match="nan"):
        written(made, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_the_working_folder(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = plan_of(LinearConfig(), folders)
    written(made, Path())
    monkeypatch.chdir(tmp_path / "here")
    assert weights(tmp_path / "here").keys() == SHAPES.keys()


def test_a_link_to_a_folder_stays_one(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    written(plan_of(LinearConfig(), folders), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert weights(tmp_path / "elsewhere").keys() == SHAPES.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "link", "elsewhere"}


def test_two_processes_at_once(folders: dict[str, Path], tmp_path: Path) -> None:
    made = plan_of(LinearConfig(), folders)
    with alone_in(tmp_path / "out"):
        child = os.fork()
        if not child:  # pragma: no cover
            code = 1
            try:
                written(made, tmp_path / "out")
            except ConfigError as error:
                code = 7 if "another process is writing it" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert written(made, tmp_path / "out").is_dir()


def test_code_of_the_models_own_is_copied(folders: dict[str, Path], tmp_path: Path) -> None:
    (folders["one"] / "modeling_toy.py").write_text("TOY = 1\n", encoding="utf-8")
    out = written(plan_of(LinearConfig(), folders), tmp_path / "out")
    assert (out / "modeling_toy.py").read_text(encoding="utf-8") == "TOY = 1\n"
