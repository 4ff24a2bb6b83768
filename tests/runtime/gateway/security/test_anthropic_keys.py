"""Keys of Anthropic's clients, which send them as `x-api-key`."""

from __future__ import annotations

import pytest

from tests.runtime.gateway.security.conftest import Keyed

ASKED = {"model": "chat", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_key_may_come_as_x_api_key_or_bearer_and_is_asked_for_in_anthropics_words(
    keyed: Keyed, path: str
) -> None:
    key = keyed.made["inference"].text
    async with keyed.gateway.client() as client:
        for headers in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}):
            assert (await client.post(path, json=ASKED, headers=headers)).status_code == 200
        wrong = key[:-4] + "0000"
        both = {"x-api-key": key, "authorization": f"Bearer {wrong}"}
        for headers, status in (({}, 401), ({"x-api-key": wrong}, 401), (both, 400)):
            answer = await client.post(path, json=ASKED, headers=headers)
            kind = "authentication_error" if status == 401 else "invalid_request_error"
            assert (answer.status_code, answer.json()["type"]) == (status, "error")
            assert answer.json()["error"]["type"] == kind
