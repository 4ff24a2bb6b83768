"""Pure: reads the text of one YAML file for its key lines and for everything that must not be in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from schemas.base import is_env_reference
from schemas.problems import Problem

Path = tuple[str, ...]
DefaultsEntry = tuple[str, tuple[str, ...], int]
"""One entry of a `defaults:` list: the group or `_self_`, the names of its files, the line."""

MAX_BYTES = 1 << 20
"""Largest file that is read; a stack file has a few hundred lines."""
MAX_NODES = 50_000
"""Largest number of values after aliases are expanded; a few nested aliases can stand for billions."""
SECRET_KEYS = (("helpers", "*", "key"),)
"""The keys of type Secret, the only ones that may hold `${env:NAME}`."""

_STANDARD_TAG = "tag:yaml.org,2002:"
_PLAIN_TYPES = ("map", "seq", "str", "int", "float", "bool", "null", "merge", "timestamp")


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed file: where each of its keys stands, and what is wrong with it as YAML."""

    file: str
    prefix: Path
    lines: dict[Path, int] = field(default_factory=dict)
    defaults: tuple[DefaultsEntry, ...] = ()
    problems: tuple[Problem, ...] = ()


def parse_source(text: str, file: str, prefix: Path) -> Source:
    """Read one file's text; never raises, problems are part of the result.

    `prefix` is where the file's content goes in the stack: () for a stack file, ("nodes",) for a node file.
    """
    if len(text.encode()) > MAX_BYTES:
        return Source(file, prefix, problems=(Problem(file=file, message=f"larger than {MAX_BYTES >> 20} MiB"),))
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        size = _expanded_size(root, {}) if root is not None else 0
    except yaml.YAMLError as error:
        return Source(file, prefix, problems=(_syntax_problem(error, file),))
    except RecursionError:
        return Source(file, prefix, problems=(Problem(file=file, message="nested too deeply"),))
    if root is None:
        return Source(file, prefix, problems=(Problem(file=file, message="the file is empty"),))
    if size > MAX_NODES:
        message = f"expands to more than {MAX_NODES} values: too many aliases"
        return Source(file, prefix, problems=(Problem(file=file, message=message),))
    if not isinstance(root, yaml.MappingNode):
        message = "expected `key: value` lines at the top of the file"
        return Source(file, prefix, problems=(Problem(file=file, line=_line(root), message=message),))
    reader = _Reader(file, prefix)
    defaults = _read_defaults(root, reader) if not prefix else ()
    reader.walk(root, prefix)
    return Source(file, prefix, reader.lines, defaults, tuple(reader.problems))


def _syntax_problem(error: yaml.YAMLError, file: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    context = getattr(error, "context", None)
    message = f"not valid YAML: {what}" + (f" ({context})" if context else "")
    if "'\\t'" in what:
        message += "; indent with spaces, never with tabs"
    return Problem(file=file, line=mark.line + 1 if mark else None, message=message)


def _expanded_size(node: yaml.Node, known: dict[int, int]) -> int:
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MAX_NODES  # a node that contains itself is too large by definition
    size = 1 + sum(_expanded_size(child, known) for child in _children(node))
    known[id(node)] = size
    return size


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


class _Reader:
    """Walks the nodes of one file, collecting key lines and problems."""

    def __init__(self, file: str, prefix: Path) -> None:
        self.file = file
        self.prefix = prefix
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []

    def report(self, node: yaml.Node, path: Path, message: str) -> None:
        self.problems.append(Problem(file=self.file, line=_line(node), key=".".join(path), message=message))

    def walk(self, node: yaml.Node, path: Path) -> None:
        if not node.tag.startswith(_STANDARD_TAG) or node.tag.removeprefix(_STANDARD_TAG) not in _PLAIN_TYPES:
            self.report(node, path, f"the YAML tag {node.tag!r} is not allowed; write a plain value")
            return
        if isinstance(node, yaml.MappingNode):
            self._walk_mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                self.lines[(*path, str(index))] = _line(child)
                self.walk(child, (*path, str(index)))
        elif "${" in str(node.value):
            self._check_interpolation(node, path)

    def _walk_mapping(self, node: yaml.MappingNode, path: Path) -> None:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.report(key_node, path, "a key must be text")
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key_node.tag == _STANDARD_TAG + "merge":
                self.walk(value_node, path)
                continue
            if key_node.tag != _STANDARD_TAG + "str":
                self.report(key_node, here, f'the key {key} is read as a number or a yes/no; quote it: "{key}"')
            elif key in seen:
                self.report(key_node, here, f"the key stands twice, first on line {seen[key]}; keep one")
            elif key in {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}:
                self.report(key_node, here, "stack files are data: nothing in them names code")
            seen.setdefault(key, _line(key_node))
            self.lines[here] = _line(key_node)
            self.walk(value_node, here)

    def _check_interpolation(self, node: yaml.Node, path: Path) -> None:
        if not is_env_reference(str(node.value)):
            self.report(node, path, "no `${...}` here: the only one is `${env:NAME}`, in secrets")
        elif not is_secret(path):
            self.report(node, path, "`${env:NAME}` is allowed only in secrets, such as helpers.<name>.key")


def is_secret(path: Path) -> bool:
    """Tell whether a key is of type Secret."""
    return any(_matches(path, pattern) for pattern in SECRET_KEYS)


def holds_secret(path: Path, value: str) -> bool:
    """Tell whether setting a key to a value written as text would set a secret, also one inside `{...}`."""
    if is_secret(path):
        return True
    above = [pattern for pattern in SECRET_KEYS if len(path) < len(pattern) and _matches(path, pattern[: len(path)])]
    return any(re.search(rf"\b{re.escape(pattern[-1])}['\"]?\s*:", value) for pattern in above)


def _matches(path: Path, pattern: Path) -> bool:
    return len(path) == len(pattern) and all(p in ("*", part) for part, p in zip(path, pattern, strict=True))


def _read_defaults(root: yaml.MappingNode, reader: _Reader) -> tuple[DefaultsEntry, ...]:
    """Return the entries of `defaults:` and take the key out of the tree; its items have rules of their own."""
    found = [pair for pair in root.value if isinstance(pair[0], yaml.ScalarNode) and pair[0].value == "defaults"]
    if len(found) != 1:
        return ()
    root.value = [pair for pair in root.value if pair is not found[0]]
    node = found[0][1]
    expected = "expected entries like `- /nodes: [name]`, and `- _self_` as the last one"
    if not isinstance(node, yaml.SequenceNode):
        reader.report(node, ("defaults",), expected)
        return ()
    entries: list[DefaultsEntry] = []
    for item in node.value:
        if isinstance(item, yaml.ScalarNode):
            entries.append((str(item.value), (), _line(item)))
        elif (
            isinstance(item, yaml.MappingNode)
            and len(item.value) == 1
            and isinstance(item.value[0][0], yaml.ScalarNode)
        ):
            key, value = item.value[0]
            children = value.value if isinstance(value, yaml.SequenceNode) else [value]
            names = tuple(str(child.value) for child in children if isinstance(child, yaml.ScalarNode))
            entries.append((str(key.value), names, _line(item)))
        else:
            reader.report(item, ("defaults",), expected)
    return tuple(entries)
