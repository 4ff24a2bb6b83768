"""I/O: what it costs to speak another protocol than OpenAI's: Anthropic's, Ollama's, and the Responses API.

`python -m bench.translation [--seconds N] [--rounds N] [--json]`. Two measures. Through a whole gateway in front of an
endpoint that answers at once, in turns with the same question in OpenAI's words: requests and streams of 64 events per
second on 1 and 32 connections, and the CPU time that the gateway needs more, a request and an event. And the
translations alone, in this process: microseconds to read a request, to write a whole answer, and an event, one that
comes by itself and one of many that arrive together. Everything runs on this machine, so only ratios and differences
inside one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gateway import ours
from bench.gateway.mock import EVENTS
from bench.gateway.ours import ROOT
from bench.gateway.peers import Front
from bench.gateway.processes import running
from bench.servers import free_ports
from runtime.gateway.bodies import parse_chat, read_document
from runtime.gateway.protocols.anthropic.messages import MessageTranslation
from runtime.gateway.protocols.anthropic.request import parse_messages
from runtime.gateway.protocols.ollama import requests as ollama
from runtime.gateway.protocols.ollama.answers import Clock, Speech
from runtime.gateway.protocols.responses.answer import Responses
from runtime.gateway.protocols.responses.request import parse_response
from runtime.gateway.protocols.translation import Translation

CONNECTIONS = (1, 32)
KINDS = ("json", "stream")
FIRST_ANSWER_S = 60.0
REPEATS = 100
"""How often a translation is repeated to measure it alone."""
TEXT = "Say forty words about rivers, please."
PLAIN = "openai"
_SAID = [{"role": "user", "content": TEXT}]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How one protocol asks the same."""

    name: str
    path: str
    fields: Mapping[str, Any]

    def body(self, *, is_stream: bool) -> str:
        """Return the body of the request."""
        return json.dumps({"model": "chat", **self.fields, "stream": is_stream}, separators=(",", ":"))


