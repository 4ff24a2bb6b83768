"""Pure: a plan as data: the changes a person reads, and the graph of actions that makes them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NewType

from orchestrator.expand import DesiredUnit
from orchestrator.observed import ModelForm
from schemas.base import HelperName, NodeName, StackName, UnitId
from schemas.hashing import canonical_json
from schemas.routes import Instance
from schemas.unit import ModelSpec

ActionId = NewType("ActionId", str)
PLAN_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Action:
    id: ActionId
    node: NodeName
    cause: str
    after: tuple[ActionId, ...] = ()
    """The actions that must have succeeded before this one starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision(_Action):
    """Build the runtime environment of our programs on a node that has only Python."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync(_Action):
    """Bring a model into the node's store; does nothing where it is there already."""

    model: ModelSpec
    form: ModelForm = "mlx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull(_Action):
    """Ask a helper to fetch a model; its node is the helper's, or the gateway's where the helper names none."""

    helper: HelperName
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference(_Action):
    """Have one process on the node answer the prompts by which groups of a model are judged; kept for later plans."""

    model: ModelSpec
    long_tokens: int
    """Tokens of the longest prompt."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A unit that is started, with the ports that the plan took for it on its node."""

    unit: DesiredUnit
    port: int | None
    """Its HTTP port; None for a rank behind the first and for a watcher."""
    link_port: int | None = None
    """Where a rank listens for its peers' collectives; fresh for every launch. For JACCL: of rank 0 only."""
    control_port: int | None = None
    """Where rank 0 of a group listens for the control plane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(_Action):
    """Start a unit, or all ranks of a group or none of them. Units that are alive already are left as they are."""

    units: tuple[Placed, ...]
    """In rank order; one where it is no group. `node` is that of the first."""

    @property
    def first(self) -> Placed:
        """Return the unit that answers for the whole."""
        return self.units[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitReady(_Action):
    """Wait until a unit has given a real answer; fails with its last log lines when it ends before."""

    unit: UnitId
    timeout_s: float
    others: tuple[tuple[NodeName, UnitId], ...] = ()
    """The other ranks of its group: the end of any of them is a failure too."""
    long_tokens: int | None = None
    """Of a group: tokens of the longest prompt of its canary, which has to pass before it counts as ready."""
    is_limited: bool = False
    """No answers of one process are there for its canary."""
    is_serving: bool = False
    """It serves already and is judged again, by another canary: only a wrong answer ends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish(_Action):
    """Tell the gateway that an instance may be used; replaces an earlier entry of the same unit."""

    instance: Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(_Action):
    """Send an instance no new requests and wait for those in flight, at most `drain_s`."""

    unit: UnitId
    drain_s: float
    is_replaced: bool = False
    """Its successor starts after it has stopped: the gateway may hold requests until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(_Action):
    """End a unit with its process group, by force after `grace_s`, and take it out of the routes."""

    unit: UnitId
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unload(_Action):
    """Ask a worker that loads on demand for its idle model's memory; its next request loads it again if it fits."""

    unit: UnitId
    url: str
    """Where it listens, as its own node reaches it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw(_Action):
    """Take a unit that is gone out of the routes."""

    unit: UnitId


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewire(_Action):
    """Make the gateway compose the files again, with this plan's overrides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defer(_Action):
    """Do nothing on a node that cannot be reached: what runs there is unknown."""


Action = (
    Provision
    | Sync
    | Pull
    | Reference
    | Unload
    | Start
    | AwaitReady
    | Publish
    | Drain
    | Stop
    | Withdraw
    | Rewire
    | Defer
)

