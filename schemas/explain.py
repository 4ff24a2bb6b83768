"""Pure: turns pydantic's validation errors into problems with a key, what was found and the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from schemas.base import NAME_PATTERN, PUBLIC_PATTERN, ROLE_PATTERN
from schemas.model import SOURCE_PATTERN
from schemas.problems import nearest
from schemas.stack import KEYS_FILE_PATTERN, ORIGIN_PATTERN, UNION_TAGS

Path = tuple[str, ...]

_NAME_RULE = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 63 characters"
_PATTERN_RULES = {
    NAME_PATTERN: "a name: lower-case " + _NAME_RULE,
    ROLE_PATTERN: "a name: " + _NAME_RULE,
    PUBLIC_PATTERN: "a name without spaces, at most 128 characters",
    SOURCE_PATTERN: "hub:org/name, hub:org/name/file.gguf, package:python-package/file, path:/directory "
    "or ollama:name:tag",
    r"^sha256:[0-9a-f]{64}$": "sha256: and 64 hexadecimal digits",
    r"^[0-9]{2,5}-[0-9]{2,5}$": "two ports with a dash, such as 18100-18199",
    r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?$": "a URL like http://192.168.188.20:11434",
    r"^[A-Za-z0-9][A-Za-z0-9.:-]*$": "a host name or an address",
    KEYS_FILE_PATTERN: "a path below the configuration directory that ends in .yaml, such as secrets/keys.yaml",
    ORIGIN_PATTERN: "an origin without a path, in lower case, such as https://chat.lan or app://obsidian.md",
}
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "`key: value` lines",
    "dict_type": "`key: value` lines",
    "mapping_type": "`key: value` lines",
    "tuple_type": "a list",
    "list_type": "a list",
}


def explain(errors: Sequence[ErrorDetails], model: type[BaseModel]) -> list[tuple[Path, str, str | None]]:
    """Return (key path, message, nearest valid name) for each error, in their order.

    A missing key is left out where a misspelt one beside it was probably meant.
    """
    schema = model.model_json_schema()
    paths = [_key_path(error["loc"]) for error in errors]
    meant: set[Path] = set()
    found: list[tuple[Path, str, str | None]] = []
    for error, path in zip(errors, paths, strict=True):
        if error["type"] == "extra_forbidden":
            guess = nearest(path[-1], _keys_at(schema, path[:-1]))
            if guess is not None:
                meant.add((*path[:-1], guess))
    for error, path in zip(errors, paths, strict=True):
        if error["type"] == "missing" and path in meant:
            continue
        message, suggestion = _message(error, schema, path)
        found.append((path, message, suggestion))
    return found


def _key_path(location: Sequence[int | str]) -> Path:
    return tuple(str(part) for part in location if part not in UNION_TAGS and part != "[key]")


def _message(error: ErrorDetails, schema: Mapping[str, Any], path: Path) -> tuple[str, str | None]:
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind in _EXPECTED and any(place.get("x-secret") for place in _places(schema, path)):
        return f"expected {_EXPECTED[kind]}, found something else; quote it", None  # a message shows no secret
    if kind == "extra_forbidden":
        valid = sorted(_keys_at(schema, path[:-1]))
        suggestion = nearest(path[-1], valid)
        return ("unknown key" if suggestion else f"unknown key; valid here: {', '.join(valid)}"), suggestion
    if kind == "missing":
        return "is missing" + _described(schema, path), None
    if kind == "literal_error":
        expected = str(context.get("expected", ""))
        choices = [part.strip("' ") for part in expected.replace(" or ", ", ").split(",")]
        if path[-1:] == ("fallback",) and value == "local" and path[:1] == ("roles",):
            return f"expected {expected}, or the service that is meant: `{{local: SERVICE}}`; found 'local'", None
        return f"expected {expected}, found {_show(value)}", nearest(str(value), choices)
    if kind == "string_pattern_mismatch":
        pattern = str(context.get("pattern", ""))
        return f"expected {_PATTERN_RULES.get(pattern, 'text like ' + pattern)}, found {_show(value)}", None
    if kind in _EXPECTED:
        quoted = f'; quote it: "{value}"' if kind == "string_type" and isinstance(value, bool | int | float) else ""
        return f"expected {_EXPECTED[kind]}, found {_show(value)}{quoted}", None
    text = error["msg"]
    return f"{text[0].lower()}{text[1:]}, found {_show(value)}", None


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "`key: value` lines"
    if isinstance(value, list | tuple):
        return "a list"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{text[:80]} ({kinds.get(type(value), type(value).__name__)})"


def _described(schema: Mapping[str, Any], path: Path) -> str:
    for place in _places(schema, path):
        if "description" in place:
            return f": {place['description'].splitlines()[0]}"
    return ""


def _keys_at(schema: Mapping[str, Any], path: Path) -> set[str]:
    return {key for place in _places(schema, path) for key in place.get("properties", {})}


def _places(schema: Mapping[str, Any], path: Path) -> list[Mapping[str, Any]]:
    """Return the subschemas that govern a path; several where there is a union."""
    places = list(_open(schema, schema))
    for part in path:
        places = [opened for place in places for child in _step(place, part) for opened in _open(child, schema)]
    return places


def _step(place: Mapping[str, Any], part: str) -> Iterator[Mapping[str, Any]]:
    if part in place.get("properties", {}):
        yield place["properties"][part]
    for key in ("additionalProperties", "items"):
        if isinstance(place.get(key), Mapping):
            yield place[key]
    yield from place.get("patternProperties", {}).values()


def _open(place: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield place
    if "$ref" in place:
        yield from _open(root["$defs"][place["$ref"].rsplit("/", 1)[1]], root)
    for option in (*place.get("anyOf", ()), *place.get("oneOf", ())):
        yield from _open(option, root)
