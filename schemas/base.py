"""Pure: the frozen base model, identifiers, secrets, and the hot/cold marks of fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, NewType, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
"""Names of stacks, nodes, models, services, helpers, policies and endpoints: they become file names and unit ids."""
ROLE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
PUBLIC_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$"
"""Names that clients send as `model`: aliases and the models of helpers."""

StackName = NewType("StackName", str)
NodeName = NewType("NodeName", str)
ModelName = NewType("ModelName", str)
ServiceName = NewType("ServiceName", str)
HelperName = NewType("HelperName", str)
PolicyName = NewType("PolicyName", str)
RoleName = NewType("RoleName", str)
EndpointName = NewType("EndpointName", str)
UnitId = NewType("UnitId", str)
SlotId = NewType("SlotId", str)

StackKey = Annotated[StackName, StringConstraints(pattern=NAME_PATTERN)]
NodeKey = Annotated[NodeName, StringConstraints(pattern=NAME_PATTERN)]
ModelKey = Annotated[ModelName, StringConstraints(pattern=NAME_PATTERN)]
ServiceKey = Annotated[ServiceName, StringConstraints(pattern=NAME_PATTERN)]
HelperKey = Annotated[HelperName, StringConstraints(pattern=NAME_PATTERN)]
PolicyKey = Annotated[PolicyName, StringConstraints(pattern=NAME_PATTERN)]
RoleKey = Annotated[RoleName, StringConstraints(pattern=ROLE_PATTERN)]
EndpointKey = Annotated[EndpointName, StringConstraints(pattern=ROLE_PATTERN)]
PublicName = Annotated[str, StringConstraints(pattern=PUBLIC_PATTERN)]


class Frozen(BaseModel):
    """The base of every type at a boundary: immutable, strict, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse one JSON document; raises `pydantic.ValidationError`."""
        return cls.model_validate_json(text)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe each field by the text below it."""
        from schemas.docstrings import field_texts

        written = handler(schema)
        properties = handler.resolve_ref_schema(written).get("properties", {})
        for name, text in field_texts(cls).items():
            # What the type of a field says already is not said again.
            if name in properties and handler.resolve_ref_schema(properties[name]).get("description") != text:
                properties[name].setdefault("description", text)
        return written


class Reported(Frozen):
    """The base of what another process of ours tells about itself: it may be of a later version, and know more.

    What it adds is passed over. Refusing it would make a process that works look like one that is silent.
    """

    model_config = ConfigDict(extra="ignore")


HOT = Field(json_schema_extra={"x-change": "hot"})
"""Marks a field whose edits the gateway or the orchestrator takes at once; it is in no spec hash."""
COLD = Field(json_schema_extra={"x-change": "cold"})
"""Marks a field whose edits need a new process: it is part of the unit's spec hash."""

_ENV_REFERENCE = re.compile(r"^\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}$")


class Secret:
    """A value that is never printed: written in a file as text, or better as `${env:NAME}`.

    It compares and hashes by what the file says, and prints, serialises and represents itself as `***`.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self, environ: Mapping[str, str]) -> str:
        """Return the secret's value; raises `KeyError` with the variable's name when it is not set."""
        reference = _ENV_REFERENCE.match(self._text)
        return environ[reference.group(1)] if reference else self._text

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.str_schema(min_length=1, strict=True)
        return core_schema.no_info_after_validator_function(
            cls, text, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "minLength": 1, "format": "password", "x-secret": True}


def is_env_reference(text: str) -> bool:
    """Tell whether a text is exactly one `${env:NAME}`, the only interpolation that files may use."""
    return _ENV_REFERENCE.match(text) is not None
