"""Define the base class of all configurations, and the marker for fields with a class that `kind:` chooses.

A configuration is frozen and has no unknown keys. The docstring below a field is its help text.

A field with a class that `kind:` chooses (a tuner, an objective, a replay) is declared as
`Annotated[Config, ByKind("tuner")]`. The YAML has `tuner: lora` or `tuner: {kind: lora, rank: 8}`, and the registry
gives the class that validates it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializationInfo,
)
from pydantic_core import PydanticCustomError, core_schema

from posttrain import registry
from posttrain.errors import ConfigError

__all__ = ["ByKind", "Config", "spelled"]


class Config(BaseModel):
    """Frozen, strict about keys, without infinite numbers, documented by docstrings."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )
    SCHEMA: ClassVar[str] = ""
    """Name of a file of this class in `posttrain list --schema`."""


def spelled(written: Any, **others: str) -> BeforeValidator:
    """Return a pydantic marker that accepts other spellings of a value. Example: `spelled(Literal["bf16", "bfloat16"],
    bfloat16="bf16")`. written: the type with all spellings, for the JSON Schema; others: other spelling -> value.
    """
    return BeforeValidator(
        lambda value: others.get(value, value) if isinstance(value, str) else value, json_schema_input_type=written
    )


@dataclass(frozen=True)
class ByKind:
    """A pydantic marker: validate the field with the config class that `kind:` names in the registry's seam."""

    seam: str
    implied: tuple[tuple[str, str], ...] = ()
    """Pairs (key, kind): a mapping that has the key but no `kind` is of this kind."""
    without: tuple[str, ...] = ()
    """The kinds that are not allowed in this field."""

    @property
    def kinds(self) -> list[str]:
        """Return the kinds that are allowed in this field."""
        return [kind for kind in registry.kinds(self.seam) if kind not in self.without]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def validate(value: Any) -> Any:
            if isinstance(value, Config):
                return value
            if isinstance(value, str):
                value = {"kind": value}
            if not isinstance(value, dict):
                raise PydanticCustomError("kind", "expected a kind, such as {kind: ...}")
            given = [kind for key, kind in self.implied if key in value]
            if "kind" not in value and given:
                value = {"kind": given[0], **value}
            if value.get("kind") in self.without:
                raise PydanticCustomError("kind", "kind '{kind}' cannot stand here", {"kind": str(value["kind"])})
            if "kind" not in value:
                known = ", ".join(self.kinds)
                raise PydanticCustomError("kind", "'kind' is missing; known: {known}", {"known": known})
            try:
                entry = registry.load(self.seam, str(value["kind"]))
            except ConfigError as error:
                raise PydanticCustomError("kind", "{message}", {"message": str(error)}) from error
            return entry.config.model_validate(value)

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        kinds = self.kinds
        options = [handler(registry.load(self.seam, kind).config.__pydantic_core_schema__) for kind in kinds]
        return {"anyOf": [{"type": "string", "enum": kinds}, *options]}


def _dump(value: Any, info: SerializationInfo) -> Any:
    """Serialise a field chosen by kind with its own class, not with the declared `Config`, and the caller's options."""
    if not isinstance(value, Config):
        return value
    return value.model_dump(
        mode=info.mode,
        exclude_unset=info.exclude_unset,
        exclude_defaults=info.exclude_defaults,
        exclude_none=info.exclude_none,
    )
