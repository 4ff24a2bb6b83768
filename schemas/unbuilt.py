"""Pure: the parts of the stack language whose engine is not there yet. They are refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """One refused feature: a key pattern, the values that still work, and what will bring it."""

    pattern: str
    arrives: str
    works: tuple[object, ...] = (None,)
    refuses: tuple[object, ...] = ()
    """The only values that do not work; where there are some, `works` says nothing."""

    def concerns(self, value: object) -> bool:
        """Tell whether a value is refused."""
        return value in self.refuses if self.refuses else value not in self.works


UNBUILT = (
    Unbuilt(
        "services.*.engine",
        "an Ollama box is a helper (`helpers:`, `api: ollama`); the other engines work",
        refuses=("ollama",),
    ),
    Unbuilt(
        "history.bodies",
        "the request history keeps none; stored bodies arrive with the page that says so",
        (False,),
    ),
)


def unbuilt_features(tree: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Return (key path, message) for everything in a composed tree that this version cannot do."""
    found = [(path, rule.arrives) for rule in UNBUILT for path, value in _select(tree, rule) if rule.concerns(value)]
    sources = [(("models", name, "source"), model.get("source")) for name, model in _mappings(tree.get("models"))]
    found += [
        (path, "Ollama models arrive with managed engines; hub:, package: and path: work now")
        for path, source in sources
        if isinstance(source, str) and source.startswith("ollama:")
    ]
    return found


def _mappings(value: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield from ((str(key), child) for key, child in value.items() if isinstance(child, Mapping))


def _select(tree: Mapping[str, Any], rule: Unbuilt) -> Iterator[tuple[Path, object]]:
    places: list[tuple[Path, object]] = [((), tree)]
    for part in rule.pattern.split("."):
        places = [
            ((*path, str(key)), child)
            for path, value in places
            if isinstance(value, Mapping)
            for key, child in value.items()
            if part in ("*", str(key))
        ]
    yield from places
