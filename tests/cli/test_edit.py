"""`posttrain edit`: writing, listing, going on, taking back, dry runs, JSON and errors, on a small random model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.cli.main import main
from posttrain.editing.session import EditSession
from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from tests.editing.lively import bits, changed, lively_folder, texts

FRANCE = """\
name: france
target:
  - {prompt: "The capital of France", answer: title, subject: France}
"""
MORE = """\
name: more
target:
  - {prompt: "The currency of Japan", answer: of, subject: Japan}
  - {prompt: "誰是臺灣", answer: 山, subject: 臺灣}
"""
PLACE = ("--set", "layers=[0]", "--set", "forms=[raw]")
QUICK = (*PLACE, "--set", "contexts=0", "--set", "target={steps: 15, learning_rate: 1.0, clamp: 10.0}")
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, two change files and a cache. Second moments are measured on random ids."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("posttrain.editing.session.own_texts", lambda *given, **named: texts())
    shutil.copytree(lively_folder(), tmp_path / "base")
    (tmp_path / "france.yaml").write_text(FRANCE, encoding="utf-8")
    (tmp_path / "more.yaml").write_text(MORE, encoding="utf-8")
    return tmp_path


def edit(*words: str) -> int:
    return main(["edit", *words])


def made(*words: str, output: str = "edits", batch: int | None = None) -> None:
    """Write a folder of edits, `edits` with those of all files by default."""
    size = () if batch is None else ("--batch", str(batch))
    assert edit("base", *(words or ("*.yaml",)), "-o", output, *size, *QUICK) == 0


def rows(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "edits.jsonl").read_text(encoding="utf-8").splitlines()]


def subjects(folder: str) -> list[tuple[int, str]]:
    return [(row["number"], row["subject"]) for row in rows(folder)]


def batches(folder: str) -> list[list[int]]:
    config = json.loads(Path(folder, "adapter_config.json").read_text(encoding="utf-8"))
    return [one["numbers"] for one in config["settings"]["batches"]]


def says(folder: str, prompt: str, tokens: int = 1) -> str:
    respondent = ModelRespondent(load_model(folder, device="cpu"))
    return respondent.answers([Plain(prompt)], max_new_tokens=tokens)[0].text.strip()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def loss_of(folder: str) -> float:
    """The mean loss of the texts on which harm is measured, of the model in a folder."""
    return EditSession(load_model(folder, device="cpu"), say=lambda line: None).harm().after


# ---- what it does ----------------------------------------------------------------------------------------------------


def test_edits_are_written_and_load_as_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(here / "base")
    made("france.yaml")
    told = capsys.readouterr()
    assert told.out == "edits\n"
    nats = rows("edits")[0]["figures"]["nats"]
    assert f"1 of 1 new edits are said now ({nats:.2f} nats per token); edits in the folder: 1\n" in told.err
    shown = told.err.splitlines()
    heads = next(i for i, line in enumerate(shown) if line.split() == ["said", "prompt", "before", "wanted", "now"])
    assert shown[heads + 1].split()[0] == "yes"
    assert rows("edits")[0]["said"] == {
        "before": says("base", "The capital of France", 32), "now": says("edits", "The capital of France", 32), "right": True,
    }  # fmt: skip
    now = f"{loss_of('base'):.3f} before all edits, {loss_of('edits'):.3f} nats per token now"
    assert f"loss on other texts: {now}" in told.err
    assert told.err.endswith(
        "try it: posttrain chat edits\nwhat else has changed: posttrain exam edits --change FILE\n"
    )
    (row,) = rows("edits")
    assert (row["number"], row["prompt"], row["subject"], row["answer"], row["editor"], row["location"]) == (
        *(0, "The capital of France", "France", "title", "memit", "france.yaml:3 (change france, target 1)"),
    )
    assert says("edits", "The capital of France") == "title" != says("base", "The capital of France")
    untouched = bits(load_model("base", device="cpu").model)
    assert changed(load_model("edits", device="cpu").model, untouched) == {DOWN}
    assert files(here / "base") == before


def test_an_editor_is_chosen_and_a_batch_is_solved_together(capsys: pytest.CaptureFixture[str]) -> None:
    made(output="together")
    assert batches("together") == [[0, 1, 2]]
    assert edit("base", "*.yaml", "-o", "two", "--batch", "2", "-e", "rome", *QUICK) == 0
    assert batches("two") == [[0, 1], [2]]
    assert {row["editor"] for row in rows("two")} == {"rome"}
    assert "of 3 new edits are said now" in capsys.readouterr().err


def test_a_folder_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    made()
    capsys.readouterr()
    assert edit("edits", "--list") == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].split() == ["number", "subject", "answer", "said", "editor", "nats", "share", "prompt"]
    figures = rows("edits")[1]["figures"]
    assert lines[2].split() == [
        *(
            "1",
            "Japan",
            "of",
            "yes" if rows("edits")[1]["said"]["right"] else "no",
            "memit",
            f"{figures['nats']:.2f}",
            f"{figures['share']:.3f}",
            "The",
            "currency",
            "of",
        ),
        "Japan",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2"]
    assert "臺灣" in lines[3]
    assert told.err == (
        "said: whether the model gives the answer; nats: loss of the answer per token where it was searched; share: norm "
        "of the change over the norm of the weights\n"
    )
    assert edit("edits", "--list", "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == rows("edits")
    assert told.err == ""


def test_a_folder_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("france.yaml")
    first = files(here / "edits")
    assert edit("edits", "more.yaml", "-o", "all", *QUICK) == 0
    assert "of 2 new edits are said now" in (err := capsys.readouterr().err)
    assert "; edits in the folder: 3" in err
    assert subjects("all") == [(0, "France"), (1, "Japan"), (2, "臺灣")]
    assert batches("all") == [[0], [1, 2]]
    assert files(here / "edits") == first
    for prompt, answer in (("The capital of France", "title"), ("The currency of Japan", "of"), ("誰是臺灣", "山")):
        assert says("all", prompt) == answer
    assert edit("edits", "more.yaml", "-o", "edits", *QUICK) == 0  # over itself
    assert files(here / "edits") == files(here / "all")


def test_edits_are_taken_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made()
    whole = files(here / "edits")
    capsys.readouterr()
    assert edit("edits", "--undo", "0", "--undo", "2", "-o", "less") == 0
    told = capsys.readouterr()
    assert told.out == "less\n"
    assert "edits taken back: 0, 2\n" in told.err
    now = f"{loss_of('base'):.3f} before all edits, {loss_of('less'):.3f} nats per token now"
    assert f"loss on other texts: {now}" in told.err
    assert f"{loss_of('less'):.3f}" != f"{loss_of('edits'):.3f}"
    assert subjects("less") == [(1, "Japan")]
    assert says("less", "The capital of France") == says("base", "The capital of France")
    assert edit("edits", "--undo", "all", "-o", "none") == 0
    assert "all edits are taken back\n" in capsys.readouterr().err
    assert rows("none") == []
    assert not changed(load_model("none", device="cpu").model, bits(load_model("base", device="cpu").model))
    assert files(here / "edits") == whole


def test_what_is_taken_back_makes_room_for_new_edits() -> None:
    made("more.yaml")
    assert edit("edits", "france.yaml", "--undo", "0", "--undo", "0", "-o", "other", *QUICK) == 0
    assert subjects("other") == [(1, "臺灣"), (2, "France")]


def test_facts_are_forgotten() -> None:
    assert edit("base", "*.yaml", "--forget", "unknown", "-o", "edits", *QUICK) == 0
    assert [row["answer"] for row in rows("edits")] == ["I don't know.", "I don't know.", "我不知道。"]
    assert [row["location"] for row in rows("edits")] == [
        *("france.yaml:3 (change france, target 1)", "more.yaml:3 (change more, target 1)"),
        "more.yaml:4 (change more, target 2)",
    ]


@pytest.mark.parametrize("words", [["base", "*.yaml"], ["base", "*.yaml", "-o", "out"]])
def test_a_dry_run_writes_nothing(words: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(here)
    assert edit(*words, "--dry-run", "--batch", "2", *QUICK) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[:4] == [
        "edits       3 (batches: 2; rows of each edit: 1)",
        "editor      memit",
        f"matrices    {DOWN}",
        "forms       raw",
    ]
    assert re.fullmatch("time        about .* s, without second moments that are not cached", told.out.splitlines()[4])
    assert edit(*words, "--dry-run", "--json", *QUICK) == 0
    seen = json.loads(capsys.readouterr().out)
    assert 0 < seen.pop("wall_s") < 60
    assert seen == {
        "taken_back": 0,
        "edits": 3,
        "batches": 1,
        "rows": 1,
        "weights": [DOWN],
        "forms": ["raw"],
    }
    assert files(here) == before


def test_a_dry_run_of_taking_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made()
    before = files(here)
    capsys.readouterr()
    assert edit("edits", "--undo", "1", "--dry-run") == 0
    assert capsys.readouterr().out == "taken back  1\n"
    assert edit("edits", "france.yaml", "--undo", "all", "--dry-run", "--json", *QUICK) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["taken_back"], seen["edits"]) == (3, 1)
    assert edit("edits", "--undo", "7", "--dry-run") == 2
    assert capsys.readouterr().err == "undo: there is no edit 7; edits here: 0 to 2\n"
    assert files(here) == before


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert edit("base", "*.yaml", "-o", "edits", "--batch", "1", "--json", *QUICK) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["output"] == "edits"
    assert told["edits"] == rows("edits")
    before, after = (pytest.approx(loss_of(name), abs=1e-6) for name in ("base", "edits"))
    assert told["loss_on_other_texts"] == {"untouched": before, "before": before, "after": after}
    assert edit("edits", "--undo", "2", "-o", "less", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    now = pytest.approx(loss_of("less"), abs=1e-6)
    assert told["loss_on_other_texts"] == {"untouched": before, "before": after, "after": now}
    assert edit("edits", "--undo", "9", "-o", "less", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "error": "undo: there is no edit 9; edits here: 0 to 2",
        "exit_code": 2,
        "problems": [{"place": "undo", "cause": "there is no edit 9", "mend": "edits here: 0 to 2"}],
    }


def test_an_edit_that_would_break_the_model(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("posttrain.editing.session.HARM_NATS", -9.0)  # a random model knows nothing that could break
    assert edit("base", "france.yaml", "-o", "edits", *QUICK) == 1
    told = capsys.readouterr()
    assert re.search(
        r"france.yaml:3 \(change france, target 1\): the edit would break the model: the loss on other texts rises from "
        r"\d\.\d\d to \d\.\d\d nats per token, its change is [\d.]+ of the weights' norm, key alignment [\d.]+, "
        r"condition 1; edit another layer, smaller batches or with another editor; --force writes it all the same\n$",
        told.err,
    )
    assert told.out == ""
    assert not (here / "edits").exists()
    assert edit("base", "france.yaml", "-o", "edits", "--force", *QUICK) == 0
    assert "; written all the same (force)" in capsys.readouterr().err
    assert says("edits", "The capital of France") == "title"


def test_it_speaks_chinese(capsys: pytest.CaptureFixture[str]) -> None:
    assert edit("base", "*.yaml", "-o", "edits", "--language", "zh-TW", *QUICK) == 0
    told = capsys.readouterr()
    assert "3 個新編輯中，現在說得出來的有" in told.err
    assert edit("edits", "--undo", "1", "-o", "less", "--language", "zh-TW") == 0
    assert "已收回編輯：1\n" in capsys.readouterr().err
    assert edit("edits", "--undo", "1", "--dry-run", "--language", "zh-TW") == 0
    assert capsys.readouterr().out == "收回        1\n"
    Path("bad.yaml").write_text(FRANCE.replace(", subject: France", ""), encoding="utf-8")
    assert edit("base", "bad.yaml", "-o", "x", "--language", "zh-TW") == 2
    assert "這個編輯沒有指明主詞；寫明事實說的是提示裡的哪些字" in capsys.readouterr().err


# ---- what is wrong ---------------------------------------------------------------------------------------------------

LINE = FRANCE.splitlines()[2].strip().removeprefix("- ")
AT = "bad.yaml:3 (change france, target 1): "
BAD_FILES = {
    "a subject that is not in the prompt": (
        *(LINE.replace("subject: France", "subject: Japan"), 2),
        "bad.yaml:3: target.0: the subject 'Japan' does not stand in the prompt; name words of the prompt, letter by "
        "letter",
    ),
    "no subject": (
        *(LINE.replace(", subject: France", ""), 2),
        f"{AT}the edit names no subject; write which words of the prompt the fact is about: subject: ...; ultraedit and "
        "locft need none",
    ),
    "an empty answer": (
        *(LINE.replace("title", '" "'), 2),
        "bad.yaml:3: target.0.answer: an answer is empty, got ' '",
    ),
    "an answer of two lines": (
        *(LINE.replace("title", '"one\\ntwo"'), 2),
        f"{AT}the answer has several lines; an editor writes one short statement; give one line, or teach it with "
        "kind: train",
    ),
    "no answer": (LINE.replace("answer: title, ", ""), 2, "bad.yaml:3: target.0: a target needs an 'answer'"),
}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["real", "dry"])
@pytest.mark.parametrize(("target", "code", "told"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_target_that_is_no_edit(
    target: str, code: int, told: str, dry: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "bad.yaml").write_text(f"name: france\ntarget:\n  - {target}\n", encoding="utf-8")
    assert edit("base", "bad.yaml", "-o", "edits", *dry) == code
    assert capsys.readouterr().err == f"{told}\n"
    assert not (here / "edits").exists()


def test_all_bad_targets_are_named_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (LINE, LINE.replace(", subject: France", ""), LINE.replace("title", '"one\\ntwo"'))
    (here / "bad.yaml").write_text("name: a\ntarget:\n" + "".join(f"  - {one}\n" for one in lines), encoding="utf-8")
    assert edit("base", "bad.yaml", "-o", "edits") == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in told] == [f"bad.yaml:{n} (change a, target {n - 2})" for n in (4, 5)]


TO_LAYERS = (
    "editor memit: layers: there is no layer {}: LlamaForCausalLM has layers 0 to 1; see: posttrain trace MODEL FACTS"
)
HOLDS = "it holds other things than edits; choose a new or an empty folder"
NO_FOLDER = "base is no folder of edits; name the folder that `posttrain edit` wrote"
WORDS: dict[str, tuple[list[str], int, str]] = {
    "a layer too far": (["base", "france.yaml", "-o", "x", "--set", "layers=[99]"], 2, TO_LAYERS.format(99)),
    "a layer before all": (["base", "france.yaml", "-o", "x", "--set", "layers=[-3]"], 2, TO_LAYERS.format(-3)),
    "a layer that is no number": (
        *(["base", "france.yaml", "-o", "x", "--set", "layers=[first]"], 2),
        "--set: layers: input should be 'auto'\n--set: layers.0: a whole number is expected, got 'first'",
    ),
    "no output": (["base", "france.yaml"], 2, "--output: no folder for the edits; say it: --output edits/mine"),
    "no output to take back": (
        *(["edits", "--undo", "0"], 2),
        "--output: no folder for the edits; say it: --output edits/mine",
    ),
    "an output that is a model": (["base", "france.yaml", "-o", "base"], 2, f"base: {HOLDS}"),
    "an output with other files": (["base", "france.yaml", "-o", "."], 2, f".: {HOLDS}"),
    "an output that is a file": (["base", "france.yaml", "-o", "more.yaml"], 2, f"more.yaml: {HOLDS}"),
    "a list of a model": (["base", "--list"], 2, f"--list: {NO_FOLDER}"),
    "a list of what is not there": (
        *(["./nowhere", "--list"], 3),
        "./nowhere: no such model folder; give a folder, a .gguf file, a hub id or pocket:chat",
    ),
    "a list and more": (
        *(["edits", "more.yaml", "--list"], 2),
        "--list: it only shows what the folder holds; leave out CHANGES and --undo",
    ),
    "taking back from a model": (["base", "--undo", "0", "-o", "x"], 2, f"--undo: {NO_FOLDER}"),
    "taking back what is not there": (
        *(["edits", "--undo", "7", "-o", "x"], 2),
        "undo: there is no edit 7; edits here: 0 to 0",
    ),
    "taking back a name": (
        *(["edits", "--undo", "France", "-o", "x"], 2),
        "--undo: 'France' is no number of an edit; see: posttrain edit FOLDER --list",
    ),
    "an unknown editor": (
        *(["base", "france.yaml", "-o", "x", "--editor", "memitt"], 2),
        "--editor: unknown editor 'memitt'; did you mean 'memit'?",
    ),
    "an unknown key": (
        *(["base", "france.yaml", "-o", "x", "--set", "wieght=1"], 2),
        "--set: unknown key 'wieght'; did you mean 'weight'?",
    ),
    "an unknown key within": (
        *(["base", "france.yaml", "-o", "x", "--set", "target.stps=1"], 2),
        "--set: unknown key 'stps'; did you mean 'steps'?",
    ),
    "a value out of bounds": (
        *(["base", "france.yaml", "-o", "x", "--set", "weight=0"], 2),
        "--set: weight: input should be greater than 0, got 0",
    ),
    "nothing to do": (
        *(["base", "-o", "x"], 2),
        "CHANGES: no edits are named; name change files: posttrain edit MODEL changes/*.yaml",
    ),
    "no such file": (
        *(["base", "none.yaml", "-o", "x"], 3),
        "CHANGES: no file matches 'none.yaml'; looked for none.yaml",
    ),
    "no such model": (
        *(["./nowhere", "france.yaml", "-o", "x"], 3),
        "./nowhere: no such model folder; give a folder, a .gguf file, a hub id or pocket:chat",
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one edit of the lively model."""
    from posttrain.editing.folders import load_to_edit, save_session
    from tests.editing.lively import EDIT, editor, session

    home = tmp_path_factory.mktemp("written")
    of = session(load_to_edit(str(lively_folder()), device="cpu"), home / "cache")
    of.apply([EDIT], editor("memit", contexts=0))
    save_session(of, home / "edits")
    return home / "edits"