ChangeKind = Literal[
    "provision",
    "fetch",
    "pull",
    "reference",
    "unload",
    "start",
    "await",
    "judge",
    "replace",
    "rewire",
    "stop",
    "hold",
    "failed",
    "defer",
    "drain",
    "undrain",
]
SYMBOLS: dict[ChangeKind, str] = {
    "provision": "~",
    "pull": "~",
    "failed": "!",
    "hold": "?",
    "fetch": "~",
    "reference": "~",
    "unload": "~",
    "start": "+",
    "await": "~",
    "judge": "~",
    "replace": "+/-",
    "rewire": "~",
    "drain": "~",
    "undrain": "~",
    "stop": "-",
    "defer": "?",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a plan: what happens to what, and why."""

    kind: ChangeKind
    target: str
    """`node/slot`, `node/model` or `gateway`."""
    cause: str
    how: str = ""
    """`surge` or `swap`, for a replacement; `in 40 s` for what is held back."""

    @property
    def verb(self) -> str:
        """Return the word that the plan shows."""
        if self.kind == "hold":
            return f"start {self.how}"
        return f"{self.kind} ({self.how})" if self.how else self.kind


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done, in full. Equal inputs give equal plans, down to the byte."""

    stack: StackName
    changes: tuple[Change, ...] = ()
    actions: tuple[Action, ...] = ()
    conflicts: tuple[str, ...] = ()
    """What keeps the plan from being applied, each with the way out."""
    routing: tuple[str, ...] = ()
    """What the stack's roles can lose, in words."""
    memory: tuple[str, ...] = ()
    """Memory in use by node, in words."""
    outages: tuple[str, ...] = ()
    """Roles that will not answer for a while, in words; empty where nobody notices."""
    helpers: tuple[str, ...] = ()
    """What is wrong with the stack's helpers, in words."""
    notes: tuple[str, ...] = ()
    """What is as somebody asked for, and not as the files say, in words; with the way back."""
    left_out: tuple[str, ...] = ()
    """Changes that its targets leave out, in words."""
    next_look_s: float | None = None
    """After how long what is held back may be started; None where nothing is."""
    drifted: int = 0
    """Units that are not as the stack wants them."""
    nodes_seen: int = 0
    nodes: int = 0

    @property
    def is_empty(self) -> bool:
        """Tell whether everything is as it should be."""
        return not self.changes

    @property
    def is_partial(self) -> bool:
        """Tell whether it leaves something undone that the stack wants: deferred, held back or failed."""
        return any(change.kind in ("defer", "hold", "failed") for change in self.changes)

    @property
    def unreachable(self) -> tuple[NodeName, ...]:
        """Return the nodes that nothing could be decided for."""
        return tuple(action.node for action in self.actions if isinstance(action, Defer))

    def fingerprint(self) -> str:
        """Return a digest of what would be done; a saved plan is stale when it differs."""
        body = {"version": PLAN_VERSION, "stack": self.stack, "actions": [action_data(a) for a in self.actions]}
        return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def action_data(action: Action) -> dict[str, Any]:
    """Return an action as JSON data, with its kind."""
    fields = {field.name: getattr(action, field.name) for field in dataclasses.fields(action)}
    return {"kind": type(action).__name__, **{name: _plain(value) for name, value in fields.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Placed):
        placed = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: _plain(part) for name, part in placed.items()}
    if isinstance(value, DesiredUnit):
        return {"id": value.id, "spec": value.spec.model_dump(mode="json")}
    if isinstance(value, ModelSpec | Instance):
        return value.model_dump(mode="json")
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def plan_data(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield a plan as JSON objects, one a line: its changes, then the summary."""
    for change in plan.changes:
        yield {"version": PLAN_VERSION, "type": "change", **dataclasses.asdict(change)}
    for action in plan.actions:
        yield {"version": PLAN_VERSION, "type": "action", **action_data(action)}
    yield {
        "version": PLAN_VERSION,
        "type": "plan",
        "stack": plan.stack,
        "changes": len(plan.changes),
        "conflicts": list(plan.conflicts),
        "routing": list(plan.routing),
        "memory": list(plan.memory),
        "outages": list(plan.outages),
        "helpers": list(plan.helpers),
        "notes": list(plan.notes),
        "left_out": list(plan.left_out),
        "next_look_s": plan.next_look_s,
        "unreachable": list(plan.unreachable),
        "fingerprint": plan.fingerprint(),
    }


def render(plan: Plan, heading: str) -> str:
    """Return the text of a plan; `heading` says which revision becomes which generation."""
    seen = f"{plan.nodes_seen} of {plan.nodes} node{'s' if plan.nodes != 1 else ''} seen"
    drifted = f", {plan.drifted} unit{'s' if plan.drifted != 1 else ''} drifted" if plan.drifted else ""
    lines = [f"{heading}    {seen}{drifted}"]
    target_width = max((len(change.target) for change in plan.changes), default=0)
    verb_width = max((len(change.verb) for change in plan.changes), default=0)
    lines += [
        f"  {SYMBOLS[c.kind]:<3} {c.target:<{target_width}}   {c.verb:<{verb_width}}   {c.cause}" for c in plan.changes
    ]
    lines += [f"Conflict: {conflict}" for conflict in plan.conflicts]
    lines += [f"Note: {note}" for note in plan.notes]
    if plan.is_empty and not plan.conflicts and not plan.left_out:
        return "\n".join([*lines, "No changes. What runs is what the stack says."])
    if plan.routing:
        lines.append("Routing: " + "; ".join(plan.routing) + ".")
    if plan.memory:
        lines.append("Memory: " + ", ".join(plan.memory) + ".")
    if plan.helpers:
        lines.append("Helpers: " + "; ".join(plan.helpers) + ".")
    if plan.left_out:
        lines.append("Left out: " + ", ".join(plan.left_out) + ".")
    return "\n".join([*lines, _summary(plan)])


_COUNTED: tuple[tuple[ChangeKind, str], ...] = (
    ("provision", "to provision"),
    ("fetch", "to fetch"),
    ("pull", "to pull"),
    ("reference", "reference to compute"),
    ("unload", "to unload"),
    ("start", "to start"),
    ("await", "to wait for"),
    ("judge", "to judge"),
    ("replace", "to replace"),
    ("rewire", "to rewire"),
    ("drain", "to drain"),
    ("undrain", "to route again"),
    ("stop", "to stop"),
    ("hold", "held back"),
    ("failed", "failed"),
    ("defer", "deferred"),
)


def _summary(plan: Plan) -> str:
    counts = [(sum(change.kind == kind for change in plan.changes), words) for kind, words in _COUNTED]
    text = ", ".join(f"{count} {words}" for count, words in counts if count)
    outage = "; ".join(plan.outages) or "0 s"
    blocked = " It cannot be applied before the conflict is solved." if plan.conflicts else ""
    return f"Plan: {text or 'nothing'}. Expected outage: {outage}.{blocked}"