PROTOCOLS = (
    Protocol(PLAIN, "/v1/chat/completions", {"messages": _SAID}),
    Protocol("anthropic", "/v1/messages", {"messages": _SAID, "max_tokens": 64}),
    Protocol("ollama", "/api/chat", {"messages": _SAID}),
    Protocol("responses", "/v1/responses", {"input": TEXT}),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables or JSON, and return 0; 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.translation", description="Measure what translations cost.")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each run (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case, in turns (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(argv)
    alone = {protocol.name: measure_alone(protocol) for protocol in PROTOCOLS}
    runs = measure_whole(given.seconds, given.rounds)
    document = {"whole": [row(runs, kind, count) for kind in KINDS for count in CONNECTIONS], "alone": alone}
    print(json.dumps(document) if given.json else table(document))
    return 1 if any(run["failures"] for each in runs.values() for run in each) else 0


Runs = Mapping[tuple[str, int, str], Sequence[Mapping[str, float]]]
"""By kind, connections and protocol: the rounds."""


def measure_whole(seconds: float, rounds: int) -> Runs:
    """Ask a gateway in all protocols in turns."""
    runs: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        place = Path(directory)
        endpoint, port = free_ports(2)
        mock = [sys.executable, "-m", "bench.gateway.mock", "--port", str(endpoint)]
        stack.enter_context(running(mock, endpoint, place / "mock.log", cwd=ROOT))
        front = stack.enter_context(ours.serving(place, port, endpoint))
        due = time.monotonic() + FIRST_ANSWER_S
        while not ours.ask(front):
            if time.monotonic() > due:
                raise TimeoutError(f"the gateway did not answer within {FIRST_ANSWER_S:g} s; see its log in {place}")
            time.sleep(0.01)
        for _ in range(rounds):
            for kind in KINDS:
                for count in CONNECTIONS:
                    for protocol in PROTOCOLS:
                        figures = _load(front, protocol, kind == "stream", count, seconds)
                        runs.setdefault((kind, count, protocol.name), []).append(figures)
    return runs


def _load(front: Front, protocol: Protocol, is_stream: bool, connections: int, seconds: float) -> dict[str, float]:
    headers = [argument for line in front.headers for argument in ("--header", line)]
    command = [sys.executable, "-m", "bench.gateway.load", "--port", str(front.port), "--path", protocol.path]
    command += ["--body", protocol.body(is_stream=is_stream), *headers]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    spent = front.tree.cpu_s()
    figures: dict[str, float] = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    figures["cpu_us"] = (front.tree.cpu_s() - spent) * 1e6 / max(1, figures["requests"])
    return figures


def row(runs: Runs, kind: str, connections: int) -> dict[str, Any]:
    """Return what the rounds of one case come to, by protocol: medians, and ratios of neighbouring runs."""
    plain = runs[kind, connections, PLAIN]
    found: dict[str, Any] = {"kind": kind, "connections": connections}
    for protocol in PROTOCOLS:
        mine = runs[kind, connections, protocol.name]
        pairs = list(zip(mine, plain, strict=True))
        added_us = statistics.median(run["cpu_us"] - other["cpu_us"] for run, other in pairs)
        found[protocol.name] = {
            "requests_per_s": statistics.median(run["requests_per_s"] for run in mine),
            "ratio": statistics.median(
                run["requests_per_s"] / other["requests_per_s"] if other["requests_per_s"] else 0.0
                for run, other in pairs
            ),
            "added_median_ms": statistics.median(run["median_ms"] - other["median_ms"] for run, other in pairs),
            "added_cpu_us": added_us,
            **({"added_cpu_us_an_event": added_us / EVENTS} if kind == "stream" else {}),
        }
    return found


# -- alone -------------------------------------------------------------------------------------------------------------


def measure_alone(protocol: Protocol) -> dict[str, float]:
    """Return the microseconds of a protocol's own code: to read a request, and to write an answer, and an event.

    OpenAI's requests are read too; its answers and events are passed on as they come.
    """
    raw, whole = protocol.body(is_stream=False).encode(), _whole()
    streamed = protocol.body(is_stream=True).encode()
    events = [_event({"role": "assistant", "content": ""}), *(_event({"content": f"word{n} "}) for n in range(EVENTS))]
    figures = {"request_us": _per_call(lambda: _read(protocol.name, raw))}
    if protocol.name == PLAIN:
        return figures

    def stream() -> None:
        translation = _translation(protocol.name, streamed)
        for event in events:
            translation.feed(event)

    def burst() -> None:
        _translation(protocol.name, streamed).feed(b"".join(events))

    asked_us = _per_call(lambda: _translation(protocol.name, streamed))
    figures["answer_us"] = _per_call(lambda: _translation(protocol.name, raw).whole(whole)) - figures["request_us"]
    figures["event_us"] = (_per_call(stream) - asked_us) / len(events)
    figures["burst_us"] = (_per_call(burst) - asked_us) / len(events)
    return figures


def _read(name: str, raw: bytes) -> object:
    return parse_chat(raw) if name == PLAIN else _translation(name, raw)


def _translation(name: str, raw: bytes) -> Translation:
    match name:
        case "anthropic":
            return MessageTranslation(parse_messages(raw), "msg_1")
        case "ollama":
            ollama.chat(read_document(raw), "chat")
            return Speech("chat", "chat", Clock(time.monotonic, time.time))
        case _:
            _, head = parse_response(raw, "resp_1", 0)
            return Responses(head, time.time)


def _per_call(call: Callable[[], object]) -> float:
    """Return the microseconds of CPU of a call: the best of ten runs, the others were disturbed."""
    best = float("inf")
    for _ in range(10):
        began = time.process_time()
        for _ in range(REPEATS):
            call()
        best = min(best, (time.process_time() - began) / REPEATS)
    return best * 1e6


def _event(delta: dict[str, str]) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    document = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": [choice]}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def _whole() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "word " * 40}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 40, "total_tokens": 50}
    document = {"id": "c", "object": "chat.completion", "created": 1, "model": "mock", "choices": [choice]}
    return json.dumps({**document, "usage": usage}).encode()


# -- what is printed ---------------------------------------------------------------------------------------------------


def table(document: Mapping[str, Any]) -> str:
    """Write the figures as text."""
    lines = [
        "Through the gateway, against OpenAI's path (ratio of requests/s; what is added)",
        "kind    connections  protocol   requests/s  ratio  median ms  CPU us a request  CPU us an event",
    ]
    for case in document["whole"]:
        for protocol in PROTOCOLS:
            mine = case[protocol.name]
            an_event = mine.get("added_cpu_us_an_event")
            lines.append(
                f"{case['kind']:<7} {case['connections']:>11}  {protocol.name:<9}  {mine['requests_per_s']:>10,.0f}"
                f"  {mine['ratio']:>5.2f}  {mine['added_median_ms']:>+9.2f}  {mine['added_cpu_us']:>+16.0f}"
                + ("" if an_event is None else f"  {an_event:>+15.1f}")
            )
    lines += ["", "Alone (microseconds)", "protocol   a request  a whole answer  an event  one of many together"]
    for name, figures in document["alone"].items():
        cells = (figures.get(key) for key in ("request_us", "answer_us", "event_us", "burst_us"))
        request, answer, event, burst = ("-" if cell is None else f"{cell:.1f}" for cell in cells)
        lines.append(f"{name:<9}  {request:>9}  {answer:>14}  {event:>8}  {burst:>20}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
