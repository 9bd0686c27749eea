from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from posttrain.config.base import ByKind, Config
from posttrain.config.load import apply_sets, find_files, load_yaml, parse_value, read_text
from posttrain.errors import ConfigError, MissingError


class Inner(Config):
    learning_rate: float = Field(default=1e-4, gt=0)
    """How fast."""
    max_steps: int | None = None
    """How long."""


class Outer(Config):
    name: str
    """What it is called."""
    optimizer: Inner = Inner()
    """How it moves."""
    parts: tuple[Inner, ...] = Field(default=(), max_length=3)
    """Several."""
    tuner: Annotated[Config, ByKind("tuner")] | None = None
    """Which parameters."""


def problems(tmp_path: Path, text: str, sets: tuple[str, ...] = ()) -> list[str]:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, Outer, sets)
    return [str(p).replace(f"{tmp_path}/", "") for p in caught.value.problems]


def test_every_problem_at_once_with_its_line(tmp_path: Path) -> None:
    text = "nam: x\noptimizer:\n  learning_rte: 1\n  max_steps: many\nparts:\n- {max_steps: 1}\n- learning_rate: -1\n"
    assert problems(tmp_path, text) == [
        "x.yaml:1: 'name' is missing",
        "x.yaml:1: unknown key 'nam'; did you mean 'name'?",
        "x.yaml:3: unknown key 'learning_rte'; did you mean 'learning_rate'?",
        "x.yaml:4: optimizer.max_steps: a whole number is expected, got 'many'",
        "x.yaml:7: parts.1.learning_rate: input should be greater than 0, got -1",
    ]


def test_a_part_chosen_by_kind_has_lines_and_suggestions_too(tmp_path: Path) -> None:
    text = "name: x\ntuner:\n  kind: lora\n  rnk: 8\n"
    assert problems(tmp_path, text) == ["x.yaml:4: unknown key 'rnk'; did you mean 'rank'?"]
    assert problems(tmp_path, "name: x\ntuner: loar\n")[0].startswith(
        "x.yaml:2: tuner: unknown tuner 'loar'; did you mean"
    )


