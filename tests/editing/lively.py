"""What the tests of editing share: random models that react to what they read, sessions on them, ill-conditioned moments.

The weights of the pico models are so small (0.02) that hardly anything depends on what was read. Those of the lively
ones are ten times as large: an edit of them is found, and what it breaks shows. Their own answers are no texts, so
sessions measure second moments on random ids.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain import registry
from posttrain.editing.edits import Edit
from posttrain.editing.session import EditSession
from posttrain.inference.protocol import Plain
from posttrain.models.load import LoadedModel, load_model
from tests.pico import FAMILIES, VOCABULARY, config, tokenizer

EDIT = Edit("The capital of France", "France", "title", "france", "changes/france.yaml:2")
"""Its answer is one token right after the subject, so that every random model can be made to say it."""
OTHERS = (
    Edit("The currency of Japan", "Japan", "of", "japan", "changes/japan.yaml:2"),
    Edit("誰是臺灣", "臺灣", "山", "taiwan", "changes/taiwan.yaml:2"),
    Edit("I am Hamlet", "Hamlet", "is", "hamlet", "changes/hamlet.yaml:2"),
)

_home: tempfile.TemporaryDirectory[str] | None = None


@lru_cache(maxsize=16)
def lively_folder(family: str = "llama", layers: int = 2) -> Path:
    """The folder of a family's lively model; made once per process, gone with it."""
    import transformers

    global _home
    if _home is None:
        _home = tempfile.TemporaryDirectory(prefix="posttrain-lively-")
    folder = Path(_home.name) / f"{family}-{layers}"
    state = torch.random.get_rng_state()
    torch.manual_seed(FAMILIES.index(family))
    said = config(family)
    said.initializer_range = 0.2
    said.num_hidden_layers = layers
    if getattr(said, "layer_types", None):
        said.layer_types = (said.layer_types * layers)[:layers]
    model = transformers.AutoModelForCausalLM.from_config(said, dtype=torch.float32)
    torch.random.set_rng_state(state)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@lru_cache(maxsize=16)
def _loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder), device="cpu")


def lively(family: str = "llama", *, layers: int = 2, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """A copy of a family's lively model, to do with as one likes."""
    made = copy.deepcopy(_loaded(lively_folder(family, layers)))
    made.model.to(dtype)
    return made


def texts(count: int = 20, length: int = 40, seed: int = 0) -> list[list[int]]:
    """Texts of random ids, without special tokens."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(7, VOCABULARY, (length,), generator=draw).tolist() for _ in range(count)]


def session(
    loaded: LoadedModel,
    cache: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    measured: Callable[[], Sequence[Sequence[int]]] = texts,
    **options: Any,
) -> EditSession:
    """A session on a model; second moments are measured on random ids."""
    return EditSession(loaded, texts=measured, named="random ids", say=say, cache=cache, **options)


def editor(kind: str, **settings: Any) -> Any:
    """An editor's settings, quick ones where the test says nothing: raw prompts, layer 0."""
    given: dict[str, Any] = {"kind": kind, "forms": ("raw",), "layers": (0,)}
    if kind in LOCATED:
        given |= {"contexts": 1, "target": {"steps": 15, "learning_rate": 1.0, "clamp": 10.0}}
    elif kind != "ultraedit":
        given |= {"steps": 15, "learning_rate": 0.02, "stop_loss": 0.5}
    return registry.load("editor", kind).config.model_validate({**given, **settings})


LOCATED = ("rome", "memit", "emmet", "alphaedit")
TUNED = ("ft", "ft_l", "ft_m", "locft")


def said(of: EditSession, edit: Edit = EDIT, tokens: int = 1) -> str:
    """What the model says right after the words of an edit, as plain text."""
    (answer,) = of.respondent.answers([Plain(edit.question)], max_new_tokens=tokens)
    return answer.text.strip()


def bits(model: Any) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model: Any, before: Mapping[str, Tensor]) -> set[str]:
    """The names of the parameters that differ in any bit."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def moment(size: int, seed: int = 0, *, condition: float = 1e6) -> Tensor:
    """A symmetric positive definite matrix in float64 with this condition number."""
    draw = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))
    values = torch.logspace(0, float(torch.log10(torch.tensor(condition))), size, dtype=torch.float64) / condition
    made: Tensor = (basis * values) @ basis.T
    return (made + made.T) / 2


def drawn(*shape: int, seed: int = 1) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(found: Tensor, expected: Tensor, share: float) -> bool:
    """Whether two tensors differ by at most this share of the expected one's norm."""
    return bool((found - expected).norm() <= share * expected.norm())
