"""I/O: makes, lists and revokes the keys of a gateway. Only a key's digest is kept; the key itself is told once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from schemas.keys import KEY_PREFIX, Key, Keys, Scope, key_digest, moment, read_keys, write_keys
from schemas.problems import ConfigurationError, Problem, nearest

SECRET_BYTES = 32


class KeyNameError(Exception):
    """No key is called so, or several are."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made."""

    id: str
    text: str = field(repr=False)
    """The key; it is kept nowhere."""
    entry: Key


class KeysAt:
    """The keys file at a path. Changes are made under a lock, and seen whole or not at all."""

    def __init__(self, conf: Path, name: str) -> None:
        """`name` is the stack's `keys_file`, below the configuration directory `conf`."""
        self.path = conf / name
        self._conf = conf
        self._shown = name

    def read(self) -> Keys:
        """Return the keys; none where there is no file. Raises `ConfigurationError`, also where it cannot be read."""
        self._stay_below()
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Keys()
        except UnicodeDecodeError as error:
            message = f"not UTF-8 text (byte {error.start})"
            raise ConfigurationError([Problem(file=self._shown, message=message)]) from error
        except OSError as error:
            message = f"cannot be read: {error.strerror or error}"
            raise ConfigurationError([Problem(file=self._shown, message=message)]) from error
        return read_keys(text, self._shown)

    def add(
        self,
        scopes: tuple[Scope, ...],
        *,
        name: str = "",
        roles: tuple[str, ...] = (),
        rpm: int | None = None,
        life_s: float | None = None,
    ) -> NewKey:
        """Make a key and keep its digest; `life_s` is how long it is to be one.

        Raises as `read` does, and `OSError` where it cannot be written.
        """
        with self._changing():
            keys = self.read()
            ident = next(found for found in iter(lambda: secrets.token_hex(4), "") if found not in keys.keys)
            text = f"{KEY_PREFIX}{ident}-{secrets.token_urlsafe(SECRET_BYTES)}"
            now = time.time()
            entry = Key(
                sha256=key_digest(text),
                scopes=tuple(dict.fromkeys(scopes)),
                name=name,
                roles=tuple(dict.fromkeys(roles)),
                rpm=rpm,
                created=moment(now),
                expires=None if life_s is None else moment(now + life_s),
            )
            self._write(Keys(keys={**keys.keys, ident: entry}))
        return NewKey(ident, text, entry)

    def revoke(self, which: str) -> tuple[str, Key]:
        """Take a key out by its id, or by its name where one key has it; raises `KeyNameError`, and as `add` does."""
        with self._changing():
            keys = self.read().keys
            # An id names one key whatever others are called, and nothing names one without a name.
            found = [which] if which in keys else [ident for ident, key in keys.items() if which and key.name == which]
            if len(found) > 1:
                raise KeyNameError(f"{len(found)} keys are called {which!r}: {', '.join(found)}; name one by its id.")
            if not found:
                known = sorted({*keys, *(key.name for key in keys.values() if key.name)})
                guess = nearest(which, known)
                hint = f" Did you mean {guess!r}?" if guess else f" There are: {', '.join(known) or 'none'}."
                raise KeyNameError(f"No key is called {which!r}.{hint}")
            self._write(Keys(keys={ident: key for ident, key in keys.items() if ident != found[0]}))
        return found[0], keys[found[0]]

    def _stay_below(self) -> None:
        if not self.path.resolve().is_relative_to(self._conf.resolve()):
            message = f"leads out of the configuration directory, to {self.path.resolve()}"
            raise ConfigurationError([Problem(file=self._shown, message=message)])

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        self._stay_below()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The directory is locked and not the file, which is replaced.
        descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, keys: Keys) -> None:
        place = self.path.resolve()  # a link stays one
        # Without the ending by which the gateway finds files, and readable by this user only, as made by mkstemp.
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(write_keys(keys))
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(place)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