def test_a_key_like_nothing_gets_the_list(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: x\nzzz: 1\n") == [
        "x.yaml:2: unknown key 'zzz'; known keys: name, optimizer, parts, tuner"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "x.yaml:1: the file is empty"),
        ("# only a comment\n", "x.yaml:1: the file is empty"),
        ("- a\n- b\n", "x.yaml:1: a mapping (key: value) is expected, got a list"),
        (
            "name: x\n\toptimizer: y\n",
            "x.yaml:2: not valid YAML: found character '\\t' that cannot start any token; indent with",
        ),
        ("name: [x\n", "x.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("name: x\nname: y\n", "x.yaml:2: not valid YAML: found duplicate key"),
        ("name: x\noptimizer: fast\n", "x.yaml:2: optimizer: a mapping (key: value) is expected, got 'fast'"),
        ("name: x\nparts: 5\n", "x.yaml:2: parts: a list is expected, got 5"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    assert problems(tmp_path, text)[0].startswith(expected)


def test_bom_and_crlf_and_either_indentation_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeffname: 玉山\r\noptimizer:\r\n    learning_rate: 1e-3\r\n".encode())
    config = load_yaml(path, Outer)
    assert config.name == "玉山"
    assert config.optimizer.learning_rate == 1e-3


def test_lines_are_right_with_crlf(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: x\r\n\r\nnope: 1\r\n")[0].startswith("x.yaml:3: unknown key 'nope'")


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"name: x\nnote: \xa5\x5c\n")
    with pytest.raises(ConfigError, match=r"x\.yaml:2: not UTF-8; it looks like Big5; save it as UTF-8"):
        read_text(path)


def test_a_missing_file_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("", encoding="utf-8")
    with pytest.raises(MissingError, match=r"no such file; did you mean '.*study\.yaml'\?"):
        read_text(tmp_path / "studdy.yaml")
    with pytest.raises(ConfigError, match="is a folder, a file is expected; name a file in it"):
        read_text(tmp_path)


def test_sets_reach_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nparts: [{max_steps: 1}]\ntuner: full\n", encoding="utf-8")
    sets = ("optimizer.learning_rate=1e-3", "parts.0.max_steps=7", "tuner.kind=lora", "tuner.rank=4", "name=a=b")
    config = load_yaml(path, Outer, sets)
    assert config.optimizer.learning_rate == 1e-3
    assert config.parts[0].max_steps == 7
    assert config.tuner is not None
    assert config.tuner.model_dump()["rank"] == 4
    assert config.name == "a=b"


def test_a_list_is_reached_by_the_names_in_it() -> None:
    node = {"methods": [{"name": "full", "lr": 1}, {"name": "lora", "lr": 1}]}
    apply_sets(node, ["methods.lora.lr=5", "models=[a/b, pocket:chat]"])
    assert node == {"methods": [{"name": "full", "lr": 1}, {"name": "lora", "lr": 5}], "models": ["a/b", "pocket:chat"]}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("nothing", "expected key=value"),
        ("=5", "expected key=value"),
        ("name.inner=5", "'name' holds a value, not keys"),
        ("methods.nope.lr=5", "'nope' is neither a name nor a number in the list"),
        ("methods.7.lr=5", "'7' is neither"),
        ("name=[1", "not valid YAML"),
    ],
)
def test_bad_sets_say_why(item: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_sets({"name": 3, "methods": [{"name": "full"}]}, [item])


def test_a_problem_with_a_set_key_stands_in_no_line_of_the_file(tmp_path: Path) -> None:
    """Whether the file has the key or not; what --set did not set has its line."""
    for text in ("name: x\n", "name: x\noptimizer: {max_steps: 3}\n"):
        assert problems(tmp_path, text, ("optimizer.max_steps=soon",)) == [
            "--set: optimizer.max_steps: a whole number is expected, got 'soon'"
        ]
    text = "name: x\noptimizer: {learning_rte: 3}\nparts: [{max_steps: 1}]\n"
    assert problems(tmp_path, text, ("optimizer.max_stps=1", "parts.0.max_steps=x", "name=y")) == [
        "--set: unknown key 'max_stps'; did you mean 'max_steps'?",
        "--set: parts.0.max_steps: a whole number is expected, got 'x'",
        "x.yaml:2: unknown key 'learning_rte'; did you mean 'learning_rate'?",
    ]


@given(st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.lists(st.integers()))
def test_values_of_sets_are_yaml(value: Any) -> None:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    assert parse_value(text) == value


def test_find_files(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yaml", "deep/c.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [p.relative_to(tmp_path).as_posix() for p in find_files(["b.yaml", "*.yaml", "**/c.yaml"], tmp_path)]
    assert names == ["b.yaml", "a.yaml", "deep/c.yaml"]
    assert find_files(str(tmp_path / "a.yaml"), Path("/elsewhere")) == [tmp_path / "a.yaml"]
    with pytest.raises(MissingError) as caught:
        find_files(["x*.yaml", "a.yaml", "y.yaml"], tmp_path, location="study.yaml")
    assert [p.cause for p in caught.value.problems] == ["no file matches 'x*.yaml'", "no file matches 'y.yaml'"]
    assert caught.value.problems[0].location == "study.yaml"


def test_a_file_whose_name_looks_like_a_pattern_is_found(tmp_path: Path) -> None:
    (tmp_path / "a[1].yaml").touch()
    assert find_files("a[1].yaml", tmp_path) == [tmp_path / "a[1].yaml"]


def test_what_a_missing_file_is_likened_to(tmp_path: Path) -> None:
    for name in ("train.yaml", "long.yaml"):
        (tmp_path / name).touch()
    with pytest.raises(MissingError, match=r"did you mean '.*train.yaml'"):
        read_text(tmp_path / "Trian.yml")
    with pytest.raises(MissingError, match=f"looked in {tmp_path}$"):  # the ending alone is no likeness
        read_text(tmp_path / "missing.yaml")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("name: x\n")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything, so a mode of 0 would not do
    with pytest.raises(MissingError, match=r"a.yaml: cannot be read: Permission denied; let this user read it"):
        load_yaml(tmp_path / "a.yaml", Outer)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "optimizer: {learning_rate: fast}",
            "optimizer.learning_rate: a number is expected (or 'auto' or 'find'), got 'fast'",
        ),
        (
            "optimizer: {learning_rate: -1}",
            "optimizer.learning_rate: input should be greater than 0 (or 'auto' or 'find'), got -1",
        ),
        (
            "optimizer: {learning_rate: .inf}",
            "optimizer.learning_rate: a finite number is expected (or 'auto' or 'find'), got inf",
        ),
        ("optimizer: {warmup_share: .nan}", "optimizer.warmup_share: a finite number is expected, got nan"),
        ("optimizer: {max_steps: .inf}", "optimizer.max_steps: a finite number is expected, got inf"),
        ("optimizer: {max_steps: many}", "optimizer.max_steps: a whole number is expected, got 'many'"),
        ("precision: fast", "precision: input should be 'auto', 'float32' or 'bf16', got 'fast'"),
    ],
)
def test_a_value_of_several_types_is_one_problem(tmp_path: Path, line: str, cause: str) -> None:
    from posttrain.training.config import TrainConfig

    path = tmp_path / "t.yaml"
    path.write_text(f"model: m\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, TrainConfig)
    assert [problem.cause for problem in caught.value.problems] == [cause]
    both = f"model: m\n{line}\nseed: x\n"  # another value keeps its own line
    path.write_text(both, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, TrainConfig)
    assert sorted(problem.location for problem in caught.value.problems) == [f"{path}:2", f"{path}:3"]


@pytest.mark.parametrize(
    ("value", "shown", "written"),
    [
        ("7", "7", "7"),
        ("1.50", "1.5", "1.50"),
        ("2020-01-01", "2020-01-01", "2020-01-01"),
        ("true", "true", "true"),
        ("1_000", "1000", "1_000"),
    ],
)
def test_what_looks_like_no_text_is_to_be_quoted(tmp_path: Path, value: str, shown: str, written: str) -> None:
    expected = f'x.yaml:1: name: text is expected, got {shown}; write it in quotation marks: "{written}"'
    assert problems(tmp_path, f"name: {value}\n") == [expected]


def test_nothing_and_a_date_are_named_as_yaml_has_them(tmp_path: Path) -> None:
    assert problems(tmp_path, "name:\noptimizer: {max_steps: 2020-01-01}\n") == [
        "x.yaml:1: name: text is expected, got nothing; write it after the colon, or leave the key out",
        "x.yaml:2: optimizer.max_steps: a whole number is expected, got 2020-01-01",
    ]


def test_a_folder_is_no_file_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "changes").mkdir()
    (tmp_path / "study").mkdir()
    with pytest.raises(MissingError) as caught:
        find_files(["../changes", "nothing", "../changes/"], tmp_path / "study", location="s.yaml")
    told = [str(problem) for problem in caught.value.problems]
    assert told[0] == "s.yaml: '../changes' is a folder, files are expected; write ../changes/*.yaml"
    assert told[1].startswith("s.yaml: no file matches 'nothing'; ")
    assert told[2] == "s.yaml: '../changes/' is a folder, files are expected; write ../changes/*.yaml"
    (tmp_path / "changes" / "a.yaml").touch()
    assert find_files("../changes/*.yaml", tmp_path / "study")[0].name == "a.yaml"
