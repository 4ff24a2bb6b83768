"""Pure: what the bodies of the HTTP surface are described with.

These types describe; nothing on a request's path uses them. What is really taken says each protocol's parser: tests
hold both against each other, so that the document is neither stricter nor laxer than the gateway.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from runtime.gateway.bodies import FORBIDDEN, KNOWN, LONGEST_MODEL

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Token = Annotated[int, Field(ge=0)]
ModelName = Annotated[str, Field(min_length=1, max_length=LONGEST_MODEL)]

COMPONENTS = "#/components/schemas/"


class Described(BaseModel):
    """A JSON object. What is not named here may be there as well: clients and engines know more than is listed."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,
    )


def _any_case(name: str) -> str:
    """Return a pattern of the spellings that readers without regard to case take for a name."""
    more = {"s": "\u017f", "k": "\u212a"}
    return "".join(f"[{each}{each.upper()}{more.get(each, '')}]" if each.isalpha() else each for each in name)


def _misspelt(names: Collection[str]) -> dict[str, Any]:
    """Return what fits names in other letters, of which one at least is none of their own."""
    return {"pattern": f"^(?=.*[A-Z\u017f\u212a])({'|'.join(map(_any_case, sorted(names)))})$"}


def only_as(names: Collection[str]) -> dict[str, Any]:
    """Return the part of a schema that refuses other spellings of these names."""
    return {"propertyNames": {"not": _misspelt(names)}}


_REFUSED: dict[str, Any] = {"anyOf": [{"enum": sorted(FORBIDDEN)}, _misspelt(KNOWN)]}


class Asked(Described):
    """A request's body. Unknown parameters are tolerated, but none that would redirect the request.

    Neither is a known one in other letters: `Model` is `model` to some engines.
    """

    model_config = ConfigDict(json_schema_extra={"propertyNames": {"not": _REFUSED}})


def schemas_of(shapes: list[type[BaseModel]]) -> dict[str, Any]:
    """Return the JSON Schemas of types and of everything that they are made of: name -> schema."""
    _, found = models_json_schema([(shape, "validation") for shape in shapes], ref_template=COMPONENTS + "{model}")
    named: dict[str, Any] = {name: _plain(schema) for name, schema in found.get("$defs", {}).items()}
    return named


def _plain(schema: Any) -> Any:
    """Return a schema without titles and defaults of null, and with `type: [.., null]` for what may be null."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    is_title = isinstance(schema.get("title"), str)
    kept = {
        key: _plain(value)
        for key, value in schema.items()
        if not (key == "default" and value is None) and not (key == "title" and is_title)
    }
    match kept.get("anyOf"):
        case [{"type": str(kind), **rest}, {"type": "null"}] if not rest.keys() & {"enum", "const"}:
            del kept["anyOf"]
            return {"type": [kind, "null"], **rest, **kept}
        case _:
            return kept
