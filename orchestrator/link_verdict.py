"""Pure: what a test of a group's links has found, as a table, causes and what would mend them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from schemas.base import Frozen, NodeName
from schemas.node import Node

SLOW_MS = 5.0
"""A round over a direct cable takes well under a millisecond; Wi-Fi takes several."""
DIRECT_NETWORK = "tb"
SIGALRM = 14
_JOIN_ENDED = {-SIGALRM, 128 + SIGALRM}

Stage = Literal["start", "killed", "bind", "connect", "accept", "join", "run", "time", "ended"]
_WORST_FIRST: tuple[Stage, ...] = ("connect", "bind", "start", "killed", "run", "join", "time", "accept", "ended")


class Measured(Frozen):
    """What one rank has measured."""

    latency_ms: float
    """The median of 4 KiB all-reduces."""
    latency_p99_ms: float
    gigabytes_per_s: float
    """4 MiB all-reduces: bytes of the array by the median time, in 10**9."""
    stress_rounds: int
    stress_worst_ms: float
    wrong: int
    """Sums that were not those of what the ranks had sent."""


class Failed(Frozen):
    """Why one rank could not measure anything."""

    stage: Stage
    reason: str
    address: str | None = None
    """`ip:port` that it called or wanted to listen on."""


@dataclass(frozen=True, slots=True)
class RankOutcome:
    """How the test went on one rank."""

    rank: int
    node: NodeName
    found: Measured | Failed


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or doubtful, and what to do about it."""

    cause: str
    mend: str
    is_failure: bool = True


def read_outcome(exit_code: int, stdout: str, stderr: str) -> Measured | Failed:
    """Return what a rank's program says with its output and its end."""
    line = stdout.strip().rpartition("\n")[2]
    for kind in (Measured, Failed):
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            continue
    if exit_code in _JOIN_ENDED:
        return Failed(stage="join", reason="the collectives did not connect in time")
    if exit_code < 0 or exit_code > 128:
        signal = -exit_code if exit_code < 0 else exit_code - 128
        return Failed(stage="killed", reason=f"ended by signal {signal}")
    tail = stderr.strip().rpartition("\n")[2] or "it said nothing"
    return Failed(stage="start", reason=f"exit code {exit_code}: {tail}")


def judge(
    outcomes: Sequence[RankOutcome], callees: Mapping[int, int], nodes: Mapping[NodeName, Node]
) -> tuple[Finding, ...]:
    """Return what is wrong with a group's links, the cause first.

    `callees` has, for every rank that dials another, the rank that it dials.
    """
    failed = [(outcome, outcome.found) for outcome in outcomes if isinstance(outcome.found, Failed)]
    if failed:
        worst = min((failure.stage for _, failure in failed), key=_WORST_FIRST.index)
        return tuple(
            _failure(outcome, failure, outcomes, callees, nodes)
            for outcome, failure in failed
            if failure.stage == worst
        )
    return tuple(_doubts(outcomes, nodes))


def is_well(findings: Sequence[Finding]) -> bool:
    """Tell whether nothing has failed; a doubt about the speed is no failure."""
    return not any(finding.is_failure for finding in findings)


def _failure(
    outcome: RankOutcome,
    failure: Failed,
    outcomes: Sequence[RankOutcome],
    callees: Mapping[int, int],
    nodes: Mapping[NodeName, Node],
) -> Finding:
    who = f"rank {outcome.rank} on {outcome.node}"
    match failure.stage:
        case "connect":
            peer = outcomes[callees[outcome.rank]]
            cause = f"{who} could not connect to rank {peer.rank} on {peer.node} at {failure.address}: {failure.reason}"
            return Finding(cause, _door(peer.node, outcome.node, nodes))
        case "accept":
            cause = f"{who} waited at {failure.address} and nobody connected"
            return Finding(cause, _door(outcome.node, outcome.node, nodes))
        case "bind":
            cause = f"{who} cannot listen on {failure.address}: {failure.reason}"
            return Finding(cause, f"set nodes.{outcome.node}.addresses to an address that this machine has itself")
        case "join":
            mend = "see that the nodes reach each other at these addresses, and that no rank of an older launch runs"
            return Finding(f"{who} did not join the group: {failure.reason}", mend)
        case "run":
            mend = "a cable or a machine that comes and goes: look at the connection of this node and run it again"
            return Finding(f"{who} lost the group in the middle: {failure.reason}", mend)
        case "time":
            mend = "a link that hangs: look at its cable and its MTU, and run it again"
            return Finding(f"{who} did not come to an end: {failure.reason}", mend)
        case "start":
            mend = f"run node doctor {outcome.node}: its environment needs MLX as the service does"
            return Finding(f"{who} could not start: {failure.reason}", mend)
        case "killed":
            mend = f"see who ended it on {outcome.node}: its memory may be used up (orchestrate node doctor)"
            return Finding(f"{who} was {failure.reason}", mend)
        case "ended":
            return Finding(f"{who} was ended: {failure.reason}", "run it again")


