"""Pure: whether a value is what a JSON Schema wants. Schemas come from clients: nothing that they name is fetched.

Patterns are matched in linear time by the regular expressions of pydantic, which are those of Rust: Python's own may
take for ever for a pattern and a text that are made for each other. What a pattern there cannot say is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from jsonschema.exceptions import SchemaError
from jsonschema.validators import extend, validator_for
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema
from referencing import Registry
from referencing.exceptions import Unresolvable

LARGEST = 256 * 1024
"""Bytes of a schema; OpenAI allows 120,000 characters of names and values in one."""
MOST = 4096
"""Objects and booleans in it, each of which may be a schema."""
MOST_ERRORS = 5
"""Of an answer that are told: more do not help a model."""
LONGEST_ERROR = 200


class BadSchemaError(Exception):
    """A schema that cannot be checked; says why."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise `BadSchemaError` for what is no JSON Schema, or one that cannot be checked here. Takes milliseconds."""
    if len(json.dumps(schema)) > LARGEST:
        raise BadSchemaError(f"is larger than {LARGEST} bytes")
    parts = list(_parts(schema))
    if len(parts) > MOST:
        raise BadSchemaError(f"holds more than {MOST} schemas")
    try:
        # Without formats: `regex` among them would be read as Python reads it.
        _kind(schema).check_schema(schema, format_checker=FormatChecker(()))
    except SchemaError as error:
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        raise BadSchemaError(f"is no valid JSON Schema at {place or 'its top'}: {_short(error.message)}") from error
    except RecursionError as error:
        raise BadSchemaError("is nested too deeply") from error
    for part in parts:
        for pattern in _patterns(part):
            _matcher(pattern)


def faults(schema: Mapping[str, Any], value: Any) -> tuple[str, ...]:
    """Say what is wrong with a value; nothing where it is what the schema wants.

    Raises `BadSchemaError` where the schema refers to what is not there.
    """
    kind = extend(_kind(schema), _OURS)  # type: ignore[no-untyped-call]
    try:
        errors = kind(schema, registry=_NOWHERE).iter_errors(value)
        found = [_told(error) for error in islice(errors, MOST_ERRORS)]
    except Unresolvable as error:
        raise BadSchemaError(f"refers to what is not in it: {_short(str(error))}") from error
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise BadSchemaError(f"cannot be checked ({type(error).__name__})") from error
    return tuple(found)


def _told(error: ValidationError) -> str:
    return f"{error.json_path}: {_short(error.message)}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_ERROR else text[:LONGEST_ERROR] + "..."


def _parts(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | bool]:
    """Yield everything in a schema that may be one."""
    left: list[Any] = [schema]
    while left:
        match left.pop():
            case dict() as part:
                yield part
                left.extend(part.values())
            case list() as items:
                left.extend(items)
            case bool() as part:
                yield part


def _patterns(part: Mapping[str, Any] | bool) -> Iterator[str]:
    if isinstance(part, bool):
        return
    if isinstance(part.get("pattern"), str):
        yield part["pattern"]
    named = part.get("patternProperties")
    if isinstance(named, dict):
        yield from named


@lru_cache(maxsize=256)
def _matcher(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a text has a pattern somewhere; raises `BadSchemaError`."""
    try:
        validator = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except PatternError as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise BadSchemaError(f"has a pattern that is not supported: {_short(reason)}") from error
    return validator.isinstance_python


def _pattern(_: object, pattern: str, instance: object, __: object) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matcher(pattern)(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, wanted: Mapping[str, Any], instance: object, _: object
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    for pattern, schema in wanted.items():
        for key, value in instance.items():
            if _matcher(pattern)(key):
                yield from validator.descend(value, schema, path=key, schema_path=pattern)


def _additional(validator: Any, wanted: Any, instance: object, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
    """Check what no other keyword names; jsonschema's own reads patterns as Python does."""
    if not isinstance(instance, dict):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items():
        if key in named or any(_matcher(pattern)(key) for pattern in patterns):
            continue
        if wanted is False:
            yield ValidationError(f"the property {key!r} is not allowed")
        elif isinstance(wanted, dict):
            yield from validator.descend(value, wanted, path=key)


_OURS = {"pattern": _pattern, "patternProperties": _pattern_properties, "additionalProperties": _additional}
_NOWHERE: Registry[Any] = Registry()
"""Holds nothing and fetches nothing."""


def _kind(schema: Mapping[str, Any]) -> Any:
    """Return the checker of the draft that a schema names."""
    named = schema.get("$schema")
    return validator_for(schema, default=Draft202012Validator) if isinstance(named, str) else Draft202012Validator
