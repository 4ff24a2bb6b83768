"""Pure: whether a value is what a JSON Schema wants. Schemas come from clients: nothing that they name is fetched.

Patterns are matched in linear time by the regular expressions of pydantic, which are those of Rust: Python's own may
take for ever for a pattern and a text that are made for each other. What a pattern there cannot say is refused.

Schemas can be made so that holding a value to them takes for ever as well, since each of their references may lead to
two others. The steps that it takes are counted, and a schema that takes too many is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend, validator_for
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema
from referencing import Registry
from referencing.exceptions import Unresolvable

from runtime.gateway.adapters.emulation.forms import BadSchemaError

LARGEST = 256 * 1024
"""Bytes of a schema; OpenAI allows 120,000 characters of names and values in one."""
MOST = 4096
"""Objects and booleans in it, each of which may be a schema."""
MOST_ERRORS = 5
"""Of an answer that are told: more do not help a model."""
LONGEST_ERROR = 200
MOST_STEPS = 100_000
"""That it may take to hold a value to a schema: a second or two. 1,000 objects of ten properties take about 30,000."""
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_REFERENCE_STEPS = 8
"""Of looking a reference up, which takes longer than most keywords do."""
MOST_PATTERNS = 200
"""Different ones in a schema."""
LARGEST_PATTERNS = 20_000
"""Characters of the patterns of a schema, each as often as it may be repeated: about 40 MB, while it is checked."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise `BadSchemaError` for what is no JSON Schema, or one that cannot be checked here. Takes milliseconds."""
    if len(json.dumps(schema)) > LARGEST:
        raise BadSchemaError(f"is larger than {LARGEST} bytes")
    parts = list(_parts(schema))
    if len(parts) > MOST:
        raise BadSchemaError(f"holds more than {MOST} schemas")
    check = _Check()
    kind = check.kind(_kind(schema), is_counted=False)
    try:
        # Without formats: `regex` among them would be read as Python reads it.
        error = next(kind(kind.META_SCHEMA).iter_errors(schema), None)
    except RecursionError as too_deep:
        raise BadSchemaError("is nested too deeply") from too_deep
    if error is not None:
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        raise BadSchemaError(f"is no valid JSON Schema at {place or 'its top'}: {_short(error.message)}")
    if any("unevaluatedProperties" in part for part in parts if isinstance(part, dict)) and any(
        "patternProperties" in part for part in parts if isinstance(part, dict)
    ):
        raise BadSchemaError("has both unevaluatedProperties and patternProperties, which is not supported")
    for pattern in dict.fromkeys(pattern for part in parts for pattern in _patterns(part)):
        check.matcher(pattern)


def faults(schema: Mapping[str, Any], value: Any) -> tuple[str, ...]:
    """Say what is wrong with a value; nothing where it is what the schema wants.

    Raises `BadSchemaError` where the schema refers to what is not there, or takes too long.
    """
    kind = _Check().kind(_kind(schema))
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


