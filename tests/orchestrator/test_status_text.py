"""What `status` says about files: of the stack that runs, not of another one that has its name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

import click

from orchestrator.cli.main import DEFAULT_CONF, cli
from orchestrator.cli.observe import shown_status
from orchestrator.controller import Controller
from orchestrator.directories import Directories
from orchestrator.observed import Observed, ObservedUnit, Reachable, Unreachable
from orchestrator.planned import Seen
from orchestrator.status import StackStatus, status_data, status_lines
from orchestrator.watching.report import WatcherReport, living_watcher, read_watcher, write_watcher
from schemas.admin import ConfigReport, EndpointReport
from schemas.base import NodeName, UnitId
from schemas.messages import (
    WorkerGroup,
    WorkerLink,
    WorkerMemory,
    WorkerPromptCache,
    WorkerQueue,
    WorkerRank,
    WorkerRequests,
    WorkerStatus,
    WorkerTokens,
    WorkerVersions,
)
from schemas.problems import Problem
from schemas.unit import GroupSpec, ModelSpec, WorkerSpec, unit_id


def status_of_a_stack_that_runs_from(owner, tmp_path):
    unit_id, node = UnitId("chat-0.0@0"), NodeName("local")
    unit = ObservedUnit(unit_id, node, alive=True, ready=True, owner=str(owner))
    seen = Seen(Observed({node: Reachable({unit_id: unit})}), None, (Problem(file="f", message="no such stack"),))
    control = Controller(tmp_path / "conf", "s", (), Directories(tmp_path, tmp_path / "cache"))
    return "\n".join(shown_status(control, seen))


def test_files_of_another_directory_are_not_blamed(tmp_path):
    text = status_of_a_stack_that_runs_from(tmp_path / "other", tmp_path)
    assert f"It runs from {tmp_path / 'other'}; look with:" in text
    assert "cannot be used" not in text


def test_bad_files_of_the_stack_that_runs_are_named(tmp_path):
    text = status_of_a_stack_that_runs_from(tmp_path / "conf", tmp_path)
    assert "The files cannot be used" in text
    assert "f: no such stack" in text


def test_a_gateway_without_any_key_says_how_to_make_one(tmp_path):
    unit_id, node = UnitId("gateway-0.0@0"), NodeName("local")
    unit = ObservedUnit(unit_id, node, alive=True, ready=True, owner=str(tmp_path))
    observed = Observed({node: Reachable({unit_id: unit})})
    control = Controller(tmp_path, "s", (), Directories(tmp_path, tmp_path / "cache"))
    said = "no client is let in: orchestrate keys new s --scope inference"
    with click.Context(cli, obj=DEFAULT_CONF):
        assert said not in "\n".join(shown_status(control, Seen(observed, None, ())))
        assert said in "\n".join(shown_status(control, Seen(observed, None, (), has_keys=False)))


NOW = 1_000_000.0
WATCHER = WatcherReport(
    pid=7, started_at=NOW - 600, looked_at=NOW - 4, state="waiting", notes=("b/coder-0: it waits",), mended=2,
    last_change="a/chat-0.0 not running", last_change_at=NOW - 120,
)  # fmt: skip


def seen(units: Iterable[ObservedUnit], gateway: ConfigReport | None = None) -> Observed:
    nodes = {
        name: Reachable({unit.id: unit for unit in units if unit.node == name})
        for name in (NodeName("a"), NodeName("b"))
    }
    return Observed({**nodes, NodeName("c"): Unreachable("no route to host")}, gateway=gateway)


def single(slot: str, **fields: object) -> ObservedUnit:
    return ObservedUnit(
        UnitId(f"{slot}@0"), NodeName("a"), **{"alive": True, "pid": 5, "started_at": NOW - 7200, **fields}
    )


def ranks(living: int = 3) -> list[ObservedUnit]:
    nodes = (NodeName("a"), NodeName("b"), NodeName("b"))
    group = GroupSpec(backend="ring", strategy="tensor", nodes=nodes)
    model = ModelSpec(name="m", source="path:/m")
    specs = [
        WorkerSpec(
            node=node, service="coder", replica=0, rank=rank, model=model, max_batch=1, max_waiting=1, group=group
        )
        for rank, node in enumerate(nodes)
    ]
    return [
        ObservedUnit(
            unit_id(spec),
            spec.node,
            alive=True,
            ready=True,
            spec=spec,
            launch="x",
            port=18100 if not spec.rank else None,
        )
        for spec in specs[:living]
    ]


def lines(units: Iterable[ObservedUnit], **fields: object) -> str:
    return "\n".join(status_lines(StackStatus("s", "/conf", seen(list(units)), NOW, **fields)))


def test_every_state_of_a_unit_has_its_word():
    text = lines(
        [
            single("one-0.0", ready=True, port=18100),
            single("two-0.0"),
            single("three-0.0", ready=True, silent_s=12.0),
            single("four-0.0", alive=False, exit="exit code 1"),
            single("five-0.0", alive=False, exit="exit code 1", crashes_s=(1.0, 20.0)),
            single("six-0.0", alive=False, exit="killed by SIGKILL", crashes_s=(1.0, 20.0, 40.0, 60.0, 80.0)),
        ],
        watcher=WATCHER,
    )
    assert "a/one-0.0                ready    pid 5, port 18100, up 2 h" in text
    assert "a/two-0.0                loading  pid 5, up 2 h" in text
    assert "a/three-0.0              silent   pid 5, up 2 h; has not answered for 12 s" in text
    assert "a/four-0.0               ended    exit code 1" in text
    assert "a/five-0.0               backoff  exit code 1; next try in 9 s" in text
    assert "a/six-0.0                failed   killed by SIGKILL; ended 5 times; when mended: restart s six-0" in text
    assert "c cannot be reached: no route to host" in text


def test_without_a_watcher_nothing_tries_again():
    assert "ended    exit code 1" in lines([single("five-0.0", alive=False, exit="exit code 1", crashes_s=(1.0,))])


def test_a_group_is_one_line_with_its_ranks():
    text = lines(ranks())
    assert "coder-0                  ready    ranks 0 on a, 1 on b, 2 on b; port 18100" in text
    assert text.count("coder-0") == 1
    assert "coder-0                  partial  ranks 0 on a, 1 on b; 2 of 3 live" in lines(ranks(living=2))
    assert "coder-0                  partial  ranks 2 on b; 1 of 3 live" in lines(ranks()[2:])


def test_the_watcher_says_what_it_does_and_waits_for():
    text = lines([], watcher=WATCHER)
    assert (
        "watched by pid 7: waiting, looked 4 s ago, last 2 min ago: a/chat-0.0 not running; b/coder-0: it waits" in text
    )


def test_the_rung_that_serves_is_marked_where_there_are_several():
    def endpoint(name: str, **fields: object) -> EndpointReport:
        values = {"role": "chat", "url": "http://a", "model": "m", "state": "ready", "in_flight": 0, **fields}
        return EndpointReport(name=name, **values)

    report = ConfigReport(
        stack="s", generation=1, revision=None, routing_digest="", routing={}, is_current=True, loaded_at=0.0,
        reloads=1, failed_reloads=0, pid=1, held={"chat": 2},
        endpoints=(
            endpoint("big", priority=1, state="open", last_error="connection refused"),
            endpoint("small", priority=2, is_serving=True, in_flight=3),
        ),
    )  # fmt: skip
    text = "\n".join(status_lines(StackStatus("s", "/conf", seen([], report), NOW)))
    assert "role chat: big is open, 0 in flight, last error: connection refused (rung 1)" in text
    assert "role chat: small is ready, 3 in flight (rung 2) *" in text
    assert "2 requests for chat held until its successor is ready" in text


def test_programs_get_the_same():
    units = [
        single("six-0.0", alive=False, crashes_s=(1.0, 20.0, 40.0, 60.0, 80.0)),
        single("five-0.0", alive=False, crashes_s=(1.0,)),
    ]
    data = list(status_data(StackStatus("s", "/conf", seen(units), NOW, watcher=WATCHER, rolled_back="4e1c9d2")))
    by_slot = {line["slot"]: line for line in data if line["type"] == "unit"}
    assert (by_slot["six-0.0"]["state"], by_slot["six-0.0"]["crashes"]) == ("failed", 5)
    assert (by_slot["five-0.0"]["state"], by_slot["five-0.0"]["next_try_s"]) == ("backoff", 4.0)
    nodes = {line["node"]: line["reachable"] for line in data if line["type"] == "node"}
    assert nodes == {"a": True, "b": True, "c": False}
    assert data[-1]["watcher"]["mended"] == 2
    assert data[-1]["rolled_back"] == "4e1c9d2"


def test_a_watcher_that_is_gone_or_quiet_does_not_live(tmp_path):
    path = tmp_path / "watcher.json"
    assert living_watcher(path, NOW) is None
    own = WATCHER.model_copy(update={"pid": os.getpid()})
    write_watcher(path, own)
    assert living_watcher(path, NOW) == own
    assert living_watcher(path, NOW + 3600) is None
    write_watcher(path, own.model_copy(update={"pid": 2**22 + 1}))
    assert living_watcher(path, NOW) is None
    path.write_text("{torn")
    assert read_watcher(path) is None


MIB = 1 << 20


def memory(resident: int | None = 300 * MIB, **fields: int) -> WorkerMemory:
    values = {"active_bytes": 80 * MIB, "peak_bytes": 90 * MIB, "cache_bytes": 20 * MIB, "model_bytes": 62 * MIB}
    values |= {"kv_bytes": 0, "rss_peak_bytes": 310 * MIB}
    return WorkerMemory(rss_bytes=resident, **{**values, **fields})


def report(
    ranks: tuple[WorkerRank, ...] = (), batch: int = 0, waiting: int = 0, **tokens: float | None
) -> WorkerStatus:
    group = WorkerGroup(size=len(ranks), backend="ring", strategy="tensor", launch="x", rounds=7, ranks=ranks)
    return WorkerStatus(
        model="m", phase="ready", context_length=2048, uptime_s=60.0, memory=memory(), group=group if ranks else None,
        queue=WorkerQueue(batch=batch, batch_limit=8, waiting=waiting, waiting_limit=64),
        requests=WorkerRequests(completed=1, failed=0, cancelled=0, refused=0),
        tokens=WorkerTokens(**{"prompt": 5, "generated": 9, "per_s": 0.0, "last_age_s": None, **tokens}),
        versions=WorkerVersions(orchestrate="1", python="3.11", mlx="0.32", mlx_lm="0.32"),
        prompt_cache=WorkerPromptCache(limit_bytes=9, bytes=1, entries=1, lookups=7, hits=1, cached_tokens=30),
    )  # fmt: skip


def test_a_group_tells_the_memory_of_every_rank_by_part_and_its_links():
    def link(latency_us: float, gbps: float | None) -> WorkerLink:
        return WorkerLink(latency_us=latency_us, latency_age_s=3, bandwidth_gbps=gbps, bandwidth_age_s=9)

    told = (
        WorkerRank(rank=0, phase="ready", progress=None, heartbeat_age_s=None, link=link(800, 0.8),
                   memory=memory(kv_bytes=4 * MIB, prompt_cache_bytes=MIB // 5)),
        WorkerRank(rank=1, phase="ready", progress=None, heartbeat_age_s=3.2, link=link(1400, 0.5),
                   memory=memory(None)),
        WorkerRank(rank=2, phase="loading", progress=0.4, heartbeat_age_s=1.0, memory=None),
    )  # fmt: skip
    units = ranks()
    text = lines([replace(units[0], worker=report(told, last_age_s=12.0)), *units[1:]])
    assert "links 1.4 ms, 0.5 Gb/s; idle, last token 12 s ago; prompt cache hit by 1 of 7" in text
    assert (
        "rank 0 on a: memory 300 MiB, peak 310 MiB (model 62 MiB, requests 4.0 MiB, prompt cache 0.2 MiB); "
        "links 0.8 ms, 0.8 Gb/s\n"
    ) in text
    assert "rank 1 on b: memory 100 MiB, peak 100 MiB (model 62 MiB); links 1.4 ms, 0.5 Gb/s; heard 3 s ago\n" in text
    assert "rank 2 on b: loading 40%; heard 1 s ago" in text


def test_a_worker_tells_what_it_does():
    busy = lines([single("one-0.0", ready=True, worker=report(batch=3, waiting=2, per_s=31.24, last_age_s=0.1))])
    assert "3 of 8 places in use, 2 waiting; 31.2 tokens/s; prompt cache hit by 1 of 7; memory 300 MiB" in busy
    assert "idle, last token 50 min ago" in lines([single("one-0.0", ready=True, worker=report(last_age_s=3000.0))])
    assert "idle" not in lines([single("one-0.0", ready=True, worker=report())])
