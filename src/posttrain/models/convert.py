"""Save a GGUF file as a model folder in safetensors, with its tokenizer, its template and a card about its origin."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.models.disk import gib_in, starting_anew
from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.gguf_header import GgufHeader, is_gguf, read_header
from posttrain.models.load import load_model, stop_ids
from posttrain.models.names import resolve
from posttrain.models.save import save_model

__all__ = ["Converted", "StoredDtype", "convert_gguf"]

StoredDtype: TypeAlias = Literal["float32", "bfloat16"]


class Converted(NamedTuple):
    """What a conversion wrote. `gib` is the size of the folder in GiB, and `stops` are the tokens that end an answer.
    The fingerprints are the ones that `posttrain model show` prints.
    """

    output: str
    source: str
    architecture: str
    parameters: int
    dtype: StoredDtype
    gib: float
    stops: tuple[str, ...]
    chat_template: bool
    template_fingerprint: str
    weights_fingerprint: str


@starting_anew()
def convert_gguf(source: str, output: Path, *, dtype: StoredDtype = "float32") -> Converted:
    """Save a GGUF file, or the only one of a folder, as a model folder. A killed process leaves no half-written folder.

    Raise ConfigError if the source is not a GGUF file, PosttrainError if `output` exists and is not an empty folder,
    and the errors of `load_gguf`.
    """
    found = resolve(source)
    if not is_gguf(found):
        raise ConfigError(Problem(source, "is no GGUF file", "give a .gguf file, or a folder that holds one"))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise PosttrainError(Problem(str(output), "is there already and is not overwritten", "choose a new folder"))
    loaded = load_model(found, device="cpu", dtype=dtype)
    header = read_header(Path(found))
    save_model(loaded.model, loaded.tokenizer, output, card=_card(header, dtype))
    stops = [str(loaded.tokenizer.convert_ids_to_tokens(i)) for i in stop_ids(found, loaded.tokenizer)]
    return Converted(
        output=str(output),
        source=source,
        architecture=type(loaded.model).__name__,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        dtype=dtype,
        gib=gib_in(output),
        stops=tuple(stops),
        chat_template=bool(loaded.tokenizer.chat_template),
        template_fingerprint=template_fingerprint(loaded.tokenizer),
        weights_fingerprint=weights_fingerprint(loaded.model),
    )


def _card(header: GgufHeader, dtype: StoredDtype) -> str:
    """Return the text of README.md: the name of the file and the facts that its header states."""
    says = {
        "model": header.fields.get("general.name"),
        "by": header.fields.get("general.organization") or header.fields.get("general.author"),
        "licence": header.fields.get("general.license"),
        "architecture": header.architecture,
    }
    lines = [f"- {key}: {value}" for key, value in says.items() if value is not None]
    title = f"Converted by posttrain from `{header.path.name}`: its numbers dequantised, stored as {dtype}."
    return "\n".join([title, "", "What the file says of itself:", "", *lines, ""])
