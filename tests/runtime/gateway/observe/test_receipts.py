"""What is remembered of requests that are over."""

from __future__ import annotations

from runtime.gateway.attempt import Made
from runtime.gateway.observe.receipts import Entry, Receipts, written
from runtime.gateway.routing.select import Skipped
from runtime.gateway.routing.table import identity_at

ENTRY = Entry(
    id="req-1",
    at=1_700_000_000.0,
    began_at=10.0,
    ended_at=12.5,
    model="chat",
    route="chat",
    path="/v1/chat/completions",
    is_stream=True,
    endpoint="two",
    fallback="",
    outcome="ok",
    made=(
        Made("one", 10.0, None, 10.25, "refused", "connection refused"),
        Made("two", 10.25, 10.5, 12.5, "ok", identity=identity_at("http://127.0.0.1:8001", "mlx", "small")),
    ),
    skipped=(Skipped("three", "open", retry_s=20.0), Skipped("one", "tried")),
    generation=7,
    revision="abc123",
)


def numbered(number: int, **more: object) -> Entry:
    return ENTRY._replace(id=f"req-{number}", **more)


def test_times_are_told_from_the_moment_the_request_came() -> None:
    receipt = written(ENTRY)

    assert receipt.took_s == 2.5
    assert [(each.endpoint, each.began_s, each.first_s, each.ended_s) for each in receipt.attempts] == [
        ("one", 0.0, None, 0.25),
        ("two", 0.25, 0.5, 2.5),
    ]


def test_an_attempt_tells_which_replica_was_asked() -> None:
    assert [each.url for each in written(ENTRY).attempts] == ["", "http://127.0.0.1:8001"]


def test_who_was_tried_is_no_endpoint_that_was_passed_over() -> None:
    assert [(over.endpoint, over.reason, over.retry_s) for over in written(ENTRY).passed_over] == [
        ("three", "open", 20.0)
    ]


def test_the_oldest_go_first_and_the_newest_come_first() -> None:
    receipts = Receipts(kept=3)
    for number in range(5):
        receipts.add(numbered(number))

    assert [receipt.id for receipt in receipts.latest(2)] == ["req-4", "req-3"]
    assert receipts.find("req-1") is None
    found = receipts.find("req-2")
    assert found is not None and found.id == "req-2"


def test_a_client_that_uses_an_id_again_gets_the_later_receipt() -> None:
    receipts = Receipts(kept=2)
    receipts.add(numbered(1, outcome="ok"))
    receipts.add(numbered(2))
    receipts.add(numbered(1, outcome="stalled"))
    receipts.add(numbered(3))

    assert [(receipt.id, receipt.outcome) for receipt in receipts.latest(5)] == [("req-3", "ok"), ("req-1", "stalled")]


def test_trouble_is_a_failure_a_second_attempt_or_a_fallback() -> None:
    receipts = Receipts()
    one = ENTRY.made[1:]
    receipts.add(numbered(1, made=one))
    receipts.add(numbered(2, made=one, outcome="client left"))
    receipts.add(numbered(3, made=one, outcome="stalled"))
    receipts.add(numbered(4))
    receipts.add(numbered(5, made=one, fallback="spare"))

    assert [receipt.id for receipt in receipts.latest(10, only_troubled=True)] == ["req-5", "req-4", "req-3"]
