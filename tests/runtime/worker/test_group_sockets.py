"""The life of a group from its first message to TERM, and what goes over its sockets meanwhile.

That is JSON that only this launch can read, and nothing that could be run.
"""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.worker.group import wire
from schemas import exits
from tests.runtime.worker.group import Group
from tests.runtime.worker.process import wait_until

PROMPT = [11, 211, 12, 212, 13, 213, 14, 214]


@dataclass(frozen=True)
class Life:
    """What a group of two left behind."""

    messages: list[bytes]
    """What the ranks told each other, as who has their keys reads it."""
    sniffed: bytes
    """The same as it was on the wire."""
    secret: str
    """One rank's secret key."""
    last_lines: list[str]
    """Of the stream that was under way when every rank got a TERM."""
    codes: dict[int, int]


@pytest.fixture(scope="module")
def life(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Life:
    with Group(tiny_model_dir, tmp_path_factory.mktemp("life"), 2, "--drain-s", "600", control_tap=1) as group:
        tap = group.tap
        assert tap is not None
        assert group.wait_ready().lead.text_of(prompt=PROMPT, max_tokens=8, temperature=0)
        wait_until(lambda: any(b'"heartbeat"' in message for message in tap.messages), "a heartbeat has passed")
        body = {"prompt": "the quick", "max_tokens": 400, "temperature": 0, "stream": True}
        with group.lead.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            for rank in (1, 0):
                group.signal(rank, signal.SIGTERM)
            last_lines = [line for line in lines if line]
        codes = group.wait_exits()
        return Life(list(tap.messages), bytes(group.valve.seen), group.keys[1][1], last_lines, codes)


def test_term_to_all_ranks_lets_a_request_finish(life: Life) -> None:
    assert life.last_lines[-1] == "data: [DONE]"
    assert life.codes == dict.fromkeys(range(2), exits.OK)


def test_every_message_is_json_and_none_can_be_read_without_the_keys(life: Life) -> None:
    messages, sniffed = life.messages, life.sniffed
    said = [json.loads(message) for message in messages]
    assert {message["kind"] for message in said} >= {
        "hello",
        "welcome",
        "loaded",
        "round",
        "done",
        "heartbeat",
        "shutdown",
    }
    for message in messages:
        assert wire.encode(wire.decode(message)) == message
    inserted = [insert["tokens"] for message in said if message["kind"] == "round" for insert in message["inserts"]]
    assert PROMPT in inserted
    # The same messages on the wire: the mechanism is named, nothing else is there to be read.
    assert b"CURVE" in sniffed
    assert len(sniffed) > sum(map(len, messages))
    for secret in (b'"kind"', b"inserts", str(PROMPT).replace(" ", "").encode()[1:-1], life.secret.encode()):
        assert secret not in sniffed
