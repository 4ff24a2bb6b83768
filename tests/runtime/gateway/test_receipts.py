"""Receipts, rehearsals, and what a drill breaks, through a real gateway in front of real endpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.upstream import DONE, FINISH, ROLE, FakeUpstream, streams, word
from tests.ports import free_port
from tests.runtime.gateway.harness import CHAT, STREAM, local_gateway, stack_document, until


async def receipt_of(client: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"/admin/receipts/{answer.headers['x-orchestrate-request-id']}")).json()
    return found


async def test_an_answer_has_a_receipt_that_says_who_was_tried_and_why(tmp_path: Path) -> None:
    async with FakeUpstream() as fake:
        document = stack_document({"down": f"http://127.0.0.1:{free_port()}", "up": fake.url})
        async with local_gateway(tmp_path, document) as gateway, gateway.client() as client:
            for body in (CHAT, STREAM):
                answer = await client.post("/v1/chat/completions", json=body)
                receipt = await receipt_of(client, answer)

                assert [(each["endpoint"], each["outcome"]) for each in receipt["attempts"]] == [
                    ("down", "refused"),
                    ("up", "ok"),
                ]
                assert receipt["attempts"][1]["url"] == fake.url
                assert (receipt["model"], receipt["endpoint"], receipt["outcome"]) == ("chat", "up", "ok")
                assert 0 <= receipt["attempts"][1]["began_s"] <= receipt["attempts"][1]["ended_s"] <= receipt["took_s"]
                assert (receipt["attempts"][1]["first_s"] is not None) == receipt["is_stream"]
            await client.post("/v1/chat/completions", json=CHAT)  # the third failure of `down`
            receipt = await receipt_of(client, await client.post("/v1/chat/completions", json=CHAT))

            assert [each["endpoint"] for each in receipt["attempts"]] == ["up"]
            assert [(each["endpoint"], each["reason"]) for each in receipt["passed_over"]] == [("down", "open")]


async def test_who_has_read_done_has_a_good_answer_also_when_it_leaves_and_the_endpoint_goes_on(tmp_path: Path) -> None:
    async with FakeUpstream(streams(ROLE, word(0), FINISH, DONE, then="silence")) as fake:
        async with local_gateway(tmp_path, stack_document({"a": fake.url})) as gateway, gateway.client() as client:
            async with client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
                # Held: a line iterator that is thrown away closes the connection.
                lines = answer.aiter_lines()
                while await anext(lines) != "data: [DONE]":
                    pass
            receipt = await receipt_of(client, answer)
            assert (receipt["endpoint"], receipt["outcome"]) == ("a", "ok")
            assert [(each["endpoint"], each["outcome"]) for each in receipt["attempts"]] == [("a", "ok")]
            assert gateway.in_flight == 0
            assert (await client.get("/requests")).json()["requests"][0]["outcome"] == "ok"


async def test_who_nobody_could_answer_learns_why(tmp_path: Path) -> None:
    document = stack_document({"down": f"http://127.0.0.1:{free_port()}"})
    async with local_gateway(tmp_path, document) as gateway, gateway.client() as client:
        for _ in range(4):
            answer = await client.post("/v1/chat/completions", json=CHAT)
        receipt = await receipt_of(client, answer)

        assert (receipt["outcome"], receipt["endpoint"], receipt["attempts"]) == ("unavailable", "", [])
        assert [(each["endpoint"], each["reason"]) for each in receipt["passed_over"]] == [("down", "open")]


async def test_a_request_is_told_by_the_path_that_its_client_used(tmp_path: Path) -> None:
    asked = {
        "/v1/chat/completions": CHAT,
        "/api/chat": {**CHAT, "stream": False},
        "/v1/messages": {**CHAT, "max_tokens": 8},
        "/v1/responses": {"model": "chat", "input": "hi", "store": False},
    }
    async with FakeUpstream() as fake:
        async with local_gateway(tmp_path, stack_document({"a": fake.url})) as gateway, gateway.client() as client:
            for path, document in asked.items():
                answer = await client.post(path, json=document)
                assert answer.status_code == 200, answer.text
                assert (await receipt_of(client, answer))["path"] == path
            told = (await client.get("/requests")).json()["requests"]
            assert [one["path"] for one in reversed(told)] == list(asked)
            assert {seen.path for seen in fake.seen} == {"/v1/chat/completions"}


async def test_receipts_hold_nothing_of_what_was_asked(tmp_path: Path) -> None:
    async with FakeUpstream() as fake:
        async with local_gateway(tmp_path, stack_document({"a": fake.url})) as gateway, gateway.client() as client:
            secret = {"model": "chat", "messages": [{"role": "user", "content": "xyzzy-secret"}]}
            await client.post("/v1/chat/completions", json=secret)

            listed = await client.get("/admin/receipts")
            assert len(listed.json()["receipts"]) == 1 and "xyzzy" not in listed.text


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=00000000199999", "troubled=maybe"])
async def test_a_bad_question_for_receipts_names_the_parameter(tmp_path: Path, query: str) -> None:
    async with local_gateway(tmp_path, stack_document({"a": "http://127.0.0.1:9"})) as gateway:
        async with gateway.client() as client:
            answer = await client.get(f"/admin/receipts?{query}")
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == query.partition("=")[0]
            assert (await client.get("/admin/receipts/none")).status_code == 404


async def test_a_rehearsal_fails_over_without_asking_or_judging_the_endpoint(tmp_path: Path) -> None:
    async with FakeUpstream() as first, FakeUpstream() as second:
        document = stack_document({"a": first.url, "b": second.url})
        async with local_gateway(tmp_path, document) as gateway, gateway.client() as client:
            for _ in range(5):
                rehearsed = {"x-orchestrate-simulate": "fail=a"}
                answer = await client.post("/v1/chat/completions", json=CHAT, headers=rehearsed)
                assert answer.headers["x-orchestrate-endpoint"] == "b"
                assert answer.headers["x-orchestrate-attempts"] == "2"
            receipt = await receipt_of(client, answer)
            assert receipt["attempts"][0]["outcome"] == "simulated failure"
            assert not first.seen

            answer = await client.post("/v1/chat/completions", json=CHAT)
            assert answer.headers["x-orchestrate-endpoint"] == "a"

            answer = await client.post("/v1/chat/completions", json=CHAT, headers={"x-orchestrate-simulate": "fail=z"})
            assert answer.status_code == 400 and "it has: a, b" in answer.json()["error"]["message"]
            answer = await client.post("/v1/chat/completions", json=CHAT, headers={"x-orchestrate-simulate": "break"})
            assert answer.status_code == 400


async def test_a_broken_endpoint_fails_like_a_closed_port_until_it_is_mended(tmp_path: Path) -> None:
    async with FakeUpstream() as first, FakeUpstream() as second:
        document = stack_document({"a": first.url, "b": second.url})
        async with local_gateway(tmp_path, document) as gateway, gateway.client() as client:
            asked = await client.post("/admin/endpoints/break", json={"endpoint": "a", "seconds": 600})
            assert asked.status_code == 200
            answers = [await client.post("/v1/chat/completions", json=CHAT) for _ in range(4)]
            assert [answer.headers["x-orchestrate-attempts"] for answer in answers] == ["2", "2", "2", "1"]
            assert not first.seen

            await client.post("/admin/endpoints/close", json={"endpoint": "a"})
            answer = await client.post("/v1/chat/completions", json=CHAT)
            assert answer.headers["x-orchestrate-endpoint"] == "a"


async def test_a_broken_endpoint_mends_by_itself(tmp_path: Path) -> None:
    async with FakeUpstream() as fake:
        async with local_gateway(tmp_path, stack_document({"a": fake.url})) as gateway, gateway.client() as client:
            await client.post("/admin/endpoints/break", json={"endpoint": "a", "seconds": 0.05})

            async def is_answered() -> bool:
                await client.post("/admin/endpoints/probe", json={"endpoint": "a"})
                return (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200

            await until(is_answered, what="the endpoint is mended")


@pytest.mark.parametrize("seconds", [0, -1, 3601, "soon", None])
async def test_a_drill_says_for_how_long(tmp_path: Path, seconds: object) -> None:
    async with local_gateway(tmp_path, stack_document({"a": "http://127.0.0.1:9"})) as gateway:
        async with gateway.client() as client:
            answer = await client.post("/admin/endpoints/break", json={"endpoint": "a", "seconds": seconds})
            assert answer.status_code == 400 and answer.json()["error"]["param"] == "seconds"
