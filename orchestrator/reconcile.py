"""Pure: reconcile(desired, observed, policy) -> Plan. Total and deterministic; the executor decides nothing after it.

A slot holds one unit, or all ranks of one sharded group: they are started and stopped together. For each:

1. All that is wanted lives, of one launch, and has answered: keep it; anything else alive in its slot goes.
2. It lives and has not answered yet: wait for it, then as 1.
3. Some of it does not live, or does not answer any more: stop what is left of it (relaunch), then as 4 or 5.
4. Something else fills the slot: replace it, by surge (start beside it, then stop it) where memory and ports allow,
   else by swap (stop it, then start).
5. Nothing fills it: start it.
6. The stack does not want the slot: drain and stop what is there.

What ended too often is not started again (failed); when nobody watches, what ended is started later and later (hold).
What there is no memory or port for is not started now (defer). Of a slot that crosses a node which did not answer
nothing is touched. The decisions are made in `orchestrator.decide`; here they become changes and actions. What is not a
slot is in `orchestrator.surroundings`.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.addresses import address_conflicts
from orchestrator.causes import canary_difference, difference, removal
from orchestrator.consequences import Service, outages, routing_notes
from orchestrator.decide import STARTING, Decision, decide
from orchestrator.draft import STOP_GRACE_S, Draft, action_id, engine_conflicts, place_of
from orchestrator.drafting import draft_conflicts
from orchestrator.drain import drained_notes, is_slot_drained
from orchestrator.expand import Desired
from orchestrator.groups import GATEWAY_GROUP, WATCHER_GROUP, Slot, slots_of
from orchestrator.kinds import batch_conflicts, dimension_conflicts, kind_notes
from orchestrator.memory import memory_conflicts, memory_notes, with_estimates
from orchestrator.observed import Observed, ObservedUnit, Reachable
from orchestrator.placement import owner_conflicts
from orchestrator.plan import ActionId, Defer, Drain, Plan
from orchestrator.policy import PlanPolicy
from orchestrator.scope import scope_of
from orchestrator.sharding import sharding_conflicts
from orchestrator.sharing import sharing_conflicts
from orchestrator.surroundings import defer_unreachable, helper_notes, pull_missing, rewire, withdraw_the_gone
from schemas.base import ServiceName, SlotId
from schemas.unit import GATEWAY_SERVICE, is_on_demand

__all__ = ["GATEWAY_SLOT", "STOP_GRACE_S", "reconcile"]
GATEWAY_SLOT = SlotId(f"{GATEWAY_GROUP}.0")
EVERYTHING = PlanPolicy()


def reconcile(desired: Desired, observed: Observed, policy: PlanPolicy = EVERYTHING) -> Plan:
    """Return what has to happen so that what runs is what the stack says, as far as the policy lets it."""
    in_order = dict(sorted(desired.units.items()))  # equal worlds give equal plans, however they were read
    desired = with_estimates(replace(desired, units=in_order), observed.facts)
    plan = _Reconciliation(desired, observed, policy).plan()
    if not policy.targets:
        return plan
    whole = _Reconciliation(desired, observed, replace(policy, targets=())).plan()
    planned = {(change.kind, change.target) for change in plan.changes}
    missing = [change for change in whole.changes if (change.kind, change.target) not in planned]
    return replace(plan, left_out=tuple(dict.fromkeys(f"{change.verb} {change.target}" for change in missing)))


class _Reconciliation:
    """One run: decides, then writes the decisions down slot by slot."""

    def __init__(self, desired: Desired, observed: Observed, policy: PlanPolicy) -> None:
        self.desired = desired
        self.observed = observed
        self.policy = policy
        self.slots = slots_of(desired, observed)
        self.scope = scope_of(policy, desired, observed, self.slots)
        self.decisions = decide(desired, observed, policy, self.slots, self.scope)
        gateway = self.slots.get(GATEWAY_GROUP)
        self.gateway_node = gateway.first.node if gateway is not None and gateway.wanted else None
        starting = [decision.slot for decision in self.decisions.of.values() if decision.mode in STARTING]
        gateway_node = self.gateway_node if self.decisions.is_gateway_seen else None
        self.draft = Draft(desired, observed, gateway_node, starting)
        self.services: dict[ServiceName, Service] = {}
        self.in_turn: dict[ServiceName, tuple[ActionId, ...]] = {}
        """After what the last replica of a service that goes down for its successor serves again."""
        self.needed = {unit for decision in self.decisions.of.values() for unit in decision.room}
        """Units whose end somebody's start waits for."""

    def plan(self) -> Plan:
        draft = self.draft
        draft.conflicts += self.scope.problems
        draft.conflicts += owner_conflicts(self.desired, self.observed)
        draft.conflicts += self.decisions.conflicts
        draft.conflicts += memory_conflicts(self.desired, self.observed)
        draft.conflicts += sharing_conflicts(self.desired, self.observed)
        specs = (unit.spec for unit in self.desired.units.values())
        draft.conflicts += address_conflicts(specs, self.desired.nodes)
        draft.conflicts += engine_conflicts(self.desired)
        draft.conflicts += sharding_conflicts(self.desired, self.observed.facts)
        draft.conflicts += batch_conflicts(self.desired, self.observed.facts)
        draft.conflicts += draft_conflicts(self.desired, self.observed)
        draft.conflicts += dimension_conflicts(self.desired, self.observed.facts)
        groups = self.scope.groups
        defer_unreachable(draft, self.desired, self.observed, self.slots, self.policy, groups)
        if self.scope.rewires:
            starts = draft.gateway is not None and self.decisions.of[GATEWAY_GROUP].mode in (*STARTING, "keep")
            rewire(draft, self.desired, self.observed, starts_gateway=starts)
        # A watcher that leaves a stack may be who carries this out: it goes last, when everything else is done.
        for decision in sorted(self.decisions.of.values(), key=lambda decision: decision.slot.id == WATCHER_GROUP):
            self._write(decision)
        if self.desired.units:  # else the whole stack goes down, and its routes with it
            withdraw_the_gone(draft, self.observed, self.slots, self.policy, groups)
        pull_missing(draft, self.desired, self.observed, self.scope, self.gateway_node)
        waits = [decision.wait_s for decision in self.decisions.of.values() if decision.mode == "hold"]
        return Plan(
            stack=self.desired.stack,
            changes=draft.changes(),
            actions=tuple(draft.actions.values()),
            conflicts=tuple(draft.conflicts),
            routing=tuple(routing_notes(self.desired, self.observed, self.services)),
            memory=tuple(memory_notes(self.desired, self.observed)),
            outages=tuple(outages(self.desired, self.observed, self.services)),
            helpers=tuple(helper_notes(self.desired, self.observed)),
            notes=(
                *self.desired.notes,
                *drained_notes(self.desired),
                *draft.notes,
                *kind_notes(self.desired, self.observed.facts),
            ),
            next_look_s=min(waits, default=None),
            drifted=draft.drifted,
            nodes_seen=sum(isinstance(node, Reachable) for node in self.observed.nodes.values()),
            nodes=len(self.observed.nodes),
        )

    # -- slots -----------------------------------------------------------------------------------------------------

    def _write(self, decision: Decision) -> None:
        slot = decision.slot
        service = self.services.setdefault(slot.service, Service())
        if is_slot_drained(self.desired, slot):
            service = Service()  # whatever becomes of it, it answers nobody
        match decision.mode:
            case "leave":
                self._leave(decision, service)
            case "keep":
                self._keep(slot, service)
            case "start":
                self._start(decision, slot.absence(), service)
            case "relaunch":
                self._relaunch(decision, service)
            case "surge":
                self._surge(decision, service)
            case "swap":
                self._swap(decision, service)
            case "remove":
                self._remove(slot)
            case "defer" | "hold" | "failed":
                self._put_off(decision, service)

    def _leave(self, decision: Decision, service: Service) -> None:
        """Touch nothing. Of what cannot be seen it is not known whether it serves: it is not counted."""
        slot = decision.slot
        if any(slot.can_serve(unit) for unit in slot.alive) and not decision.why:
            service.serving += 1
        self._serve_again(slot)
        nodes = [self.observed.nodes.get(node) for node in slot.nodes() if node not in self.policy.assume_lost]
        service.is_unseen |= any(not isinstance(node, Reachable) for node in nodes)
        is_told = len(slot.nodes()) == 1 and not isinstance(self.observed.nodes.get(slot.nodes()[0]), Reachable)
        if decision.why and (not is_told or slot.nodes()[0] in self.policy.assume_lost):
            self.draft.change("defer", slot.target(), decision.why)

    def _keep(self, slot: Slot, service: Service) -> None:
        """Keep what lives; what else fills the slot goes once it serves."""
        first = slot.current[0]
        if slot.awaits and not first.ready:
            cause = "started, not ready yet"
            self.draft.change("await", slot.target(), cause)
            ready = self.draft.await_and_publish(slot, first.port, cause, ())
            service.coming.append(f"until {first.slot} is ready")
        else:
            service.serving += 1
            ready = self._published(slot, first)
            if change := canary_difference(slot, first):
                self.draft.change("judge", slot.target(), change)
                self.draft.judge_again(slot, change)
        cause = f"{slot.first.id} has taken its place"
        for place in dict.fromkeys(place_of(unit) for unit in slot.others):
            self.draft.change("stop", place, cause)
        self.draft.retire(slot, slot.others, cause, ready, is_swap=False)

    def _published(self, slot: Slot, first: ObservedUnit) -> tuple[ActionId, ...]:
        """Put what is ready into the routes, if it is not there as it is."""
        instance = self.draft.instance_of(slot.first.spec, slot.first.id, first.port)
        if instance is None or self.draft.published.get(instance.unit) == instance:
            return ()
        old = self.draft.published.get(instance.unit)
        cause = f"{first.slot} is ready but not routed"
        if instance.state == "draining":
            cause = f"{first.slot} is drained"
        if old is not None and instance == old.model_copy(update={"state": "draining"}):
            return self._drain(slot, cause)
        published = self.draft.publish(instance, cause)
        if published is None:
            return ()
        self.draft.change("rewire", GATEWAY_SERVICE, cause)
        return (published,)

    def _drain(self, slot: Slot, cause: str) -> tuple[ActionId, ...]:
        """Take what runs out of the routes, as a drain that was cut short would have."""
        unit = slot.first
        if self.draft.gateway is None:
            return ()
        self.draft.change("drain", slot.target(), cause)
        name = action_id("drain", unit.id)
        return (self.draft.add(Drain(id=name, node=unit.node, cause=cause, unit=unit.id, drain_s=unit.drain_s)),)

    def _start(self, decision: Decision, cause: str, service: Service) -> None:
        slot = decision.slot
        self.draft.drifted += bool(slot.ended)
        self.draft.change("start", slot.target(), cause, "on demand" if is_on_demand(slot.first.spec) else "")
        self.draft.start(slot, cause, self._room(decision))
        service.coming.append(f"until {slot.first.spec.slot} is ready")

    def _relaunch(self, decision: Decision, service: Service) -> None:
        slot = decision.slot
        cause = slot.breakage() or decision.why
        self.draft.drifted += 1
        self.draft.change("replace", slot.target(), cause, "swap")
        self._take_turns(decision, cause, service)

    def _surge(self, decision: Decision, service: Service) -> None:
        slot = decision.slot
        cause = self._difference(decision, "surge")
        if any(slot.can_serve(unit) for unit in slot.others):
            service.serving += 1
        else:
            service.coming.append(f"until {slot.first.spec.slot} is ready")
        stops = self.draft.retire(slot, slot.current, cause, (), is_swap=False)
        again = self._serve_again(slot)
        ready = self.draft.start(slot, cause, (*stops, *self._room(decision)))
        self.draft.retire(slot, slot.others, cause, (*ready, *again), is_swap=False)

    def _swap(self, decision: Decision, service: Service) -> None:
        self._take_turns(decision, self._difference(decision, "swap"), service)

    def _take_turns(self, decision: Decision, cause: str, service: Service) -> None:
        """Stop a slot once its successor can start, and start that; of those that serve one replica after the other."""
        slot = decision.slot
        is_serving = any(slot.can_serve(unit) for unit in slot.alive)
        before = self._turn(slot) if is_serving else ()
        fetched = self.draft.prepare(slot) if slot.breakage() is None else ()
        stops = self.draft.retire(slot, slot.alive, cause, (*before, *fetched), is_swap=True)
        ready = self.draft.start(slot, cause, (*stops, *self._room(decision)))
        if is_serving:
            self.in_turn[slot.service] = ready
        if before:
            service.serving += 1  # it answers until the one before it does again
        else:
            self._expect_swap(slot, service)

    def _turn(self, slot: Slot) -> tuple[ActionId, ...]:
        """Return what a replica has to wait for, so that never all of a service are down at once.

        Nothing where a start needs the room that it leaves: they could wait for each other.
        """
        if any(unit.id in self.needed for unit in slot.alive):
            return ()
        return self.in_turn.get(slot.service, ())

    def _serve_again(self, slot: Slot) -> tuple[ActionId, ...]:
        """Put a unit back into the routes that was taken out for a successor which nobody brings now."""
        able = [unit for unit in slot.alive if slot.can_serve(unit)]
        entries = {unit.id: self.draft.published.get(unit.id) for unit in able}
        if any(entry is not None and entry.state == "ready" for entry in entries.values()):
            return ()
        for unit in able:
            entry = entries[unit.id]
            instance = None if unit.spec is None else self.draft.instance_of(unit.spec, unit.id, unit.port)
            if entry is None or entry.state != "replacing" or instance is None:
                continue
            cause = f"{unit.id} serves on until its successor does"
            published = self.draft.publish(instance, cause)
            if published is not None:
                self.draft.change("rewire", GATEWAY_SERVICE, cause)
                return (published,)
        return ()

    def _difference(self, decision: Decision, how: str) -> str:
        slot = decision.slot
        cause = difference(slot.wanted, slot.others[0]) + (f" ({decision.why})" if decision.why else "")
        self.draft.drifted += 1
        self.draft.change("replace", slot.target(), cause, how)
        return cause

    def _expect_swap(self, slot: Slot, service: Service) -> None:
        known = next((unit.load_s for unit in slot.alive if unit.load_s is not None), None)
        is_held = any(unit.id in self.draft.published for unit in slot.alive)
        wait = f"until {slot.first.spec.slot} is ready" if known is None else f"about {known:.0f} s"
        service.coming.append(f"{wait}, requests are held" if is_held else wait)

    def _remove(self, slot: Slot) -> None:
        after: tuple[ActionId, ...] = ()
        if not self.desired.units:
            # the watcher would start again what goes, and the gateway would route to it
            first = {WATCHER_GROUP: (), GATEWAY_GROUP: (WATCHER_GROUP,)}.get(slot.id, (WATCHER_GROUP, GATEWAY_GROUP))
            after = tuple(
                action_id("stop", unit.id)
                for group in first
                if (decision := self.decisions.of.get(group)) is not None
                for unit in decision.stops()
            )
        elif slot.id == WATCHER_GROUP:
            after = tuple(action.id for action in self.draft.actions.values() if not isinstance(action, Defer))
        places = {place_of(unit): removal(self.desired, unit.node) for unit in slot.alive}
        for place, cause in places.items():
            self.draft.drifted += 1
            self.draft.change("stop", place, cause)
        self.draft.retire(slot, slot.alive, next(iter(places.values())), after, is_swap=False)

    def _put_off(self, decision: Decision, service: Service) -> None:
        """Start nothing now; of what is broken the rest goes, and what still serves goes on serving."""
        slot = decision.slot
        service.serving += any(slot.can_serve(unit) for unit in slot.others)
        self._serve_again(slot)
        if not service.serving:
            service.coming.append("for now")
        times = f"crashed {decision.crashes} time{'s' if decision.crashes != 1 else ''}"
        if decision.mode == "failed":
            again = f"orchestrate restart {self.desired.stack} {slot.id}"
            cause = f"{times}, the last ones within ten minutes; not started any more. When mended: {again}"
            self.draft.change("failed", slot.target(), cause)
        elif decision.mode == "hold":
            cause = times
            self.draft.change("hold", slot.target(), cause, f"in {max(1, round(decision.wait_s))} s")
        else:
            cause = decision.why
            self.draft.change("defer", slot.target(), cause)
        self.draft.drifted += 1
        broken = slot.breakage() or cause
        for place in dict.fromkeys(place_of(unit) for unit in decision.stops()):
            self.draft.change("stop", place, broken)
        self.draft.retire(slot, decision.stops(), broken, (), is_swap=False)

    def _room(self, decision: Decision) -> tuple[ActionId, ...]:
        stops = tuple(action_id("stop", unit) for unit in decision.room)
        cause = f"idle; {decision.slot.id} needs its memory"
        return (*stops, *(self.draft.unload(unit, cause) for unit in decision.unloads))
