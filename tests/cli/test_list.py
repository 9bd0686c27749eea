from __future__ import annotations

import json
import re

import pytest

from posttrain import registry
from posttrain.cli.list_settings import settings_of
from posttrain.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["list", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_every_kind_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--json")
    assert code == 0
    listed = {(row["seam"], row["kind"]) for row in json.loads(out)}
    assert listed == {(seam, kind) for seam in registry.SEAMS for kind in registry.kinds(seam)}
    code, out, _ = run(capsys)
    assert {kind for _, kind in listed} <= set(out.split())


@pytest.mark.parametrize("word", ["tuner", "tuners", "TUNERS"])
def test_one_registry(capsys: pytest.CaptureFixture[str], word: str) -> None:
    code, out, _ = run(capsys, word, "--json")
    assert code == 0
    assert {row["seam"] for row in json.loads(out)} == {"tuner"}


def test_an_unknown_registry(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "tunrs")
    assert (code, out) == (2, "")
    assert "no registry 'tunrs'; known: methods, objectives, tuners, replay, penalties" in err


@pytest.mark.parametrize(
    ("file", "key", "words"),
    [
        ("study", "methods", "What is compared"),
        ("change", "target", "What should change"),
        ("train", "optimizer", "Optimiser"),
        ("exams", "exams", "a list of kinds"),
    ],
)
def test_schemas_have_help_and_whole_references(
    capsys: pytest.CaptureFixture[str], file: str, key: str, words: str
) -> None:
    code, out, _ = run(capsys, "--schema", file)
    assert code == 0
    schema = json.loads(out)
    assert words in schema["properties"][key]["description"]
    assert schema["additionalProperties"] is False
    assert set(re.findall(r"#/\$defs/([\w-]+)", out)) <= set(schema.get("$defs", {}))


def test_the_study_schema_knows_what_each_kind_takes(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--schema", "study")
    methods = json.loads(out)["properties"]["methods"]["items"]["anyOf"]
    train = next(option for option in methods if option.get("properties", {}).get("kind", {}).get("const") == "train")
    replays = [o for o in train["properties"]["replay"]["anyOf"] if "properties" in o]
    assert {o["properties"]["kind"]["const"] for o in replays} == set(registry.kinds("replay"))


# ---- the settings of one kind ----------------------------------------------------------------------------------------


def test_the_settings_of_a_kind_have_the_defaults_that_it_gives_them(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "editors", "memit", "--json")
    assert code == 0
    settings = {row.pop("key"): row for row in json.loads(out)}
    assert settings["target.clamp"]["default"] == "0.75"  # of rome it is 4
    assert settings["target.steps"]["takes"] == "integer >= 1"
    assert settings["layers"] == {
        "takes": "auto | [integer, ...]",
        "default": "auto",
        "help": settings["layers"]["help"],
    }
    assert "posttrain trace" in settings["layers"]["help"]
    code, out, err = run(capsys, "editors", "memit")
    assert code == 0
    assert set(settings) <= set(out.split())
    assert "arXiv:2210.07229" in err


def test_what_must_be_given_and_what_a_list_holds() -> None:
    settings = settings_of(registry.load("respondent", "api").config)
    assert [one.key for one in settings if one.default is None] == ["model"]
    penalty = next(one for one in settings_of(registry.load("method", "train").config) if one.key == "penalty")
    assert penalty.takes == f"[{' | '.join(registry.kinds('penalty'))} | {{...}}, ...]"


def test_every_setting_of_every_kind_has_its_help() -> None:
    for seam in registry.SEAMS:
        for kind in registry.kinds(seam):
            settings = settings_of(registry.load(seam, kind).config)
            assert [one.key for one in settings if not one.help or not one.takes] == [], (seam, kind)


def test_an_unknown_kind(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "editors", "mem")
    assert (code, out) == (2, "")
    assert err == "list editors: unknown editor 'mem'; did you mean 'memit'?\n"
