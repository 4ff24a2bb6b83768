"""Pure: grammars for the arguments of a call in syntaxes that are not one JSON object.

Such a syntax writes each argument by itself: text as it is up to a mark, everything else as JSON. What cannot be
written so that it is read back as the schema wants it raises ValueError.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.worker.tools.lark import Lark, one_of

Schema = Mapping[str, Any]
_PLAIN = ("integer", "number", "boolean", "null")
_ROOTS = ("$defs", "definitions")
_MAPS = (*_ROOTS, "properties")
"""Keywords whose values hold schemas by name."""
MAX_DEPTH = 32
"""Of objects and lists in one argument that are written out; what refers to itself has no end."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """How a syntax writes the arguments of a call. `{}` in `before` stands for the argument's name."""

    before: str
    after: str
    between: str = ""
    quote: str | None = None
    """Stands on both sides of a text; none where a text ends with `after`."""
    without: str = ""
    """Characters that the family's parser takes for the end of the call, even in a text."""
    strings: Literal["plain", "json"] = "plain"
    nested: Literal["json", "bare keys", "none"] = "json"
    """How objects and lists are written inside an argument."""


def arguments(lark: Lark, how: Arguments, parameters: Schema | None, *, is_strict: bool, depth: int = 0) -> str:
    """Return an expression for the arguments of one call, in the order of the schema's properties.

    `depth` tells how many values of its argument hold this one.

    Raises ValueError.
    """
    if depth > MAX_DEPTH:
        raise ValueError("it refers to itself, or is nested too deep, which is not possible in this model's syntax")
    root = parameters or {}
    properties: Mapping[str, Any] = root.get("properties") or {}
    required = root.get("required") or []
    missing = [name for name in required if name not in properties]
    if missing:
        raise ValueError(f"its required property {missing[0]!r} is not among its properties")
    unusual = [key for key in ("anyOf", "oneOf", "allOf", "$ref", "minProperties", "patternProperties") if key in root]
    if unusual:
        raise ValueError(f"{unusual[0]} at its top is not possible in this model's syntax")
    needed = frozenset(required)
    items = [
        (_argument(lark, how, name, _rooted(schema, root), is_strict=is_strict, depth=depth), name in needed)
        for name, schema in properties.items()
    ]
    return _sequence(lark, items, how.between)


def _sequence(lark: Lark, items: Sequence[tuple[str, bool]], between: str) -> str:
    """Return an expression for items in order, some of them optional, with `between` them."""
    if not between:
        return " ".join(item if is_required else f"{item}?" for item, is_required in items) or '""'
    separator = lark.text(between)
    first = behind = '""'
    # From the end: what may follow an item differs from what may stand first by the separator alone.
    for item, is_required in reversed(items):
        if is_required:
            first, behind = lark.rule(f"{item} {behind}"), lark.rule(f"{separator} {item} {behind}")
        else:
            first, behind = (
                lark.rule(f"{item} {behind} | {first}"),
                lark.rule(f"{separator} {item} {behind} | {behind}"),
            )
    return first


def _argument(lark: Lark, how: Arguments, name: str, schema: Schema, *, is_strict: bool, depth: int) -> str:
    before = how.before.replace("{}", name)
    texts = _texts(schema)
    if texts is None and not is_strict and "string" in _kinds(schema):
        texts = ()  # of several types text is the one that is always possible
    if texts is not None and how.strings == "plain":
        if is_strict and texts == () and _limits(schema):
            raise ValueError(f"{_limits(schema)} of {name!r} is not possible in this model's syntax")
        quote = how.quote or ""
        if texts:
            body = one_of([lark.text(quote + text + quote + how.after) for text in texts])
        elif quote:
            body = f"{lark.until(quote, how.without)} {lark.text(how.after)}"
            return lark.rule(f"{lark.text(before + quote)} {body}")
        else:
            body = lark.until(how.after, how.without)
        return lark.rule(f"{lark.text(before)} {body}")
    body = _value(lark, how, name, schema, is_strict=is_strict, depth=depth)
    return lark.rule(f"{lark.text(before)} {body} {lark.text(how.after)}")


