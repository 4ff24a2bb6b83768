"""Pure: what the runs of the proxies come to, and the tables that say so."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALONE = "alone"
"""The endpoint itself, asked without any proxy."""
OURS = "orchestrate"
TARGET_ADDED_MS = {"median": 0.3, "p99": 1.0}
TARGET_RATIOS = {
    "json": {"vllm-router": 1.2, "litellm": 100.0},
    "stream": {"vllm-router": 1.4, "litellm": 100.0},
}
"""How many times a peer's requests/s the gateway should reach, from its specification's section on cost."""

Case = tuple[str, int]
"""Kind of request (`json`, `stream`) and connections."""
Run = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Life:
    """What a proxy needed beside the time of requests."""

    first_answer_s: float
    """From its start to its first answer."""
    idle_mib: float
    """Memory when it had answered one request."""
    after_mib: float
    """Memory when all runs were over."""


def median(runs: Sequence[Run], field: str) -> float:
    """Return the median of a figure over the rounds."""
    return statistics.median(run[field] for run in runs)


def paired(ours: Sequence[Run], theirs: Sequence[Run], field: str) -> float:
    """Return the median of ours / theirs over neighbouring runs; infinite where a peer answered nothing."""
    ratios = (
        mine[field] / other[field] if other[field] else float("inf") for mine, other in zip(ours, theirs, strict=True)
    )
    return statistics.median(ratios)


def report(
    runs: Mapping[tuple[Case, str], Sequence[Run]],
    paced: Mapping[str, Run],
    lives: Mapping[str, Life],
    reload_ms: Sequence[float],
) -> dict[str, Any]:
    """Put all figures into one document."""
    cases = []
    for (kind, connections), who in runs:
        mine, alone = runs[(kind, connections), who], runs[(kind, connections), ALONE]
        cases.append(
            {
                "kind": kind,
                "connections": connections,
                "who": who,
                "requests_per_s": round(median(mine, "requests_per_s"), 1),
                "ours_to_this": round(paired(runs[(kind, connections), OURS], mine, "requests_per_s"), 2),
                "added_median_ms": round(median(mine, "median_ms") - median(alone, "median_ms"), 3),
                "added_p99_ms": round(median(mine, "p99_ms") - median(alone, "p99_ms"), 3),
                "cpu_ms_per_request": round(median(mine, "cpu_ms_per_request"), 3),
                "failures": int(sum(run["failures"] for run in mine)),
            }
        )
    return {
        "version": 2,
        "cases": cases,
        "paced": {who: dict(run) for who, run in paced.items()},
        "processes": {
            who: {
                "first_answer_s": round(life.first_answer_s, 2),
                "idle_mib": round(life.idle_mib),
                "after_mib": round(life.after_mib),
            }
            for who, life in lives.items()
        },
        "reload_median_ms": round(statistics.median(reload_ms)),
        "reload_max_ms": round(max(reload_ms)),
        "failures": sum(case["failures"] for case in cases if case["who"] in (OURS, ALONE))
        + int(paced[OURS]["failures"]),
    }


def table(document: Mapping[str, Any]) -> str:
    """Write a report for people."""
    lines = [
        f"{'case':<20}{'proxy':<15}{'req/s':>9}{'ours/it':>9}{'added p50 ms':>14}{'added p99 ms':>14}{'CPU ms/req':>12}"
    ]
    for case in document["cases"]:
        name = f"{case['kind']}, {case['connections']} conn."
        failed = f"  {case['failures']} FAILED" if case["failures"] else ""
        lines.append(
            f"{name:<20}{case['who']:<15}{case['requests_per_s']:>9,.0f}{case['ours_to_this']:>9.2f}"
            f"{case['added_median_ms']:>14.3f}{case['added_p99_ms']:>14.3f}{case['cpu_ms_per_request']:>12.3f}{failed}"
        )
    lines += ["", f"{'paced streams':<20}{'events':>9}{'lost':>7}{'gap over pace p50 ms':>23}{'p99 ms':>9}"]
    alone = document["paced"][ALONE]["events"]
    for who, run in document["paced"].items():
        lines.append(
            f"{who:<20}{run['events']:>9,.0f}{max(0, alone - run['events']):>7,.0f}"
            f"{run['gap_over_pace_p50_ms']:>23.2f}{run['gap_over_pace_p99_ms']:>9.2f}"
        )
    lines += ["", f"{'process':<20}{'first answer s':>16}{'idle MiB':>10}{'after MiB':>11}"]
    for who, life in document["processes"].items():
        lines.append(f"{who:<20}{life['first_answer_s']:>16}{life['idle_mib']:>10}{life['after_mib']:>11}")
    lines.append("")
    lines.append(
        f"saved to answering: median {document['reload_median_ms']} ms, longest {document['reload_max_ms']} ms"
    )
    lines += _verdicts(document["cases"])
    if document["failures"]:
        lines.append(f"FAILED requests: {document['failures']}")
    return "\n".join(lines)


def _verdicts(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of each target of the specification whether this run reached it."""
    lines = []
    for case in cases:
        kind, connections, who = case["kind"], case["connections"], case["who"]
        wanted = TARGET_RATIOS[kind].get(who)
        if wanted is not None:
            verdict = "reached" if case["ours_to_this"] >= wanted else "MISSED"
            lines.append(f"{kind} at {connections}: {case['ours_to_this']}x {who}, target {wanted}x: {verdict}")
        if who == OURS and connections == 1:
            for name, limit in TARGET_ADDED_MS.items():
                verdict = "reached" if case[f"added_{name}_ms"] <= limit else "MISSED"
                lines.append(f"{kind} at 1: added {name} {case[f'added_{name}_ms']} ms, target {limit} ms: {verdict}")
    return lines
