"""The one extractor of credentials."""

from __future__ import annotations

import pytest

from runtime.gateway.errors import ApiError
from runtime.gateway.security.credentials import credential_of


@pytest.mark.parametrize(
    ("authorization", "api_key", "expected"),
    [
        ([], [], None),
        (["Bearer k"], [], "k"),
        (["bearer   k "], [], "k"),
        (["BEARER k"], [], "k"),
        ([], ["k"], "k"),
        ([], [" k "], "k"),
        (["Bearer k"], ["k"], "k"),
        (["Bearer k", "Bearer k"], [], "k"),
        ([], ["k", "k"], "k"),
        (["Bearer"], [], None),
        (["Bearer "], ["k"], "k"),
        ([""], [""], None),
    ],
)
def test_one_credential_is_found_wherever_it_stands(
    authorization: list[str], api_key: list[str], expected: str | None
) -> None:
    assert credential_of(authorization, api_key) == expected


@pytest.mark.parametrize(
    ("authorization", "api_key", "status"),
    [
        (["Bearer a"], ["b"], 400),
        (["Bearer a", "Bearer b"], [], 400),
        ([], ["a", "b"], 400),
        (["Bearer a"], ["A"], 400),
        (["Basic a"], [], 401),
        (["a"], [], 401),
        (["Basic a"], ["a"], 401),
    ],
)
def test_two_different_ones_and_other_schemes_are_refused(
    authorization: list[str], api_key: list[str], status: int
) -> None:
    with pytest.raises(ApiError) as caught:
        credential_of(authorization, api_key)
    assert caught.value.status == status
