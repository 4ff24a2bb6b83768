"""Pure: the keys file: who may ask a gateway. It holds digests, so that nobody who reads it can use a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from schemas.base import Frozen, PublicName
from schemas.explain import explain
from schemas.problems import ConfigurationError, Problem
from schemas.yaml_source import Source, parse_source

Scope = Literal["inference", "metrics", "read", "admin"]
"""What a key may do: ask models; scrape `/metrics`; see how the gateway is; change it, and everything else."""

KEY_PREFIX = "sk-orc-"
"""Every key begins so: clients that look for `sk-` take it, and those who look for lost secrets find it."""
MOST_RPM = 100_000
LONGEST_NAME = 64

_ABOVE = "# The keys of a gateway, as SHA-256 digests. Written by `orchestrate keys`; safe to keep in git.\n"


def moment_s(text: str) -> float:
    """Return the seconds since the epoch of a moment such as 2026-12-31T23:59:59Z; raises ValueError."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def moment(seconds: float) -> str:
    """Return how a moment is written in the file."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_moment(text: str) -> str:
    try:
        moment_s(text)
    except ValueError:
        raise ValueError(f"expected a moment such as '2026-12-31T23:59:59Z', found {text!r}") from None
    return text


Moment = Annotated[str, AfterValidator(_is_moment)]
KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-z]{4,32}$")]


class Key(Frozen):
    """One key."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """The digest of the whole key."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    """What it may do."""
    name: Annotated[str, StringConstraints(max_length=LONGEST_NAME)] = ""
    """Whose it is, in words."""
    roles: tuple[PublicName, ...] = ()
    """The only names that it may send as `model`: roles, aliases or models; none here allows all."""
    rpm: Annotated[int | None, Field(ge=1, le=MOST_RPM)] = None
    """The most requests to models in any minute."""
    created: Moment | None = None
    expires: Moment | None = None
    """When it ends to be one."""


class Keys(Frozen):
    """The whole file."""

    version: Literal[1] = 1
    keys: Mapping[KeyId, Key] = Field(default_factory=dict)
    """By the id that stands in the key itself."""

    @model_validator(mode="after")
    def _are_distinct(self) -> Self:
        if len({key.sha256 for key in self.keys.values()}) < len(self.keys):
            raise ValueError("two ids have the same digest; keep one")
        return self


def key_digest(key: str) -> str:
    """Return what the file holds of a key. A key is 256 random bits: a slow hash would protect nothing more."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def read_keys(text: str, file: str) -> Keys:
    """Parse a keys file, strictly; raises `ConfigurationError` with every problem. `file` is its name in messages."""
    source = parse_source(text, file, ())
    if source.problems:
        raise ConfigurationError(source.problems)
    try:
        return Keys.model_validate_json(json.dumps(yaml.safe_load(text), default=str))
    except ValidationError as error:
        found = explain(error.errors(include_url=False), Keys)
        raise ConfigurationError([_problem(source, *each) for each in found]) from error
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):
        # A date that is in no calendar, or a merge with what is no mapping. YAML's words repeat what stands there.
        message = "a value is not what it looks like; quote dates"
        raise ConfigurationError([Problem(file=file, message=message)]) from None


def _problem(source: Source, path: tuple[str, ...], message: str, suggestion: str | None) -> Problem:
    if path[-1:] == ("sha256",):  # who writes the key itself there does not want to read it in a log
        message = "expected the SHA-256 digest of a key, 64 hexadecimal digits; `orchestrate keys new` writes it"
    places = (path[:length] for length in range(len(path), 0, -1))
    line = next((source.lines[place] for place in places if place in source.lines), None)
    return Problem(file=source.file, line=line, key=".".join(path), message=message, suggestion=suggestion)


def write_keys(keys: Keys) -> str:
    """Return the text of a keys file."""
    tree = keys.model_dump(mode="json", exclude_defaults=True) | {"version": keys.version}
    ordered = {"version": tree["version"], "keys": dict(sorted(tree.get("keys", {}).items()))}
    return _ABOVE + yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True)
