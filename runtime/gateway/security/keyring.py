"""Pure: the keys of a gateway, found by the digest of what a request shows."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping

from runtime.gateway.security.callers import Caller
from runtime.gateway.security.scopes import INCLUDED, Need
from schemas.keys import Key, Keys, moment_s


class Keyring:
    """The keys of one keys file, and the orchestrator's own. Immutable."""

    __slots__ = ("_callers",)

    def __init__(self, keys: Keys, own_token: str | None) -> None:
        """`own_token` is what the orchestrator shows; it may do everything."""
        callers = [_caller(name, key) for name, key in keys.keys.items()]
        if own_token:
            callers.append(Caller(_allowed(("admin",)), digest=_digest(own_token)))
        self._callers: Mapping[bytes, Caller] = {caller.digest: caller for caller in callers}

    def find(self, credential: str) -> Caller | None:
        """Return whose a credential is, expired or not; None for nobody's.

        What is looked up is a digest, so that the time it takes says nothing about the keys; the comparison of the
        whole takes the same time wherever two digests differ.
        """
        digest = _digest(credential)
        caller = self._callers.get(digest)
        return caller if caller is not None and hmac.compare_digest(caller.digest, digest) else None

    def current(self, digest: bytes) -> Caller | None:
        """Return the caller with a digest."""
        return self._callers.get(digest)

    def __iter__(self) -> Iterator[Caller]:
        return iter(self._callers.values())


def _digest(credential: str) -> bytes:
    # A header may hold bytes that are no text; they come as lone surrogates.
    return hashlib.sha256(credential.encode(errors="surrogatepass")).digest()


def _caller(name: str, key: Key) -> Caller:
    return Caller(
        scopes=_allowed(key.scopes),
        names=frozenset(key.roles) or None,
        id=name,
        digest=bytes.fromhex(key.sha256),
        rpm=key.rpm,
        expires_at=None if key.expires is None else moment_s(key.expires),
    )


def _allowed(scopes: tuple[str, ...]) -> frozenset[Need]:
    return frozenset({"open", *(allowed for scope in scopes for allowed in INCLUDED[scope])})  # type: ignore[index]
