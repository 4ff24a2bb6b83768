"""Pure: a plan while it is made: its changes and actions, and how a slot's launch and end become actions."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator import engines
from orchestrator.addresses import bind_address, url_host
from orchestrator.drain import is_drained
from orchestrator.engines import EngineError
from orchestrator.expand import Desired
from orchestrator.groups import GroupId, Slot, group_of, is_gateway, listens
from orchestrator.observed import ModelForm, Observed, ObservedUnit, Reachable
from orchestrator.placement import Ports, PortsExhaustedError
from orchestrator.plan import (
    Action,
    ActionId,
    AwaitReady,
    Change,
    ChangeKind,
    Drain,
    Provision,
    Publish,
    Reference,
    Start,
    Stop,
    Sync,
    Unload,
)
from orchestrator.policy import SILENT_LIMIT_S
from orchestrator.referencing import ReferencePlaces
from schemas.base import ModelName, NodeName, UnitId
from schemas.routes import Instance
from schemas.unit import AnyUnitSpec, EngineSpec, ModelSpec, WorkerSpec, models_of

STOP_GRACE_S = 20.0
"""Between TERM and KILL: a worker lets its answers finish for 10 s and takes up to 9 s more.

A gateway, which drains on TERM, gets its drain time on top.
"""
SILENT_GRACE_S = 5.0
"""The same for a unit that does not answer: it is not likely to hear the TERM."""
REWIRE = ActionId("rewire")


class Draft:
    """The changes and actions found so far; adding an action again changes nothing."""

    def __init__(
        self, desired: Desired, observed: Observed, gateway: NodeName | None, starting: Iterable[Slot] = ()
    ) -> None:
        self.desired = desired
        self.observed = observed
        self.gateway = gateway
        """Where routes can be written; None where there is no gateway or it cannot be reached."""
        self.actions: dict[ActionId, Action] = {}
        self.conflicts: list[str] = []
        self.notes: list[str] = []
        """What is weaker than it should be."""
        self.drifted = 0
        self._changes: list[Change] = []
        self._fetches: list[Change] = []
        self._ports = Ports(desired, observed)
        self._starting = tuple(starting)
        self._references = ReferencePlaces(desired, observed, self._starting)
        self._limited: set[GroupId] = set()
        """Groups whose canary has nothing to compare with."""
        routes = observed.routes
        self.published: dict[UnitId, Instance] = {} if routes is None else {i.unit: i for i in routes.instances}

    def changes(self) -> tuple[Change, ...]:
        """Return what a person reads, preparations first."""
        return (*self._fetches, *self._changes)

    def change(self, kind: ChangeKind, target: str, cause: str, how: str = "") -> None:
        """Add a line."""
        (self._fetches if kind in ("provision", "fetch", "reference", "unload") else self._changes).append(
            Change(kind, target, cause, how)
        )

    def add(self, action: Action) -> ActionId:
        """Add an action; returns its id, for those that wait for it."""
        self.actions[action.id] = action
        return action.id

    # -- bringing a slot up ----------------------------------------------------------------------------------------

    def start(self, slot: Slot, cause: str, after: tuple[ActionId, ...]) -> tuple[ActionId, ...]:
        """Add the actions that bring a slot up; returns those after which it serves."""
        try:
            placed = self._ports.place(slot)
        except PortsExhaustedError as error:
            self.conflicts.append(str(error))
            return ()
        if slot.is_gateway and REWIRE in self.actions:
            after = (*after, REWIRE)
        after = (*after, *self.prepare(slot))
        first = slot.first
        start = Start(
            id=action_id("start", first.id),
            node=first.node,
            cause=cause,
            after=tuple(dict.fromkeys(after)),
            units=placed,
        )
        started = self.add(start)
        if not slot.awaits:
            return (started,)
        return self.await_and_publish(slot, placed[0].port, cause, (started,))

    def await_and_publish(
        self, slot: Slot, port: int | None, cause: str, after: tuple[ActionId, ...]
    ) -> tuple[ActionId, ...]:
        """Add the wait for a slot's first answer, and its entry in the routes; returns what it serves after."""
        first, *others = slot.wanted
        references = self._reference(slot)
        ready = self.add(
            AwaitReady(
                id=action_id("ready", first.id),
                node=first.node,
                cause=cause,
                after=tuple(dict.fromkeys((*after, *references))),
                unit=first.id,
                timeout_s=first.ready_timeout_s,
                others=tuple((unit.node, unit.id) for unit in others),
                long_tokens=None if first.canary is None else first.canary.long_tokens,
                is_limited=slot.id in self._limited,
            )
        )
        instance = self.instance_of(first.spec, first.id, port)
        return (ready,) if instance is None else (self.publish(instance, cause, (ready,)) or ready,)

    def judge_again(self, slot: Slot, cause: str) -> None:
        """Add the judgement of a group that serves and goes on serving meanwhile."""
        first, *others = slot.wanted
        after = self._reference(slot)
        self.add(
            AwaitReady(
                id=action_id("judge", first.id),
                node=first.node,
                cause=cause,
                after=after,
                unit=first.id,
                timeout_s=first.ready_timeout_s,
                others=tuple((unit.node, unit.id) for unit in others),
                long_tokens=None if first.canary is None else first.canary.long_tokens,
                is_limited=slot.id in self._limited,
                is_serving=True,
            )
        )

    def publish(self, instance: Instance, cause: str, after: tuple[ActionId, ...] = ()) -> ActionId | None:
        """Add an entry to the routes; None where they cannot be written now."""
        if self.gateway is None:
            return None
        name = action_id("publish", instance.unit)
        return self.add(Publish(id=name, node=self.gateway, cause=cause, after=after, instance=instance))

    def instance_of(self, spec: AnyUnitSpec, unit: UnitId, port: int | None) -> Instance | None:
        """Return the routes entry that a unit should have; None for one that serves no model."""
        instance = instance_of(spec, unit, port)
        if instance is None or not is_drained(self.desired, unit, spec):
            return instance
        return instance.model_copy(update={"state": "draining"})

    def prepare(self, slot: Slot) -> tuple[ActionId, ...]:
        """Add what the nodes of a slot need before it can start, where it is missing; returns what brings it."""
        prepared = [action for unit in slot.wanted for action in self._prepare(unit.spec)]
        return tuple(dict.fromkeys((*prepared, *self._reference(slot))))

    def _reference(self, slot: Slot) -> tuple[ActionId, ...]:
        """Add what makes the answers that a group has to give, where none are kept and some node has room for it."""
        first = slot.first
        if first.canary is None or not isinstance(first.spec, WorkerSpec):
            return ()
        model, long_tokens = first.spec.model, first.canary.long_tokens
        name = ActionId(f"reference:{model.name}/{long_tokens}")
        if name in self.actions:
            return (name,)
        if (model.name, long_tokens) in self.observed.references or slot.id in self._limited:
            return ()
        place = self._references.place(slot)
        for other in self._starting:  # what one group of a model is judged by is there for all of them
            if isinstance(place, str) and other.id != slot.id and _asks_alike(other, slot):
                elsewhere = self._references.place(other)
                place = place if isinstance(elsewhere, str) else elsewhere
        if isinstance(place, str):
            self._limited.add(slot.id)
            self.notes.append(f"the canary of {slot.id} has nothing to compare with: {place}")
            return ()
        cause = f"no answers of one process are kept to judge a group by (prompts of up to {long_tokens} tokens)"
        if model.source.startswith("path:"):  # only its node can tell which files these are
            cause = f"a group is judged by what one process answers to prompts of up to {long_tokens} tokens"
        self.change("reference", f"{place.node}/{model.name}", cause)
        reference = Reference(
            id=name,
            node=place.node,
            cause=cause,
            after=self._prepare(place.spec),
            model=model,
            long_tokens=long_tokens,
        )
        return (self.add(reference),)

    def _prepare(self, spec: AnyUnitSpec) -> tuple[ActionId, ...]:
        """Add what a node needs before a unit can start there, where it is missing."""
        if isinstance(spec, EngineSpec) and spec.engine == "command":
            return self._sync(spec, ())  # it brings its own programs
        provision = self._provision(spec.node)
        if not isinstance(spec, WorkerSpec | EngineSpec):
            return provision
        return (*provision, *self._sync(spec, provision))

    def _provision(self, name: NodeName) -> tuple[ActionId, ...]:
        node = self.observed.nodes.get(name)
        if isinstance(node, Reachable) and node.is_provisioned:
            return ()
        provision = ActionId(f"provision:{name}")
        if provision not in self.actions:
            cause = "the runtime environment is not there"
            self.change("provision", name, cause)
            self.add(Provision(id=provision, node=name, cause=cause))
        return (provision,)

    def _sync(self, spec: WorkerSpec | EngineSpec, after: tuple[ActionId, ...]) -> tuple[ActionId, ...]:
        form = model_form(spec)
        if form is None:
            return ()
        return tuple(sync for model in models_of(spec) for sync in self._sync_one(spec.node, model, form, after))

    def _sync_one(
        self, place: NodeName, spec: ModelSpec, form: ModelForm, after: tuple[ActionId, ...]
    ) -> tuple[ActionId, ...]:
        node, model = self.observed.nodes.get(place), ModelName(spec.name)
        if isinstance(node, Reachable) and (model, form) in node.models:
            return ()
        target = f"{place}/{model}"
        sync = ActionId(f"sync:{target}" if form == "mlx" else f"sync:{target}:{form}")
        if sync not in self.actions:
            cause = "not in the model store" if form == "mlx" else f"not in the model store in its {form} form"
            self.change("fetch", target, f"{cause}: {spec.source}")
            self.add(Sync(id=sync, node=place, cause=cause, after=after, model=spec, form=form))
        return (sync,)

    def unload(self, unit: UnitId, cause: str) -> ActionId:
        """Add what drops the idle model of a unit that loads on demand; it is one action, whoever waits for it."""
        name = action_id("unload", unit)
        found = next(seen for seen in self.observed.units() if seen.id == unit)
        if name in self.actions:
            return name
        self.change("unload", place_of(found), cause)
        host = found.spec.host if isinstance(found.spec, WorkerSpec) else None  # nothing else loads on demand
        url = f"http://{url_host(host)}:{found.port}"
        return self.add(Unload(id=name, node=found.node, cause=cause, unit=unit, url=url))

    # -- taking units down -----------------------------------------------------------------------------------------

    def retire(
        self, slot: Slot, units: list[ObservedUnit], cause: str, after: tuple[ActionId, ...], *, is_swap: bool
    ) -> tuple[ActionId, ...]:
        """Add what ends living units; returns their stops.

        With `is_swap` their successor starts after they have stopped. What nobody routes to needs no draining, and what
        cannot answer has nothing to wait for.
        """
        drain_s = slot.first.drain_s if slot.wanted else STOP_GRACE_S
        drains: dict[str, ActionId] = {}
        for unit in units:
            if unit.id in self.published and self.gateway is not None:
                drain = Drain(
                    id=action_id("drain", unit.id),
                    node=unit.node,
                    cause=cause,
                    after=after,
                    unit=unit.id,
                    drain_s=drain_s if slot.can_serve(unit) else 0.0,
                    is_replaced=is_swap and not is_drained(self.desired, unit.id, unit.spec),
                )
                drains[unit.launch or unit.id] = self.add(drain)
        return tuple(self._stop(unit, cause, drains, after, drain_s) for unit in units)

    def _stop(
        self,
        unit: ObservedUnit,
        cause: str,
        drains: dict[str, ActionId],
        after: tuple[ActionId, ...],
        drain_s: float,
    ) -> ActionId:
        grace = STOP_GRACE_S + (drain_s if is_gateway(unit) else 0.0)
        if unit.silent_s > SILENT_LIMIT_S:
            grace = SILENT_GRACE_S
        drain = drains.get(unit.launch or unit.id)
        drained = after if drain is None else (drain,)
        stop = Stop(
            id=action_id("stop", unit.id), node=unit.node, cause=cause, after=drained, unit=unit.id, grace_s=grace
        )
        return self.add(stop)


