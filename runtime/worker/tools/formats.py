"""Pure: the form that a request asks its answer to have."""

import json
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError

from runtime.worker.errors import RequestError
from runtime.worker.fields import Fields

MAX_SCHEMA_BYTES = 128 * 1024
"""Of a JSON Schema; OpenAI allows 120,000 characters of names and values in one."""
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


def check_schema(schema: dict[str, Any], param: str) -> None:
    """Refuse what is no JSON Schema, or a very large one.

    Raises RequestError.
    """
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise RequestError(f"{param} is larger than {MAX_SCHEMA_BYTES} bytes.", param=param)
    try:
        # Patterns are left to llguidance: Python's regular expressions are others than those of JSON Schema.
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(formats=()))
    except SchemaError as error:
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        reason = error.message[:500]
        raise RequestError(f"{param}{place} is no valid JSON Schema: {reason}.", param=param) from error


def _json_schema(value: object) -> JsonFormat:
    where = "response_format.json_schema"
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object.", param=where)
    schema = value.get("schema")
    if not isinstance(schema, dict):
        raise RequestError(f"{SCHEMA_PARAM} must be a JSON Schema, which is an object.", param=SCHEMA_PARAM)
    Fields(value, f"{where}.").boolean("strict")
    check_schema(schema, SCHEMA_PARAM)
    return JsonFormat(schema)
