from __future__ import annotations

from ruamel.yaml import YAML

from posttrain.studies.card import to_yaml


def test_yaml_can_be_read_again() -> None:
    data = {"a": None, "b": [1, 2.5, "玉山: x"], "c": {"d": True, "e": "1e-4"}, "f": 1e-08}
    assert YAML(typ="safe").load(to_yaml(data)) == data