def _asks_alike(one: Slot, other: Slot) -> bool:
    """Tell whether the groups of two slots are judged by the same answers."""
    specs = one.first.spec, other.first.spec
    if not (isinstance(specs[0], WorkerSpec) and isinstance(specs[1], WorkerSpec)):
        return False
    return specs[0].model == specs[1].model and one.first.canary == other.first.canary


def action_id(verb: str, unit: UnitId) -> ActionId:
    """Return the name of an action on a unit."""
    return ActionId(f"{verb}:{unit}")


def model_form(spec: WorkerSpec | EngineSpec) -> ModelForm | None:
    """Return in which form a unit needs its model on its node; None for a command that does not take it from there."""
    if isinstance(spec, WorkerSpec):
        return "mlx"
    try:
        return engines.model_form(spec)
    except EngineError:
        return None  # the plan names it as a conflict


def engine_conflicts(desired: Desired) -> list[str]:
    """Return a sentence for everything that keeps an engine from being started."""
    specs = [unit.spec for unit in desired.units.values() if isinstance(unit.spec, EngineSpec)]
    return [text for spec in specs if spec.replica == 0 for text in engines.problems(spec, bind_address(spec.host))]


def instance_of(spec: AnyUnitSpec, unit: UnitId, port: int | None) -> Instance | None:
    """Return the routes entry of a unit; None for one that serves no model, or is not the first of its group."""
    if not isinstance(spec, WorkerSpec | EngineSpec) or not listens(spec) or port is None:
        return None
    engine = spec.engine if isinstance(spec, EngineSpec) else "mlx"
    upstream = engines.upstream_model(spec) if isinstance(spec, EngineSpec) else spec.model.name
    return Instance(
        unit=unit,
        node=spec.node,
        service=spec.service,
        model=spec.model.name,
        url=f"http://{url_host(spec.host)}:{port}",
        state="ready",
        engine=engine,
        upstream_model=None if upstream == spec.model.name else upstream,
    )


def place_of(unit: ObservedUnit) -> str:
    """Return `node/slot` of a living unit, as plans show it; of a rank, `node/group`."""
    is_rank = isinstance(unit.spec, WorkerSpec) and unit.spec.group is not None
    return f"{unit.node}/{group_of(unit.slot) if is_rank else unit.slot}"
