"""I/O: where this machine keeps state and models, and the few files that the orchestrator itself writes there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.base import StackName

UNUSABLE = "state and models need directories that this user can read and write; ORCHESTRATE_STATE names another"
"""What to do where one of them cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Directories:
    """The two roots on this machine: `state` for units, routes and journals, `cache` for models."""

    state: Path
    cache: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Directories:
        """Read `ORCHESTRATE_STATE` (moves both), `XDG_STATE_HOME` and `XDG_CACHE_HOME`; XDG base directory defaults.

        Raises RuntimeError where a home directory is needed and there is none.
        """
        if moved := environ.get("ORCHESTRATE_STATE"):
            root = Path(moved).expanduser().absolute()
            return cls(root, root / "cache")

        def base(variable: str, default: str) -> Path:
            named = Path(environ.get(variable, ""))
            if named.is_absolute():  # a relative one is to be ignored, says the XDG base directory specification
                return named
            return Path(environ.get("HOME") or Path.home()).absolute() / default

        state, cache = base("XDG_STATE_HOME", ".local/state"), base("XDG_CACHE_HOME", ".cache")
        return cls(state / "orchestrate", cache / "orchestrate")

    def holds(self, path: Path) -> bool:
        """Tell whether a path is in one of them."""
        return path.is_relative_to(self.state) or path.is_relative_to(self.cache)

    def stack(self, name: StackName) -> Path:
        """Return the directory of one stack's own files: routes, journal, token."""
        return self.state / "stacks" / name

    def routes(self, name: StackName) -> Path:
        """Return the path of the stack's `routes.json`."""
        return self.stack(name) / "routes.json"

    @property
    def room(self) -> Path:
        """Return the directory that the on-demand workers of this machine share."""
        return self.state / "on-demand"

    def allotment(self, name: StackName) -> Path:
        """Return the path of the file that says how much memory they may hold together."""
        return self.room / f"{name}.json"

    def watcher(self, name: StackName) -> Path:
        """Return the path of the file in which the stack's watcher says how it is."""
        return self.stack(name) / "watcher.json"

    def wanted(self, name: StackName) -> Path:
        """Return the path of the file that is touched by who wants the lock that a watcher holds."""
        return self.stack(name) / "wanted"

    def keys(self, name: StackName) -> Path:
        """Return where the keys file is put for a gateway on another machine than the user's."""
        return self.stack(name) / "keys.yaml"

    def known_worker_token(self, name: StackName) -> str | None:
        """Return the token of a stack that was applied before; looking makes none."""
        return _known_token(self.stack(name) / "worker.token")

    def worker_token(self, name: StackName) -> str:
        """Return the token that the stack's workers ask for, made at the first call and readable by this user only."""
        return _token(self.stack(name) / "worker.token")

    def known_admin_token(self, name: StackName) -> str | None:
        """Return what the stack's gateway asks of the orchestrator; looking makes none.

        A gateway that was started before there was such a token asks for that of the workers.
        """
        return _known_token(self.stack(name) / "admin.token") or self.known_worker_token(name)

    def admin_token(self, name: StackName) -> str:
        """Return the same, made at the first call. No worker and no engine is told it."""
        return _token(self.stack(name) / "admin.token")


def _known_token(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _token(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if token := _known_token(path):
            return token
        path.unlink(missing_ok=True)  # a crash between creating and writing left it empty
        return _token(path)
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    return token