def _value(lark: Lark, how: Arguments, name: str, schema: Schema, *, is_strict: bool, depth: int) -> str:
    kinds = set(_kinds(schema))
    if how.strings == "json" and how.nested == "json":
        return lark.json(schema, is_strict=is_strict)
    if kinds and kinds <= set(_PLAIN):
        return lark.json(schema, is_strict=is_strict)
    if how.nested == "json" and kinds and "string" not in kinds:
        return lark.json(schema, is_strict=is_strict)
    if how.nested == "bare keys" and len(kinds) == 1:
        return _bare(lark, how, name, schema, is_strict=is_strict, depth=depth)
    raise ValueError(f"the type of {name!r} is not possible in this model's syntax")


def _bare(lark: Lark, how: Arguments, name: str, schema: Schema, *, is_strict: bool, depth: int) -> str:
    """Return an expression for a value of one type whose objects have keys without quotes."""
    quote = how.quote or ""
    match next(_kinds(schema)):
        case "string":
            texts = _texts(schema) or ()
            if texts:
                return one_of([lark.text(quote + text + quote) for text in texts])
            return f"{lark.text(quote)} {lark.until(quote, how.without)}"
        case "array":
            items = schema.get("items")
            if not isinstance(items, dict) or {"minItems", "maxItems", "prefixItems", "contains"} & schema.keys():
                raise ValueError(f"the items of {name!r} are not possible in this model's syntax")
            item = _inner(lark, how, name, _rooted(items, schema), is_strict=is_strict, depth=depth + 1)
            return f'"[" ({item} ("," {item})*)? "]"'
        case "object":
            inner = Arguments(before="{}:", after="", between=",", quote=quote, nested="bare keys")
            body = arguments(lark, inner, schema, is_strict=is_strict, depth=depth + 1)
            return f'"{{" {body} "}}"'
        case _:
            return lark.json(schema, is_strict=is_strict)


def _inner(lark: Lark, how: Arguments, name: str, schema: Schema, *, is_strict: bool, depth: int) -> str:
    if len(set(_kinds(schema))) != 1 or depth > MAX_DEPTH:
        raise ValueError(f"the items of {name!r} are not possible in this model's syntax")
    return lark.rule(_bare(lark, how, name, schema, is_strict=is_strict, depth=depth))


def _rooted(schema: object, root: Schema) -> Schema:
    """Return a part of a schema with the definitions of the whole, its own reference followed."""
    part: Schema = schema if isinstance(schema, dict) else {}
    for _ in range(8):
        reference = part.get("$ref")
        if not isinstance(reference, str):
            break
        found = _found(reference, root)
        part = {**found, **{key: value for key, value in part.items() if key != "$ref"}}
    return {**part, **{key: root[key] for key in _ROOTS if key in root and key not in part}}


def _found(reference: str, root: Schema) -> Schema:
    """Return the schema that a reference names by way of schemas alone: nothing else was checked to be one."""
    found: object = root
    steps = iter(reference.removeprefix("#/").split("/"))
    for step in steps:
        path = (step, next(steps, "")) if step in _MAPS else (step,) if step == "items" else ("",)
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"{reference} is not found")  # noqa: TRY004 - of the schema, not of our types
    return found


def _kinds(schema: Schema) -> Iterator[str]:
    """Yield the JSON types that a schema names; none where it names none."""
    named = schema.get("type")
    if isinstance(named, str):
        yield named
    elif isinstance(named, list):
        yield from named
    for value in (*(schema.get("enum") or ()), *((schema["const"],) if "const" in schema else ())):
        if named is None:
            yield _kind_of(value)
    for key in ("anyOf", "oneOf"):
        for branch in schema.get(key) or ():
            yield from _kinds(branch) if isinstance(branch, dict) else ()


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _texts(schema: Schema) -> tuple[str, ...] | None:
    """Return the texts that a schema of texts allows, () for any, or None where it is not one of texts alone."""
    if set(_kinds(schema)) - {"string"}:
        return None
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if not all(isinstance(value, str) for value in values):
        return None
    if not values and "type" not in schema and not schema.keys() <= {"title", "description", "default", *_ROOTS}:
        return None
    return tuple(values)


def _limits(schema: Schema) -> str | None:
    return next((key for key in ("pattern", "format", "minLength", "maxLength") if key in schema), None)
