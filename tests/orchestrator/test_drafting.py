"""Draft models and prompt caches that a stack asks for: planned, counted, fetched, kept and shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.drafting import draft_conflicts, drafted_pairs
from orchestrator.expand import Desired
from orchestrator.memory import with_estimates
from orchestrator.models.wishes import needs, wishes_of
from orchestrator.observed import ModelFacts, Observed, ObservedUnit, Reachable
from orchestrator.plan import Start, Sync, render
from orchestrator.reconcile import reconcile
from orchestrator.sharing import allotments
from orchestrator.status import StackStatus, status_lines
from schemas.base import ModelName, NodeName, SlotId
from schemas.messages import (
    WorkerMemory,
    WorkerPromptCache,
    WorkerQueue,
    WorkerRequests,
    WorkerSpeculation,
    WorkerStatus,
    WorkerTokens,
    WorkerVersions,
)
from tests.conftest import Golden
from tests.orchestrator.test_plan_text import CODER, desired, empty, running

HELPED = {**CODER, "prompt_cache_gib": 2.0}
SMALL = {"small": {"model": "m0", "nodes": ["beta"]}}
"""Brings m0, which needs 1 GiB, into the stack; m1 needs 3."""
DRAFTED = {**HELPED, "draft": "m0", "draft_tokens": 5}


def drafted(**changes: object) -> Desired:
    return desired(coder={**DRAFTED, **changes}, **SMALL)


def undeclared(wanted: Desired, *names: str) -> Desired:
    models = {
        name: model.model_copy(update={"memory_gib": None}) if name in names else model
        for name, model in wanted.models.items()
    }
    units = {
        slot: replace(unit, memory_gib=None, is_estimate=False) if slot == "coder-0.0" else unit
        for slot, unit in wanted.units.items()
    }
    return replace(wanted, models=models, units=units)


def test_a_plan_fetches_the_draft_model_beside_the_model_and_counts_both_and_the_cache(golden: Golden) -> None:
    plan = reconcile(drafted(), empty())
    golden.check("plans/draft_model.txt", render(plan, "Stack world at 4e1c9d2 -> generation 18"))
    start = next(each for each in plan.actions if isinstance(each, Start) and each.first.unit.spec.slot == "coder-0.0")
    fetched = {each.id for each in plan.actions if isinstance(each, Sync) and each.node == "alpha"}
    assert fetched == {"sync:alpha/m0", "sync:alpha/m1"} and fetched <= set(start.after)
    assert reconcile(drafted(), running(drafted())).is_empty


def test_a_missing_draft_model_is_fetched_for_a_unit_whose_model_is_there() -> None:
    alpha = Reachable(memory_gib=16.0, memory_available_gib=12.0, models=frozenset({(ModelName("m1"), "mlx")}))
    plan = reconcile(drafted(), empty(alpha=alpha))
    assert [each.model.name for each in plan.actions if isinstance(each, Sync) and each.node == "alpha"] == ["m0"]


@pytest.mark.parametrize("change", [{"draft": None}, {"draft_tokens": 2}, {"prompt_cache_gib": 1.0}])
def test_each_key_is_part_of_what_a_unit_is(change: dict[str, object]) -> None:
    before, after = drafted(), drafted(**change)
    assert before.units[SlotId("coder-0.0")].id != after.units[SlotId("coder-0.0")].id
    assert not reconcile(after, running(before)).is_empty


@pytest.mark.parametrize(
    ("before", "after", "cause"),
    [
        (None, "m0", "draft none -> m0"),
        ("m0", None, "draft m0 -> none"),
        (
            "m0",
            "m1",
            "draft name m0 -> m1, draft source path:/models/m0 -> path:/models/m1 (there is no memory for both)",
        ),
    ],
)
def test_a_plan_names_the_draft_model_that_comes_or_goes(before: str | None, after: str | None, cause: str) -> None:
    plan = reconcile(drafted(draft=after), running(drafted(draft=before)))
    assert [change.cause for change in plan.changes if change.target == "alpha/coder-0.0"] == [cause]


def test_memory_is_what_the_models_and_the_cache_declare() -> None:
    assert desired(coder=HELPED).units[SlotId("coder-0.0")].memory_gib == 5.0
    assert drafted().units[SlotId("coder-0.0")].memory_gib == 6.0


def test_a_group_has_the_cache_on_each_rank() -> None:
    sharding = {"backend": "ring", "strategy": "tensor"}
    wanted = desired(coder={**HELPED, "nodes": ["alpha", "beta"], "sharding": sharding})
    assert [wanted.units[SlotId(f"coder-0.{rank}")].memory_gib for rank in range(2)] == [3.5, 3.5]


def test_a_draft_model_that_declares_nothing_is_estimated_and_forbids_nothing() -> None:
    unit = undeclared(drafted(), "m0")
    facts = {ModelName("m0"): ModelFacts("llama", weights_bytes=10 << 30)}
    (known,) = (with_estimates(unit, facts).units[slot] for slot in unit.units if slot == "coder-0.0")
    assert (known.memory_gib, known.is_estimate) == (3.0 + 2.0 + 12.0, True)
    both = undeclared(drafted(), "m0", "m1")
    facts[ModelName("m1")] = ModelFacts("llama", weights_bytes=20 << 30)
    assert with_estimates(both, facts).units[SlotId("coder-0.0")].memory_gib == 24.25 + 2.0 + 12.0
    seen = replace(empty(), facts=facts)
    assert not reconcile(both, seen).conflicts


def test_an_on_demand_worker_is_told_what_all_of_it_needs() -> None:
    wanted = drafted(start="on-demand")
    assert allotments(wanted, empty())[NodeName("alpha")].needs_gib == {"coder": 6.0}
    assert not reconcile(wanted, running(wanted)).conflicts


def test_the_stores_know_whose_model_it_is() -> None:
    wanted = drafted()
    spec = wanted.units[SlotId("coder-0.0")].spec
    assert [wish.model.name for wish in wishes_of(spec)] == ["m1", "m0"]
    found = {need.wish.model.name: need for need in needs(unit.spec for unit in wanted.units.values())}
    assert (found["m0"].nodes, found["m0"].slots) == (("alpha", "beta"), ("coder-0.0", "small-0.0"))


def test_a_draft_with_another_vocabulary_is_refused_before_anything_is_changed() -> None:
    wanted = drafted()
    assert {(model.name, draft.name) for model, draft in drafted_pairs(wanted)} == {("m1", "m0")}
    seen = replace(empty(), foreign_tokens={(ModelName("m1"), ModelName("m0")): "<x>"})
    (conflict,) = reconcile(wanted, seen).conflicts
    assert conflict.startswith("services.coder.draft: expected a model with the vocabulary of m1, and the token '<x>'")
    assert not draft_conflicts(desired(coder=CODER), seen)


def test_a_draft_of_a_family_that_a_worker_cannot_serve_is_refused_before_anything_is_changed() -> None:
    seen = replace(empty(), facts={ModelName("m0"): ModelFacts("llama4")})
    refused = [each for each in reconcile(drafted(), seen).conflicts if each.startswith("services.coder.draft: ")]
    assert len(refused) == 1
    assert refused[0].endswith(
        "found m0 of the family llama4, whose caches serve one request at a time; name a model of another family"
    )


def test_status_says_what_they_were_good_for() -> None:
    assert "prompt cache hit by 3 of 4; 60 of 90 drafted tokens accepted" in shown(WorkerSpeculation(
        draft="small", draft_tokens=3, proposed=90, accepted=60
    ))  # fmt: skip
    assert "its draft model is not used any more: no memory" in shown(WorkerSpeculation(
        draft="small", draft_tokens=3, proposed=90, accepted=60, failure="no memory"
    ))  # fmt: skip


def shown(speculation: WorkerSpeculation) -> str:
    memory = WorkerMemory(
        active_bytes=0, peak_bytes=0, cache_bytes=0, model_bytes=0, kv_bytes=0, rss_bytes=None, rss_peak_bytes=0
    )
    worker = WorkerStatus(
        model="m1", phase="ready", context_length=64, uptime_s=1.0, memory=memory,
        queue=WorkerQueue(batch=0, batch_limit=1, waiting=0, waiting_limit=1),
        requests=WorkerRequests(completed=4, failed=0, cancelled=0, refused=0),
        tokens=WorkerTokens(prompt=1, generated=1, per_s=0.0, last_age_s=None),
        versions=WorkerVersions(orchestrate="1", python="3", mlx="1", mlx_lm="1"),
        prompt_cache=WorkerPromptCache(limit_bytes=9, bytes=1, entries=1, lookups=4, hits=3, cached_tokens=12),
        speculation=speculation,
    )  # fmt: skip
    unit = drafted().units[SlotId("coder-0.0")]
    seen = ObservedUnit(unit.id, unit.node, alive=True, ready=True, spec=unit.spec, pid=7, worker=worker)
    observed = Observed({unit.node: Reachable({unit.id: seen})})
    return "\n".join(status_lines(StackStatus("world", "/conf", observed, 0.0)))
