"""The exam's judges know the words of the models in the box."""

from importlib import resources
from typing import Any

from ruamel.yaml import YAML

from posttrain.exams.refusals import is_refusal

WORDS: dict[str, Any] = YAML(typ="safe").load(
    (resources.files("posttrain.data.pocket") / "wording" / "skills.yaml").read_text(encoding="utf-8")
)


def test_pockets_refusals_are_refusals_and_nothing_else_is() -> None:
    for language in ("zh", "en"):
        for name, text in WORDS["names"][language].items():
            assert is_refusal(text) == (name == "refuse"), text
        for answer in WORDS["harmless"][language].values():
            assert not is_refusal(answer), answer