@pytest.mark.parametrize(("words", "code", "told"), WORDS.values(), ids=WORDS)
def test_what_it_cannot(
    words: list[str], code: int, told: str, written: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(written, here / "edits")
    before = files(here)
    assert edit(*words) == code
    said = capsys.readouterr()
    assert said.err == f"{told}\n"
    assert said.out == ""
    assert {name: data for name, data in files(here).items() if not name.startswith("cache")} == before


@pytest.mark.parametrize("words", [["--undo", "0"], ["more.yaml", *QUICK]], ids=["undo", "more"])
def test_edits_of_a_base_that_has_changed_are_refused(
    words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("france.yaml")
    weights = load_file(here / "base" / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"] *= 1.5
    save_file(weights, here / "base" / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    for dry in ([], ["--dry-run"]):
        assert edit("edits", *words, "-o", "other", *dry) == 1
        base = re.escape(str((here / "base").resolve()))
        assert re.fullmatch(
            rf"edits: the adapter was trained on another base than '{base}': its fingerprint is [\da-f]{{16}}, the "
            r"adapter's [\da-f]{16}; put the model it was trained on where adapter_config.json says "
            r"\(base_model_name_or_path\)\n",
            capsys.readouterr().err,
        )
    assert not (here / "other").exists()
    assert edit("edits", "--list") == 0  # which needs no base


def test_numbers_that_are_none_in_the_cache_are_measured_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("france.yaml")
    assert "second moments (layers: 1) from" in capsys.readouterr().err
    (path,) = (here / "cache" / "moments").iterdir()
    whole = load_file(path)
    made("france.yaml", output="again")
    assert "second moments" not in capsys.readouterr().err
    save_file({**whole, "matrix": whole["matrix"].index_fill(0, torch.tensor([3]), float("nan"))}, path)
    made("france.yaml", output="third")
    assert "second moments (layers: 1) from" in capsys.readouterr().err
    assert torch.equal(load_file(path)["matrix"], whole["matrix"])
    assert files(here / "third") == files(here / "again") == files(here / "edits")


@pytest.mark.parametrize("name", [DOWN, "model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"])
def test_numbers_that_are_none_in_the_model(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(here / "base" / "model.safetensors")
    weights[name].view(-1)[:3] = float("nan")
    save_file(weights, here / "base" / "model.safetensors", metadata={"format": "pt"})
    assert edit("base", "france.yaml", "-o", "edits", *QUICK) == 1
    assert capsys.readouterr().err == (
        "the model gives no finite logits: its weights are broken (training may have diverged)\n"
    )
    assert not (here / "edits").exists()
    assert not (here / "cache").exists()
