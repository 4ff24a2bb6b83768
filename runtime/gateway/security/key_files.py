"""I/O: reads the keys file and what this machine is called: what the guard's rules are made of."""

from __future__ import annotations

import logging
import socket
import stat
from pathlib import Path

from runtime.gateway.security.rules import Rules, may_bind, rules_of
from schemas.keys import Keys, read_keys
from schemas.problems import ConfigurationError, Problem
from schemas.stack import KeysFile, Stack

log = logging.getLogger(__name__)


class KeySource:
    """Reads the rules of a stack, and remembers the last good keys."""

    def __init__(self, conf: Path, bind: str, own_token: str | None, delivered: Path | None) -> None:
        """`conf` is the directory that the stack's `keys_file` is below.

        `delivered` is where the orchestrator puts the keys instead, on a machine that has no such directory of its own.
        """
        self._conf = conf
        self._bind = bind
        self._own_token = own_token
        self._delivered = delivered
        self._last = Keys()
        machine = socket.gethostname()
        short = machine.partition(".")[0]
        self._machine = (machine, short, f"{short}.local")

    def conflict(self, stack: Stack) -> Problem | None:
        """Say why a stack cannot be served where this process listens; its address changes only with `apply`."""
        if may_bind(stack, self._bind):
            return None
        message = (
            f"this gateway listens on {self._bind}, which other machines reach, and the files ask for no keys: it goes "
            "on as before until `orchestrate apply`, or set `auth: {keys_file: ...}`"
        )
        return Problem(file=str(self._conf), key="gateway.auth", message=message)

    def read(self, stack: Stack) -> tuple[Rules, tuple[Problem, ...]]:
        """Return the rules of a stack, and what is wrong with its keys file: the last good keys are valid meanwhile.

        Without the file there are no keys, and nobody but the orchestrator is let in.
        """
        problems: tuple[Problem, ...] = ()
        auth = stack.gateway.auth
        if isinstance(auth, KeysFile):
            path = self._delivered or self._conf / auth.keys_file
            try:
                self._last = self._read(path)
            except FileNotFoundError:
                log.warning("there is no keys file, so nobody has a key: path=%s", path)
                self._last = Keys()
            except OSError as error:
                problems = (Problem(file=str(path), message=f"cannot be read: {error.strerror}"),)
            except ConfigurationError as error:
                problems = error.problems
            except Exception as error:  # noqa: BLE001 - whatever is wrong with keys, routes are followed
                # Only its kind is told: its words may repeat what stands in the file.
                problems = (Problem(file=str(path), message=f"cannot be read: {type(error).__name__}"),)
        else:
            self._last = Keys()
        return rules_of(stack, self._last, self._own_token, self._bind, self._machine), problems

    def _read(self, path: Path) -> Keys:
        if self._delivered is None and not path.resolve().is_relative_to(self._conf.resolve()):
            message = f"leads out of the configuration directory, to {path.resolve()}"
            raise ConfigurationError([Problem(file=str(path), message=message)])
        with path.open(encoding="utf-8") as file:
            if stat.S_IMODE(path.stat().st_mode) & stat.S_IWOTH:
                message = "everybody on this machine may write it, and so make keys; run chmod o-w on it"
                raise ConfigurationError([Problem(file=str(path), message=message)])
            try:
                text = file.read()
            except UnicodeDecodeError as error:
                message = f"not UTF-8 text (byte {error.start})"
                raise ConfigurationError([Problem(file=str(path), message=message)]) from error
        return read_keys(text, str(path))
