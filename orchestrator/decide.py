"""Pure: what happens to each slot, before any of it becomes an action. See `orchestrator.reconcile` for the rules.

The decisions depend on each other: who stops gives room and ports to who starts. They begin with the best for every
slot and are taken back one by one (surge, then swap, then not now) until no start lacks memory or a port.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.budget import Budget
from orchestrator.expand import Desired
from orchestrator.groups import GATEWAY_GROUP, WATCHER_GROUP, GroupId, Slot, group_nodes, group_of
from orchestrator.memory import KnownMemory, free_memory
from orchestrator.observed import Observed, ObservedUnit, Reachable
from orchestrator.placement import AskedPort, asked_ports
from orchestrator.policy import PlanPolicy
from orchestrator.scope import Scope
from schemas.base import NodeName, UnitId

Mode = Literal["leave", "keep", "start", "relaunch", "surge", "swap", "remove", "defer", "hold", "failed"]
"""`leave`: nothing is known or asked for, nothing is touched. `relaunch`: what is left of a broken one is stopped, then
it is started. `defer`, `hold` and `failed`: it is not started now, and what is left of a broken one is stopped."""
STARTING: frozenset[Mode] = frozenset({"start", "relaunch", "surge", "swap"})


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one slot."""

    slot: Slot
    mode: Mode
    why: str = ""
    """Why it is not what was asked for, or why nothing happens."""
    wait_s: float = 0.0
    """For `hold`: after how long it may be started."""
    crashes: int = 0
    room: tuple[UnitId, ...] = ()
    """Units of other slots that have to stop before it can start."""
    unloads: tuple[UnitId, ...] = ()
    """Units that stay, and whose idle models, loaded on demand, have to be dropped before it can start."""

    def stops(self) -> list[ObservedUnit]:
        """Return the living units that go."""
        match self.mode:
            case "keep":
                return self.slot.others
            case "relaunch" | "surge" | "swap" | "remove":
                return self.slot.alive
            case "defer" | "hold" | "failed":
                return self.slot.current if self.slot.breakage() is not None else []
            case _:
                return []

    def stops_first(self) -> list[ObservedUnit]:
        """Return those of them that go before anything starts in their place."""
        match self.mode:
            case "surge":
                return self.slot.current
            case "swap" | "relaunch":
                return self.slot.alive
            case _:
                return []

    def stops_later(self) -> list[ObservedUnit]:
        """Return those of them that nothing waits for yet."""
        first = {unit.id for unit in self.stops_first()}
        return [unit for unit in self.stops() if unit.id not in first]


@dataclass(frozen=True, slots=True)
class Decisions:
    """What happens to every slot, and what keeps the plan from being applied."""

    of: Mapping[GroupId, Decision]
    conflicts: tuple[str, ...]
    is_gateway_seen: bool
    """Routes can be written, and it is known what they are."""


def decide(
    desired: Desired, observed: Observed, policy: PlanPolicy, slots: Mapping[GroupId, Slot], scope: Scope
) -> Decisions:
    """Return the decisions for all slots; those out of scope are left alone, unless one in it needs their port."""
    return _Deciding(desired, observed, policy, slots, scope).decisions()


