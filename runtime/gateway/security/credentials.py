"""Pure: the one place that reads a credential from a request's headers."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.gateway.errors import ApiError

_BEARER = "bearer "


def credential_of(authorization: Sequence[str], api_key: Sequence[str]) -> str | None:
    """Return the credential in the values of `Authorization: Bearer` and `x-api-key`; None where there is none.

    Both may be sent, as some clients do, if they say the same. Raises `ApiError` with status 400 for two different
    ones, whichever would be valid, and with 401 for an `Authorization` of another kind.
    """
    if len(authorization) == 1 and not api_key and authorization[0].startswith("Bearer "):
        return authorization[0][len(_BEARER) :].strip() or None  # what nearly all clients send
    found = ""
    for value in authorization:
        scheme, token = value[: len(_BEARER)], value[len(_BEARER) :].strip()
        if scheme.lower() != _BEARER:
            if not value.strip() or value.strip().lower() == _BEARER.strip():
                continue
            raise ApiError(401, "Expected the header 'Authorization: Bearer KEY'.", code="invalid_api_key")
        found = _one(found, token)
    for value in api_key:
        found = _one(found, value.strip())
    return found or None


def _one(found: str, token: str) -> str:
    if found and token and found != token:
        raise ApiError(400, "The request carries two different credentials; send one.", code="two_credentials")
    return found or token
