"""I/O: composes the files of one stack with Hydra into a frozen `Stack`; the only reader of configuration.

Order: the groups named in `defaults:`, then the stack file, then the overrides. Every problem of every file is
reported at once, with file, line, key and the nearest valid name.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from schemas.base import Frozen, NodeName
from schemas.checks import Finding, check_tree
from schemas.explain import explain
from schemas.legacy import Modern, modernised
from schemas.node import Node
from schemas.problems import ConfigurationError, Problem, nearest
from schemas.stack import Stack
from schemas.unbuilt import unbuilt_features
from schemas.yaml_source import DefaultsEntry, Source, holds_secret, parse_source

GROUPS = ("nodes", "models", "policies")
COMMAND_LINE = "command line"
_PACKAGE_LINE = "# @package _global_"
_HYDRA_LOCK = threading.Lock()  # Hydra keeps its search path in a process-wide singleton: one composition at a time


@dataclass(frozen=True, slots=True)
class Composition:
    """A composed stack and the files that it was made from, named as in messages."""

    stack: Stack
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    """What older shapes of the files were read as."""


def stack_names(conf: Path) -> list[str]:
    """Return the stacks of a configuration directory, sorted."""
    return sorted(path.stem for path in (conf / "stacks").glob("*.yaml"))


def compose(conf: Path, stack: str, overrides: Sequence[str] = ()) -> Composition:
    """Compose and validate one stack.

    `overrides` are `dotted.key=value` texts, the last one wins. Raises `ConfigurationError` with every problem.
    """
    _require_stack(conf, stack)
    sources, problems = _read_sources(conf, stack)
    keys = _override_keys(overrides, problems)
    if problems:
        raise ConfigurationError(problems)
    modern = modernised(_compose_tree(conf, stack, overrides))
    problems = _find_problems(modern, stack, _Locator(sources, keys))
    if problems:
        raise ConfigurationError(sorted(problems, key=lambda p: (p.file, p.line or 0, p.key)))
    files = tuple(Path(source.file) for source in sources)
    return Composition(Stack.model_validate_json(json.dumps(modern.tree)), files, tuple(modern.notes))


class _NodeFiles(Frozen):
    nodes: Mapping[NodeName, Node]


def read_nodes(conf: Path) -> Mapping[NodeName, Node]:
    """Return the nodes of every file in `conf/nodes`, whether or not a stack names them.

    Raises `ConfigurationError` with every problem.
    """
    directory = conf / "nodes"
    if not directory.is_dir():
        message = "no such directory of node files; name a configuration with --conf DIR or ORCHESTRATE_CONF"
        raise ConfigurationError([Problem(file=str(directory), message=message)])
    sources: list[Source] = []
    tree: dict[str, Any] = {}
    problems: list[Problem] = []
    for path in sorted(directory.glob("*.yaml")):
        source = _read_group(conf, path, "nodes")
        sources.append(source)
        problems += source.problems
        content = {} if source.problems else yaml.safe_load(path.read_text(encoding="utf-8"))
        for name in [name for name in content if name in tree]:
            where = source.lines.get(("nodes", name))
            problems.append(Problem(file=source.file, line=where, key=name, message="another file has this node too"))
        tree |= content
    if not problems:
        locate = _Locator(sources, ())
        problems = [locate.problem(*found) for found in _type_errors({"nodes": tree}, _NodeFiles)]
    if problems:
        raise ConfigurationError(sorted(problems, key=lambda p: (p.file, p.line or 0, p.key)))
    return _NodeFiles.model_validate_json(json.dumps({"nodes": tree})).nodes


def shown_path(conf: Path) -> Path:
    """Return the directory as messages name it: relative to where the user stands, if it is below."""
    try:
        return conf.resolve().relative_to(Path.cwd())
    except ValueError:
        return conf


def _require_stack(conf: Path, stack: str) -> None:
    if not (conf / "stacks").is_dir():
        message = "no such configuration directory (it needs stacks/); name one with --conf DIR or ORCHESTRATE_CONF"
        raise ConfigurationError([Problem(file=str(conf), message=message)])
    names = stack_names(conf)
    if stack not in names:
        known = ", ".join(names) or "none"
        message = f"no stack is called {stack!r}; there are: {known}"
        meant = Path(stack).stem  # of who names the file
        guess = meant if meant in names else nearest(stack, names)
        problem = Problem(file=str(shown_path(conf) / "stacks"), message=message, suggestion=guess)
        raise ConfigurationError([problem])


def _read_sources(conf: Path, stack: str) -> tuple[list[Source], list[Problem]]:
    """Read the stack's file and every file that its defaults name; groups first, the stack's own file last."""
    path = conf / "stacks" / f"{stack}.yaml"
    main, text = _read(conf, path, ())
    problems = list(main.problems)
    if text is not None and _PACKAGE_LINE not in text.splitlines()[:10] and not main.problems:
        message = f"the line `{_PACKAGE_LINE}` is missing at the top"
        problems.append(Problem(file=main.file, line=1, message=message))
    for key, at in main.lines.items():  # without `defaults` everything that other files name would be missing
        if len(key) == 1 and key != ("defaults",) and nearest(key[0], ["defaults"]):
            misspelt = Problem(file=main.file, line=at, key=key[0], message="unknown key", suggestion="defaults")
            problems.append(misspelt)
    groups: list[Source] = []
    for entry in main.defaults:
        group, names, _ = entry
        problems += _check_default(conf, main.file, entry, is_last=entry is main.defaults[-1])
        if group.removeprefix("/") in GROUPS:
            files = [conf / group.removeprefix("/") / f"{name}.yaml" for name in names]
            groups += [_read_group(conf, file, group.removeprefix("/")) for file in files if file.is_file()]
    problems += [problem for source in groups for problem in source.problems]
    if line := main.lines.get(("hydra",)):  # Hydra would take it for its own settings, and out of the tree
        problems.append(Problem(file=main.file, line=line, key="hydra", message="unknown key"))
    return [*groups, main], problems


def _check_default(conf: Path, file: str, entry: DefaultsEntry, *, is_last: bool) -> list[Problem]:
    group, names, line = entry

    def problem(message: str, suggestion: str | None = None) -> Problem:
        return Problem(file=file, line=line, key="defaults", message=message, suggestion=suggestion)

    if group == "_self_":
        return [] if is_last else [problem("`_self_` must be the last entry: the stack's own file wins over groups")]
    if not names or group not in {f"/{known}" for known in GROUPS}:
        return [problem(f"{group!r} is no group; expected /nodes, /models or /policies, and `_self_` last")]
    found = [] if not is_last else [problem("`- _self_` must follow as the last entry")]
    directory = conf / group.removeprefix("/")
    available = sorted(path.stem for path in directory.glob("*.yaml"))
    for name in names:
        if name not in available:
            known = ", ".join(available) or "none"
            message = f"no file {name}.yaml in {shown_path(conf) / directory.name}; there are: {known}"
            found.append(problem(message, nearest(name, available)))
    return found


def _read(conf: Path, path: Path, prefix: tuple[str, ...]) -> tuple[Source, str | None]:
    file = str(shown_path(conf) / path.relative_to(conf))
    if not path.resolve().is_relative_to(conf.resolve()):
        message = f"leads out of the configuration directory, to {path.resolve()}"
        return Source(file, prefix, problems=(Problem(file=file, message=message),)), None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problem = Problem(file=file, message=f"not UTF-8 text (byte {error.start})")
    except OSError as error:
        problem = Problem(file=file, message=f"cannot be read: {error.strerror}")
    else:
        return parse_source(text, file, prefix), text
    return Source(file, prefix, problems=(problem,)), None


def _read_group(conf: Path, path: Path, group: str) -> Source:
    """Read a node, model or policy file; only a stack file says where its content goes and what else is read."""
    source, text = _read(conf, path, (group,))
    problems = list(source.problems)
    for number, line in enumerate((text or "").splitlines(), start=1):
        if line.lstrip("# ").startswith("@package") and line.startswith("#"):
            problems.append(Problem(file=source.file, line=number, message="`# @package` is for stack files only"))
    if line_of_defaults := source.lines.get((group, "defaults")):
        message = "only a stack file has `defaults:`"
        problems.append(Problem(file=source.file, line=line_of_defaults, key="defaults", message=message))
    return replace(source, problems=tuple(problems))


def _override_keys(overrides: Sequence[str], problems: list[Problem]) -> list[tuple[str, ...]]:
    """Return the keys that the overrides set; adds a problem for each one that is not `key=value`."""
    keys = []
    for text in overrides:
        key, equals, value = text.partition("=")
        is_removal = text.startswith("~")
        key = key.lstrip("+~")
        message = None
        if (not equals and not is_removal) or not key or key != key.strip():
            message = f"expected key=value, found {text!r}"
        elif "@" in key or "/" in key or key in {*GROUPS, "defaults", "stack"} or key.split(".")[0] == "hydra":
            message = f"{key!r} cannot be overridden; override the keys inside, such as services.NAME.port=18123"
        elif not is_removal and holds_secret(tuple(key.split(".")), value):
            message = "a command line is seen by every process; write the secret, or `${env:NAME}`, in the file"
        elif "${" in text:
            message = "no `${...}` in overrides"
        if message is not None:
            problems.append(Problem(file=COMMAND_LINE, key=key, message=message))
        keys.append(tuple(key.split(".")))
    return keys


def _compose_tree(conf: Path, stack: str, overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # `++` adds or replaces: which keys exist is for the types to say, with a better message
    forced = [text if text.startswith(("~", "+")) else f"++{text}" for text in overrides]
    try:
        with _HYDRA_LOCK, initialize_config_dir(version_base="1.3", config_dir=str(conf.resolve())):
            config = hydra_compose(config_name=f"stacks/{stack}", overrides=forced)
        tree = OmegaConf.to_container(config, resolve=False)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        where = COMMAND_LINE if overrides else str(shown_path(conf) / "stacks" / f"{stack}.yaml")
        message = f"the overrides {' '.join(overrides)!r} cannot be read: {reason}" if overrides else reason
        raise ConfigurationError([Problem(file=where, message=message)]) from error
    if not isinstance(tree, dict):
        raise ConfigurationError([Problem(file=stack, message="expected `key: value` lines")])
    return {str(key): value for key, value in tree.items()}


class _Locator:
    """Finds the file and line that a key of the composed tree came from: the last one that set it."""

    def __init__(self, sources: Sequence[Source], override_keys: Sequence[tuple[str, ...]]) -> None:
        self._sources = sources
        self._override_keys = override_keys

    def problem(self, path: tuple[str, ...], message: str, suggestion: str | None = None) -> Problem:
        key = ".".join(path)
        if any(path[: len(override)] == override for override in self._override_keys):
            return Problem(file=COMMAND_LINE, key=key, message=message, suggestion=suggestion)
        if self._is_of_overrides(path[:2]):
            message = f"{message.rstrip('.')}; no file has {'.'.join(path[:2])}"
            named = [key[1] for source in self._sources for key in source.lines if len(key) == 2 and key[0] == path[0]]
            return Problem(
                file=COMMAND_LINE, key=key, message=message, suggestion=suggestion or nearest(path[1], named)
            )
        for length in range(len(path), 0, -1):
            for source in reversed(self._sources):
                if path[:length] in source.lines:
                    line = source.lines[path[:length]]
                    return Problem(file=source.file, line=line, key=key, message=message, suggestion=suggestion)
        return Problem(file=self._sources[-1].file, key=key, message=message, suggestion=suggestion)

    def _is_of_overrides(self, entry: tuple[str, ...]) -> bool:
        """Tell whether something with a name, such as a service, is in no file: an override may have misspelt it."""
        is_set = any(override[: len(entry)] == entry for override in self._override_keys)
        return len(entry) == 2 and is_set and not any(entry in source.lines for source in self._sources)


def _find_problems(modern: Modern, stack: str, locate: _Locator) -> list[Problem]:
    """Return everything that is wrong with a composed tree: in its types, between its parts, and not built yet."""
    tree = modern.tree
    found = [*modern.findings, *check_tree(tree, stack)]
    wrong = _type_errors(tree)
    if modern.findings:
        # What should have become of the older shapes is not missing.
        wrong = [each for each in wrong if each[0] not in {("roles",), ("helpers",)}]
    reported = {path for path, _, _ in wrong}
    found += [Finding(*each) for each in wrong]
    found += [Finding(path, text) for path, text in unbuilt_features(tree) if path not in reported]
    return [locate.problem(modern.origin(path), message, suggestion) for path, message, suggestion in found]


def _type_errors(
    tree: Mapping[str, Any], model: type[BaseModel] = Stack
) -> list[tuple[tuple[str, ...], str, str | None]]:
    try:
        model.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        return explain(error.errors(include_url=False), model)
    except (ValueError, TypeError) as error:  # a value that JSON cannot say
        return [((), f"holds a value that is not plain data: {error}", None)]
    return []
