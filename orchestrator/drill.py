"""Pure: a drill: which endpoints a name means, what clients saw before and while they were broken, and the verdict."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.admin import EndpointStatistics
from schemas.problems import nearest

BEFORE, BROKEN, AFTER = "before", "broken", "after"


class UnknownTargetError(Exception):
    """No endpoint and no node has this name; says what there is."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one client saw of one request."""

    role: str
    took_s: float
    status: int
    """HTTP status; 0 where there was no answer."""
    endpoint: str = ""
    """Who answered, as the answer's headers say."""
    fallback: str = ""
    attempts: int = 0
    fault: str = ""
    """Why it is no answer; empty where it is one."""


@dataclass(slots=True)
class Phase:
    """One part of a drill."""

    name: str
    seen: list[Seen] = field(default_factory=list)

    def failed(self) -> list[Seen]:
        """Return the requests that were not answered."""
        return [each for each in self.seen if each.fault]


def broken_by(
    name: str, endpoints: Sequence[EndpointStatistics], nodes: Mapping[str, str]
) -> tuple[EndpointStatistics, ...]:
    """Return the endpoints that a drill of `name` breaks: an endpoint, `role/endpoint`, or all on a node.

    `nodes` maps an endpoint's host and port to its node. Raises `UnknownTargetError`.
    """
    found = tuple(each for each in endpoints if name in (each.endpoint, *each.roles))
    found = found or tuple(each for each in endpoints if nodes.get(each.instance) == name)
    if found:
        return found
    known = sorted({each.endpoint for each in endpoints} | set(nodes.values()))
    guess = nearest(name, known)
    hint = f"did you mean '{guess}'?" if guess else f"there are: {', '.join(known) or 'none'}."
    raise UnknownTargetError(f"No endpoint and no node that serves one is called '{name}'; {hint}")


def unless_out(
    found: Sequence[EndpointStatistics],
) -> tuple[tuple[EndpointStatistics, ...], tuple[EndpointStatistics, ...]]:
    """Return which endpoints a drill breaks, and which it leaves alone: those that get no requests anyway.

    Mending would put back who was taken out by hand, and who is out because it does not answer.
    """
    out = tuple(each for each in found if each.breaker.state != "closed" or each.health in _OUT or each.failed_checks)
    return tuple(each for each in found if each not in out), out


def as_they_are(
    chosen: Sequence[EndpointStatistics], now: Sequence[EndpointStatistics]
) -> tuple[EndpointStatistics, ...]:
    """Return the chosen endpoints as a later look has found them; those that have left are none any more."""
    wanted = {(each.role, each.endpoint, each.instance) for each in chosen}
    return tuple(each for each in now if (each.role, each.endpoint, each.instance) in wanted)


_OUT = frozenset({"wedged", "misconfigured"})


def out_words(endpoint: EndpointStatistics) -> str:
    """Say why an endpoint gets no requests."""
    match endpoint.breaker.state:
        case "isolated":
            return "isolated by hand"
        case "closed":
            return endpoint.health if endpoint.health in _OUT else "unready"
        case state:
            return f"{state} already"


def roles_hit(broken: Sequence[EndpointStatistics]) -> tuple[str, ...]:
    """Return the roles whose clients may notice."""
    return tuple(dict.fromkeys(place.partition("/")[0] for each in broken for place in each.roles))


def is_passed(phases: Sequence[Phase]) -> bool:
    """Tell whether no client noticed more than another endpoint's answer, and something was asked at all."""
    return all(phase.seen and not phase.failed() for phase in phases)


def lines(name: str, broken: Sequence[EndpointStatistics], phases: Sequence[Phase]) -> Iterator[str]:
    """Yield the report for people."""
    yield f"Drill of {name}: broken were {', '.join(f'{each.endpoint} ({each.instance})' for each in broken)}."
    for phase in phases:
        for role in dict.fromkeys(each.role for each in phase.seen):
            yield _line(phase, role)
    faults = Counter(each.fault for phase in phases for each in phase.failed())
    yield from (f"  {count} x {fault}" for fault, count in faults.most_common(5))
    total = sum(len(phase.seen) for phase in phases)
    failed = sum(len(phase.failed()) for phase in phases)
    if not total:
        yield "No request was made: nothing was shown."
    elif failed:
        yield f"Verdict: {failed} of {total} requests failed; clients would have noticed."
    else:
        yield f"Verdict: all {total} requests were answered; clients noticed nothing but {_slowest(phases)}."


def data(name: str, broken: Sequence[EndpointStatistics], phases: Sequence[Phase]) -> dict[str, Any]:
    """Return the report for programs."""
    return {
        "type": "drill",
        "name": name,
        "broken": [{"endpoint": each.endpoint, "instance": each.instance} for each in broken],
        "passed": is_passed(phases),
        "phases": [
            {
                "phase": phase.name,
                "role": role,
                "requests": len(seen),
                "failed": sum(bool(each.fault) for each in seen),
                "median_s": round(statistics.median(each.took_s for each in seen), 4),
                "longest_s": round(max(each.took_s for each in seen), 4),
                "answered_by": dict(Counter(each.endpoint for each in seen if not each.fault)),
                "fallbacks": dict(Counter(each.fallback for each in seen if each.fallback)),
                "retried": sum(each.attempts > 1 for each in seen),
                "faults": dict(Counter(each.fault for each in seen if each.fault)),
            }
            for phase in phases
            for role in dict.fromkeys(each.role for each in phase.seen)
            for seen in [[each for each in phase.seen if each.role == role]]
        ],
    }


def _line(phase: Phase, role: str) -> str:
    seen = [each for each in phase.seen if each.role == role]
    good = [each for each in seen if not each.fault]
    who = Counter(each.endpoint or each.fallback or "nobody" for each in good)
    answered = ", ".join(f"{name} {count}" for name, count in who.most_common())
    retried = sum(each.attempts > 1 for each in good)
    fallbacks = Counter(each.fallback for each in good if each.fallback)
    notes = f"; {retried} after a failed attempt" if retried else ""
    notes += "".join(f"; {count} by the fallback {name}" for name, count in fallbacks.items())
    times = [each.took_s for each in good]
    spread = f"median {statistics.median(times):.2f} s, longest {max(times):.2f} s" if times else "no answer"
    return (
        f"{phase.name:<8}{role:<12}{len(good):>5} answered, {len(seen) - len(good)} failed, {spread}"
        + (f": {answered}" if answered else "")
        + notes
    )


def _slowest(phases: Sequence[Phase]) -> str:
    longest = {phase.name: max((each.took_s for each in phase.seen if not each.fault), default=0.0) for phase in phases}
    added = max(0.0, longest.get(BROKEN, 0.0) - longest.get(BEFORE, 0.0))
    return f"{added:.2f} s more for the slowest answer" if added >= 0.01 else "who answered"