class _Check:
    """One check: what it has taken so far, and its patterns, which are gone with it."""

    def __init__(self) -> None:
        self._steps = 0
        self._matchers: dict[str, Callable[[str], bool]] = {}
        self._weight = 0
        self._sizes: dict[int, int] = {}
        """Of values in the schema, by their identity: how many values are in each."""

    def kind(self, base: Any, *, is_counted: bool = True) -> Any:
        """Return the checker of a draft with keywords of ours, which counts steps."""
        ours: dict[str, Any] = {
            "pattern": self._pattern,
            "patternProperties": self._pattern_properties,
            "additionalProperties": self._additional,
            "uniqueItems": self._unique,
        }
        keywords = {**base.VALIDATORS, **{key: ours[key] for key in ours if key in base.VALIDATORS}}
        if is_counted:
            keywords = {key: self._counted(key, keyword) for key, keyword in keywords.items()}
        kind: Any = extend(base, keywords)  # type: ignore[no-untyped-call]
        fields = [(field.alias, field.name) for field in kind.__attrs_attrs__ if field.init]

        def evolve(validator: Any, **changes: Any) -> Any:
            # jsonschema's own takes another checker wherever a part of the schema names a draft.
            return kind(
                **{alias: getattr(validator, name) for alias, name in fields if alias not in changes}, **changes
            )

        kind.evolve = evolve
        return kind

    def matcher(self, pattern: str) -> Callable[[str], bool]:
        """Return what tells whether a text has a pattern somewhere; raises `BadSchemaError`."""
        known = self._matchers.get(pattern)
        if known is not None:
            return known
        self._weight += _weight(pattern)
        if len(self._matchers) >= MOST_PATTERNS or self._weight > LARGEST_PATTERNS:
            raise BadSchemaError("has patterns that are too many or too large")
        try:
            validator = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
        except PatternError as error:
            reason = re.sub(r"\s+", " ", str(error))
            raise BadSchemaError(f"has a pattern that is not supported: {_short(reason)}") from error
        self._matchers[pattern] = validator.isinstance_python
        return validator.isinstance_python

    def _step(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise BadSchemaError("takes too many steps to hold an answer to it")

    def _counted(self, key: str, keyword: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        is_compared = key in ("enum", "const")
        own = _REFERENCE_STEPS if key in _REFERENCES else 1

        def counted(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
            steps = own + (self._size(wanted) if is_compared else _length(wanted))
            self._step(steps + (len(instance) >> 6 if isinstance(instance, str) else _length(instance)))
            for error in keyword(validator, wanted, instance, schema) or ():
                if not isinstance(error.validator, str):
                    # It is new, and tells of all of the value.
                    self._step(len(error.message) >> 6)
                yield error

        return counted

    def _size(self, wanted: Any) -> int:
        size = self._sizes.get(id(wanted))
        if size is None:
            size, left = 0, [wanted]
            while left:
                part = left.pop()
                size += 1
                left.extend(part if isinstance(part, list) else part.values() if isinstance(part, dict) else ())
            self._sizes[id(wanted)] = size
        return size

    def _pattern(self, _: object, pattern: str, instance: object, __: object) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not self.matcher(pattern)(instance):
            yield ValidationError(f"{instance!r} does not match {pattern!r}")

    def _pattern_properties(
        self, validator: Any, wanted: Mapping[str, Any], instance: object, _: object
    ) -> Iterator[ValidationError]:
        if not isinstance(instance, dict):
            return
        for pattern, schema in wanted.items():
            self._step(len(instance))
            for key, value in instance.items():
                if self.matcher(pattern)(key):
                    yield from validator.descend(value, schema, path=key, schema_path=pattern)

    def _additional(
        self, validator: Any, wanted: Any, instance: object, schema: Mapping[str, Any]
    ) -> Iterator[ValidationError]:
        """Check what no other keyword names; jsonschema's own reads patterns as Python does."""
        if not isinstance(instance, dict):
            return
        named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        self._step(len(instance) * len(patterns))
        for key, value in instance.items():
            if key in named or any(self.matcher(pattern)(key) for pattern in patterns):
                continue
            if wanted is False:
                yield ValidationError(f"the property {key!r} is not allowed")
            elif isinstance(wanted, dict):
                yield from validator.descend(value, wanted, path=key)

    def _unique(self, _: object, wanted: object, instance: object, __: object) -> Iterator[ValidationError]:
        """Compare items by what they are written as; jsonschema's own compares each with each."""
        if not wanted or not isinstance(instance, list):
            return
        texts = [json.dumps(_plain(item), sort_keys=True) for item in instance]
        if len(set(texts)) < len(texts):
            yield ValidationError("it has items that are alike")


def _length(value: object) -> int:
    """Return the steps of going through a value, each of which is a fraction of one that applies a keyword."""
    return len(value) >> 2 if isinstance(value, dict | list) else 0


def _plain(value: Any) -> Any:
    """Return a value in which equal numbers are written alike."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case _:
            return value


_ATOM = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]|\{(\d+)(?:,(\d*))?\}|.", re.DOTALL)
"""What a pattern is made of; repetitions have groups."""
_LARGE = re.compile(r"\\[wWpPbB]")
_CLASS_WEIGHT = 50
"""Of the letters of all languages, which are hundreds of ranges: 85 KB each time that they are repeated."""


def _weight(pattern: str) -> int:
    """Return about how much a pattern takes when its repetitions are written out. Takes linear time."""
    groups, last = [0], 0
    for atom in _ATOM.finditer(pattern):
        text = atom[0]
        if atom[1] is not None:
            times = max(int(atom[1][:6]), int((atom[2] or "0")[:6]), 1)
            groups[-1] += last * (times - 1)
            last *= times
        elif text == "(":
            groups.append(0)
            last = 0
        elif text == ")":
            last = groups.pop() if len(groups) > 1 else 0
            groups[-1] += last
        elif text not in ("?", "*", "+", "|"):
            last = _CLASS_WEIGHT if _LARGE.search(text) else len(text)
            groups[-1] += last
    return sum(groups)


_NOWHERE: Registry[Any] = Registry()
"""Holds nothing and fetches nothing."""


def _kind(schema: Mapping[str, Any]) -> Any:
    """Return the checker of the draft that a schema names."""
    named = schema.get("$schema")
    return validator_for(schema, default=Draft202012Validator) if isinstance(named, str) else Draft202012Validator