class _Deciding:
    def __init__(
        self,
        desired: Desired,
        observed: Observed,
        policy: PlanPolicy,
        slots: Mapping[GroupId, Slot],
        scope: Scope,
    ) -> None:
        self.observed = observed
        self.policy = policy
        self.slots = slots
        self.known = KnownMemory(desired, observed)
        self.free = free_memory(desired, observed, self.known)
        self.asked = asked_ports(desired, observed, slots.values())
        self.restarts = scope.restarts
        self.scope = self._with_holders(scope.groups)
        gateway = slots.get(GATEWAY_GROUP)
        self.gateway_node = gateway.first.node if gateway is not None and gateway.wanted else None
        self.is_gateway_seen = self.gateway_node is not None and self._is_seen(self.gateway_node)
        self.current: dict[GroupId, Decision] = {}
        self.room: dict[GroupId, dict[UnitId, None]] = {}
        """Whom each start waits for, as the decisions stand."""

    def decisions(self) -> Decisions:
        self.current = {group: self._first_choice(slot) for group, slot in self.slots.items()}
        while True:
            self.room.clear()
            conflicts: list[str] = []
            changed = self._port_faults(conflicts) or self._memory_faults()
            if not changed:
                break
            self.current |= changed
        staying = {unit.id for unit in self._idle()}
        for group, units in self.room.items():
            stops, unloads = (tuple(u for u in units if (u in staying) == is_one) for is_one in (False, True))
            self.current[group] = replace(self.current[group], room=stops, unloads=unloads)
        return Decisions(self.current, tuple(conflicts), self.is_gateway_seen)

    # -- each slot by itself ---------------------------------------------------------------------------------------

    def _first_choice(self, slot: Slot) -> Decision:
        if slot.id not in self.scope:
            return Decision(slot, "leave")
        unseen = [node for node in slot.nodes() if not self._is_seen(node) and not self._is_lost(node)]
        if unseen:
            return Decision(slot, "leave", f"{_and(unseen)} cannot be reached; nothing of it is touched")
        if not slot.wanted:
            return Decision(slot, "remove") if self._may_reroute else Decision(slot, "leave", self._gateway_unseen())
        lost = [unit.node for unit in slot.wanted if self._is_lost(unit.node)]
        if lost:
            return self._without_its_node(slot, lost)
        if slot.id == WATCHER_GROUP and self.policy.heals and slot.others:
            return Decision(slot, "leave")  # it may be who carries this out: a person's apply replaces it
        breakage, is_asked = slot.breakage(), slot.id in self.restarts
        if slot.others and not self._may_reroute:
            return Decision(slot, "leave", self._gateway_unseen())
        if slot.current and breakage is None and not is_asked:
            return Decision(slot, "keep")
        if slot.alive and not self._may_reroute:
            return Decision(slot, "leave", self._gateway_unseen())
        judged = slot.restart()
        if judged.is_loop and not is_asked:
            return Decision(slot, "failed", crashes=judged.crashes)
        if self.policy.heals and judged.delay_s > 0 and not is_asked:
            return Decision(slot, "hold", wait_s=judged.delay_s, crashes=judged.crashes)
        if slot.current and breakage is None:
            return Decision(slot, "relaunch", "restart asked for")
        if slot.others:
            # a surge stops what is left of the wanted ones first: not where the group that serves would lose a rank
            is_one_launch = {unit.launch for unit in slot.current} & {unit.launch for unit in slot.others} - {None}
            is_swap = (slot.first.update == "swap" or bool(is_one_launch)) and not slot.is_gateway
            return Decision(slot, "swap" if is_swap else "surge")
        return Decision(slot, "start" if breakage is None else "relaunch")

    def _without_its_node(self, slot: Slot, lost: list[NodeName]) -> Decision:
        """Leave a slot whose node is gone; of a group that crossed it nothing can serve, so the rest of it goes."""
        why = f"{_and(dict.fromkeys(lost))} is assumed lost; it starts there when the node is back"
        if slot.is_gateway:
            why += ", until then nothing is routed; another node serves with gateway.node=NODE"
        halves = [unit for unit in slot.alive if any(self._is_lost(node) for node in group_nodes(unit.spec))]
        rest = [unit for unit in slot.others if unit not in halves]
        half = Slot(slot.id, slot.wanted, current=halves, others=rest, ended=slot.ended, remains=slot.remains)
        return Decision(half, "defer" if halves else "leave", why)

    @property
    def _may_reroute(self) -> bool:
        """Tell whether routed units may go: not while the gateway that may use them cannot be told."""
        node = self.gateway_node
        return node is None or self.is_gateway_seen or self._is_lost(node)

    def _gateway_unseen(self) -> str:
        return f"the gateway on {self.gateway_node} cannot be reached, and may route to what runs"

    def _is_seen(self, node: NodeName) -> bool:
        return isinstance(self.observed.nodes.get(node), Reachable)

    def _is_lost(self, node: NodeName) -> bool:
        return node in self.policy.assume_lost and not self._is_seen(node)

    # -- ports -----------------------------------------------------------------------------------------------------

    def _with_holders(self, scope: frozenset[GroupId]) -> frozenset[GroupId]:
        """Return the scope, with the slots whose units have a port that something in it asks for."""
        grown = set(scope)
        waiting = sorted(scope)
        while waiting:
            asked = self.asked.get(waiting.pop())
            needed = set() if asked is None else {group_of(unit.slot) for unit in asked.holders} - grown
            grown |= needed
            waiting += sorted(needed)
        return frozenset(grown)

    def _port_faults(self, conflicts: list[str]) -> dict[GroupId, Decision]:
        """Return the decisions that must change because a port is taken; adds what no plan can solve to `conflicts`."""
        gone = {unit.id for decision in self.current.values() for unit in decision.stops()}
        changed: dict[GroupId, Decision] = {}
        for name, asked in self.asked.items():
            group = GroupId(name)
            decision = self.current[group]
            if decision.mode not in STARTING:
                continue
            others = [unit for unit in asked.holders if group_of(unit.slot) != group]
            staying = [unit for unit in others if unit.id not in gone]
            if asked.unit.is_moved and (asked.stranger is not None or staying):
                changed[group] = Decision(decision.slot, "defer", asked.taken())
                continue
            if asked.stranger is not None:
                conflicts.append(asked.conflict())
            if staying and all(self._is_kept(unit) for unit in staying):
                conflicts.append(replace(asked, holders=tuple(staying)).conflict())
            elif staying:
                why = f"port {asked.port} on {asked.unit.node} is that of {staying[0].id}, which stays for now"
                changed[group] = Decision(decision.slot, "defer", why)
            elif decision.mode == "surge" and not decision.slot.is_gateway and self._is_in_the_way(asked, decision):
                changed[group] = Decision(decision.slot, "swap", "its port is in use until the old one stops")
            else:
                self.room.setdefault(group, {}).update(dict.fromkeys(unit.id for unit in others))
        return changed

    def _is_in_the_way(self, asked: AskedPort, decision: Decision) -> bool:
        first = {unit.id for unit in decision.stops_first()}
        return any(unit.id not in first for unit in asked.holders)

    def _is_kept(self, unit: ObservedUnit) -> bool:
        decision = self.current[group_of(unit.slot)]
        return decision.mode == "keep" and unit in decision.slot.current

    # -- memory ----------------------------------------------------------------------------------------------------

    def _memory_faults(self) -> dict[GroupId, Decision]:
        """Return the decisions that must change because there is no memory for them, as far as is known."""
        budget = Budget(dict(self.free), self.known, self._idle())
        starting = [decision for decision in self.current.values() if decision.mode in STARTING]
        changed: dict[GroupId, Decision] = {}
        for decision in starting:
            if decision.mode == "surge" and (why := budget.surge(decision.slot, decision.stops_first())):
                changed[decision.slot.id] = Decision(decision.slot, "swap", why)
        if changed:
            return changed
        for group, units in budget.borrowed.items():
            self.room.setdefault(group, {}).update(dict.fromkeys(units))
        in_place = [decision for decision in starting if decision.mode in ("swap", "relaunch")]
        waiting = [decision.slot for decision in in_place if not budget.replace(decision.slot, decision.stops_first())]
        for decision in self.current.values():
            budget.offer(decision.stops_later())
        budget.offer_idle()
        waiting += [decision.slot for decision in starting if decision.mode == "start"]
        for slot in sorted(waiting, key=lambda slot: slot.first.is_moved):  # who is at home has the room first
            room = budget.make_room(slot)
            if room is None:
                changed[slot.id] = Decision(slot, "defer", budget.shortage(slot))
            else:
                self.room.setdefault(slot.id, {}).update(dict.fromkeys(room))
        # What is put off and stops what is left of it gives room: the others are judged again with that.
        return {group: decision for group, decision in changed.items() if decision.stops()} or changed

    def _idle(self) -> list[ObservedUnit]:
        """Return the units that stay and whose models, loaded on demand, may be dropped for a start."""
        gone = {unit.id for decision in self.current.values() for unit in decision.stops()}
        return [unit for unit in self.known.idle() if unit.id not in gone]


def _and(nodes: Iterable[NodeName]) -> str:
    names = list(nodes)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
