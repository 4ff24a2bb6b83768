"""Pure: the form that a request asks its answer to have."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from jsonschema_specifications import REGISTRY as SPECIFICATIONS  # type: ignore[import-untyped]
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from runtime.worker.errors import RequestError
from runtime.worker.fields import Fields

MAX_SCHEMAS_BYTES = 256 * 1024
"""Of all JSON Schemas of a request; OpenAI allows 120,000 characters of names and values in one."""
MAX_SCHEMAS = 4096
"""Objects and booleans in them, each of which may be a schema. Checking one takes 0.2 to 0.9 ms."""
SCHEMA_PARAM = "response_format.json_schema.schema"


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """The answer is one JSON value that `schema` allows.

    A schema is obeyed whole or refused, strict or not: nobody would notice a keyword that was left out.
    """

    schema: dict[str, Any]


ANY_OBJECT = JsonFormat({"type": "object"})


def parse_format(fields: Fields) -> JsonFormat | None:
    """Read `response_format`; none means text.

    Raises RequestError.
    """
    value = fields.get("response_format")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RequestError("response_format must be an object.", param="response_format")
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return ANY_OBJECT
        case "json_schema":
            return _json_schema(value.get("json_schema"))
        case _:
            message = "response_format.type must be text, json_object or json_schema."
            raise RequestError(message, param="response_format.type")


def check_size(schemas: Sequence[Mapping[str, Any]], param: str) -> None:
    """Refuse schemas that together would take long to check; cheap, so it comes before everything else.

    Raises RequestError.
    """
    if sum(len(json.dumps(schema)) for schema in schemas) > MAX_SCHEMAS_BYTES:
        raise RequestError(f"The schemas of {param} are larger than {MAX_SCHEMAS_BYTES} bytes together.", param=param)
    if _count(schemas) > MAX_SCHEMAS:
        raise RequestError(f"The schemas of {param} hold more than {MAX_SCHEMAS} schemas together.", param=param)


def _count(schemas: Sequence[Mapping[str, Any]]) -> int:
    """Count the objects and the booleans of some JSON: no other value can be a schema."""
    count, left = 0, list[Any](schemas)
    while left:
        match left.pop():
            case dict() as value:
                count += 1
                left.extend(value.values())
            case list() as value:
                left.extend(value)
            case bool():
                count += 1
    return count


def check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Refuse what is no JSON Schema; `check_size` comes first.

    Raises RequestError.
    """
    error = next(_META.iter_errors(schema), None)
    if error is not None:
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        reason = error.message[:500]
        raise RequestError(f"{param}{place} is no valid JSON Schema: {reason}.", param=param)


def _unique(_: object, is_wanted: object, instance: object, __: object) -> Iterator[ValidationError]:
    """Compare in linear time; jsonschema's own `uniqueItems` compares all pairs of what it cannot sort."""
    if is_wanted and isinstance(instance, list):
        spelt = {json.dumps(item, sort_keys=True) for item in instance}
        if len(spelt) < len(instance):
            yield ValidationError("a list has an item twice")


def _meta_validator() -> Any:
    """Return what checks schemas.

    Formats, patterns among them, are left to llguidance: Python's regular expressions are others than JSON Schema's.
    """
    # A part that names its `$schema` would be checked by jsonschema's own class, not by the one with our keyword.
    parts = [
        (uri, DRAFT202012.create_resource({key: value for key, value in part.contents.items() if key != "$schema"}))
        for uri, part in SPECIFICATIONS.items()
        if uri.startswith("https://json-schema.org/draft/2020-12/")
    ]
    meta = {key: value for key, value in Draft202012Validator.META_SCHEMA.items() if key != "$schema"}
    kind: Any = extend(Draft202012Validator, {"uniqueItems": _unique})  # type: ignore[no-untyped-call]
    return kind(meta, registry=Registry().with_resources(parts))


_META = _meta_validator()


def _json_schema(value: object) -> JsonFormat:
    where = "response_format.json_schema"
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object.", param=where)
    schema = value.get("schema")
    if not isinstance(schema, dict):
        raise RequestError(f"{SCHEMA_PARAM} must be a JSON Schema, which is an object.", param=SCHEMA_PARAM)
    Fields(value, f"{where}.").boolean("strict")
    check_size([schema], SCHEMA_PARAM)
    check_schema(schema, SCHEMA_PARAM)
    return JsonFormat(schema)
