"""What goes over the sockets of a group: JSON that only this launch can read, and nothing that could be run."""

import json
from pathlib import Path

from runtime.worker.group import wire
from tests.runtime.worker.group import Group
from tests.runtime.worker.process import wait_until

PROMPT = [11, 211, 12, 212, 13, 213, 14, 214]


def test_every_message_is_json_and_none_can_be_read_without_the_keys(tiny_model_dir: Path, tmp_path: Path) -> None:
    with Group(tiny_model_dir, tmp_path, 2, control_tap=1) as group:
        tap = group.tap
        assert tap is not None
        answer = group.wait_ready().lead.text_of(prompt=PROMPT, max_tokens=8, temperature=0)
        assert answer
        wait_until(lambda: any(b'"heartbeat"' in message for message in tap.messages), "a heartbeat has passed")
        group.lead.terminate()
        group.wait_exits()
        messages, sniffed = list(tap.messages), bytes(group.valve.seen)
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
    for secret in (b'"kind"', b"inserts", str(PROMPT).replace(" ", "").encode()[1:-1], group.keys[1][1].encode()):
        assert secret not in sniffed