def _door(node: NodeName, caller: NodeName, nodes: Mapping[NodeName, Node]) -> str:
    ports = nodes[node].ports if node in nodes else "its ports"
    return (
        f"open TCP {ports} in the firewall of {node} and see that nodes.{node}.addresses is right; on macOS also allow "
        f"Local Network for the program on {caller} (System Settings, Privacy & Security)"
    )


def _doubts(outcomes: Sequence[RankOutcome], nodes: Mapping[NodeName, Node]) -> Iterator[Finding]:
    is_one_machine = len({outcome.node for outcome in outcomes}) == 1
    is_direct = all(DIRECT_NETWORK in nodes[outcome.node].addresses for outcome in outcomes if outcome.node in nodes)
    for outcome in outcomes:
        if isinstance(outcome.found, Measured) and outcome.found.wrong:
            cause = f"rank {outcome.rank} on {outcome.node} got {outcome.found.wrong} wrong sums"
            mend = "do not serve over this link: try another cable or port, and the same versions of MLX on all nodes"
            yield Finding(cause, mend)
    slow = [outcome.found.latency_ms for outcome in outcomes if isinstance(outcome.found, Measured)]
    if slow and max(slow) > SLOW_MS and not is_one_machine:
        over = "what the files call a direct cable" if is_direct else "this network"
        cause = f"a round of 4 KiB takes {max(slow):.1f} ms over {over}"
        mend = f"is it Wi-Fi? Connect the nodes by cable, and name its addresses: nodes.*.addresses.{DIRECT_NETWORK}"
        yield Finding(cause, mend, is_failure=False)


def render(title: str, outcomes: Sequence[RankOutcome], findings: Sequence[Finding]) -> list[str]:
    """Return the lines for people: one a rank, what is wrong, the verdict."""
    lines = [title, f"  {'rank':<18}{'median':>10}{'p99':>10}{'4 MiB':>24}{'stress':>28}"]
    for outcome in outcomes:
        name = f"{outcome.rank} on {outcome.node}"
        match outcome.found:
            case Measured() as seen:
                speed = f"{seen.gigabytes_per_s:.2f} GB/s, {seen.gigabytes_per_s * 8:.1f} Gbit/s"
                stress = f"{seen.stress_rounds} rounds, worst {seen.stress_worst_ms:.0f} ms"
                lines.append(
                    f"  {name:<18}{seen.latency_ms:>7.2f} ms{seen.latency_p99_ms:>7.2f} ms{speed:>24}{stress:>28}"
                )
            case Failed() as failure:
                lines.append(f"  {name:<18}{failure.stage}: {failure.reason}")
    for finding in findings:
        lines += [f"  cause: {finding.cause}", f"  mend:  {finding.mend}"]
    verdict = "fails" if not is_well(findings) else "works, with a doubt" if findings else "works, all sums right"
    return [*lines, f"  The group {verdict}."]


def outcome_data(outcome: RankOutcome) -> dict[str, Any]:
    """Return one rank for `--json`."""
    kind = "measured" if isinstance(outcome.found, Measured) else "failed"
    return {"rank": outcome.rank, "node": outcome.node, kind: outcome.found.model_dump(mode="json", exclude_none=True)}
