"""Hot edits change no spec hash, cold ones do; both against every field that the types mark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.expand import expand
from schemas.hashing import canonical_json, routing_digest, routing_fields, spec_hash
from schemas.stack import Stack
from schemas.unbuilt import UNBUILT
from schemas.unit import GatewaySpec, ModelSpec, WorkerSpec

TREE: dict[str, Any] = json.loads((Path(__file__).parent / "home-lab.json").read_text())

# marked field -> (where it stands in the example, another valid value)
EDITS: dict[str, tuple[str, Any]] = {
    "Node.reach": ("nodes.mono512.reach", "local"),
    "Node.host": ("nodes.m4max.host", "other.lan"),
    "Node.user": ("nodes.mono512.user", "you"),
    "Node.os": ("nodes.mono512.os", "linux"),
    "Node.memory_gib": ("nodes.mono512.memory_gib", 511),
    "Node.reserve_gib": ("nodes.mono512.reserve_gib", 17),
    "Node.addresses": ("nodes.m4max.addresses", {"lan": "192.168.188.11"}),
    "Node.rdma": ("nodes.mono512.rdma", {}),
    "Node.ports": ("nodes.mono512.ports", "18100-18198"),
    "Model.source": ("models.qwen25-coder-32b.source", "hub:mlx-community/other"),
    "Model.revision": ("models.qwen25-coder-32b.revision", "1f3a"),
    "Model.digest": ("models.qwen25-coder-32b.digest", "sha256:" + "0" * 64),
    "Model.kind": ("models.qwen25-coder-32b.kind", "embedding"),
    "Model.memory_gib": ("models.qwen25-coder-32b.memory_gib", 20),
    "Model.context": ("models.qwen25-coder-32b.context", 4096),
    "Service.model": ("services.coder.model", "qwen3-235b"),
    "Service.engine": ("services.coder.engine", "vllm"),
    "Service.nodes": ("services.coder.nodes", ["m4max"]),
    "Service.sharding": ("services.titan.sharding", None),
    "Service.replicas": ("services.coder.replicas", 2),
    "Service.update": ("services.coder.update", "swap"),
    "Service.start": ("services.coder.start", "on-demand"),
    "Service.idle_stop_s": ("services.coder.idle_stop_s", 60),
    "Service.port": ("services.coder.port", 18150),
    "Service.max_batch": ("services.coder.max_batch", 4),
    "Service.max_waiting": ("services.coder.max_waiting", 4),
    "Service.prompt_cache_gib": ("services.coder.prompt_cache_gib", 2),
    "Service.draft": ("services.coder.draft", "qwen25-coder-05b"),
    "Service.draft_tokens": ("services.drafted.draft_tokens", 5),
    "Service.ready_timeout_s": ("services.coder.ready_timeout_s", 4),
    "Service.drain_s": ("services.coder.drain_s", 4),
    "Service.args": ("services.boxed.args", {"ctx-size": 8192}),
    "Sharding.backend": ("services.titan.sharding.backend", "ring"),
    "Sharding.strategy": ("services.titan.sharding.strategy", "pipeline"),
    "Sharding.split": ("services.piped.sharding.split", [50, 50]),
    "Sharding.canary": ("services.titan.sharding.canary", "off"),
    "Canary.long_tokens": ("services.titan.sharding.canary", {"long_tokens": 128}),
    "Helper.node": ("helpers.rtx.node", "m4max"),
    "Helper.url": ("helpers.rtx.url", "http://192.168.188.21:11434"),
    "Helper.api": ("helpers.rtx.api", "openai"),
    "Helper.models": ("helpers.rtx.models", {"nomic-embed-text:v1.5": {}}),
    "Helper.max_batch": ("helpers.rtx.max_batch", 16),
    "Helper.key": ("helpers.rtx.key", "secret"),
    "HelperModel.ensure": ("helpers.rtx.models.nomic-embed-text:v1.5.ensure", None),
    "HelperModel.kind": ("helpers.rtx.models.nomic-embed-text:v1.5.kind", "embedding"),
    "Helper.drop_params": ("helpers.rtx.drop_params", ["seed"]),
    "ServiceEndpoint.drop_params": ("roles.chat.endpoints.coder.drop_params", ["seed"]),
    "HelperEndpoint.drop_params": ("roles.embedding.endpoints.rtx.drop_params", ["user"]),
    "ServiceEndpoint.service": ("roles.chat.endpoints.coder.service", "titan"),
    "ServiceEndpoint.priority": ("roles.chat.endpoints.coder.priority", 3),
    "ServiceEndpoint.weight": ("roles.chat.endpoints.coder.weight", 3),
    "ServiceEndpoint.timeout_s": ("roles.chat.endpoints.coder.timeout_s", 3),
    "HelperEndpoint.helper": ("roles.embedding.endpoints.rtx.helper", "rty"),
    "HelperEndpoint.model": ("roles.embedding.endpoints.rtx.model", "qwen3-reranker:0.6b"),
    "HelperEndpoint.priority": ("roles.embedding.endpoints.rtx.priority", 3),
    "HelperEndpoint.weight": ("roles.embedding.endpoints.rtx.weight", 3),
    "HelperEndpoint.timeout_s": ("roles.embedding.endpoints.rtx.timeout_s", 3),
    "LocalFallback.local": ("roles.embedding.fallback.local", "coder"),
    "RoleFallback.role": ("roles.drafting.fallback.role", "embedding"),
    "Role.endpoints": ("roles.chat.endpoints", {"coder": {"service": "coder"}}),
    "Role.fallback": ("roles.chat.fallback", "skip"),
    "Role.context_fallback": ("roles.chat.context_fallback", "embedding"),
    "Role.policy": ("roles.chat.policy", "lan"),
    "Role.breaker": ("roles.chat.breaker", {}),
    "Role.health_check": ("roles.chat.health_check", {}),
    "Role.timeouts": ("roles.chat.timeouts", {}),
    "Role.limits": ("roles.chat.limits", {}),
    "Role.timeout_s": ("roles.chat.timeout_s", 9),
    "Role.midstream": ("roles.chat.midstream", "restart"),
    "Role.dimensions": ("roles.embedding.dimensions", 512),
    "Policy.breaker": ("policies.lan.breaker", {}),
    "Policy.health_check": ("policies.lan.health_check", {}),
    "Policy.timeouts": ("policies.lan.timeouts", {}),
    "Policy.limits": ("policies.lan.limits", {}),
    "Breaker.failure_threshold": ("policies.lan.breaker.failure_threshold", 6),
    "Breaker.failure_rate": ("policies.lan.breaker.failure_rate", 0.7),
    "Breaker.slow_rate": ("policies.lan.breaker.slow_rate", 0.7),
    "Breaker.slow_call_s": ("policies.lan.breaker.slow_call_s", 6),
    "Breaker.minimum_calls": ("policies.lan.breaker.minimum_calls", 6),
    "Breaker.window_s": ("policies.lan.breaker.window_s", 6),
    "Breaker.slow_start_s": ("policies.lan.breaker.slow_start_s", 6),
    "Breaker.panic": ("policies.lan.breaker.panic", "try"),
    "Breaker.reset_timeout_s": ("policies.lan.breaker.reset_timeout_s", 6),
    "Breaker.max_reset_timeout_s": ("policies.lan.breaker.max_reset_timeout_s", 600),
    "HealthCheck.interval_s": ("roles.embedding.health_check.interval_s", 6),
    "Timeouts.connect_s": ("policies.lan.timeouts.connect_s", 6),
    "Timeouts.first_token_s": ("policies.lan.timeouts.first_token_s", 6),
    "Timeouts.idle_s": ("policies.lan.timeouts.idle_s", 6),
    "Timeouts.queue_s": ("policies.lan.timeouts.queue_s", 6),
    "Timeouts.total_s": ("policies.lan.timeouts.total_s", 6),
    "Limits.attempts": ("policies.lan.limits", {"attempts": 2}),
    "Limits.max_in_flight": ("policies.lan.limits", {"max_in_flight": 2}),
    "Limits.rpm": ("policies.lan.limits", {"rpm": 2}),
    "Limits.hedge_s": ("policies.lan.limits", {"hedge_s": "p95"}),
    "Limits.queue": ("policies.lan.limits", {"queue": 2}),
    "KeysFile.keys_file": ("gateway.auth.keys_file", "other.yaml"),
    "Gateway.node": ("gateway.node", "m4max"),
    "Gateway.bind": ("gateway.bind", "127.0.0.1"),
    "Gateway.port": ("gateway.port", 1235),
    "Gateway.auth": ("gateway.auth", "none"),
    "Gateway.exposed": ("gateway.exposed", "accepted"),
    "Gateway.hosts": ("gateway.hosts", ["chat.lan"]),
    "Gateway.origins": ("gateway.origins", ["https://chat.lan"]),
    "Gateway.body_limit_mib": ("gateway.body_limit_mib", 1),
    "History.bodies": ("history", {"bodies": True}),
    "Stack.aliases": ("aliases", {}),
    "Stack.heal": ("heal", False),
    "Stack.history": ("history", {"bodies": True}),
}


def marked_fields() -> dict[str, str]:
    """Return `Type.field` -> hot or cold, as the generated schema says."""
    schema = Stack.model_json_schema()
    types = {"Stack": schema, **schema["$defs"]}
    return {
        f"{name}.{key}": field["x-change"]
        for name, definition in types.items()
        for key, field in definition.get("properties", {}).items()
        if "x-change" in field
    }


def edited(path: str, value: Any) -> Stack:
    tree = json.loads(json.dumps(TREE))
    *parents, last = _split(path)
    place = tree
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    return Stack.model_validate_json(json.dumps(tree))


def _split(path: str) -> list[str]:
    """Split at dots, but not at the one in `v1.5`, which is part of a model's name."""
    return [part.replace("v1_5", "v1.5") for part in path.replace("v1.5", "v1_5").split(".")]


def unit_ids(stack: Stack) -> set[str]:
    return {unit.id for unit in expand(stack, "/conf").units.values()}


BASE = Stack.model_validate_json(json.dumps(TREE))


def test_every_marked_field_has_an_edit_here():
    assert set(marked_fields()) == set(EDITS)


@pytest.mark.parametrize("field", sorted(name for name, change in marked_fields().items() if change == "hot"))
def test_a_hot_edit_changes_no_spec_hash(field):
    assert unit_ids(edited(*EDITS[field])) == unit_ids(BASE)


def _is_built(field: str) -> bool:
    owner, key = field.split(".")
    section = {"Service": "services.*", "Model": "models.*", "Node": "nodes.*", "Sharding": "services.*.sharding"}
    pattern = f"{section.get(owner, owner.lower())}.{key}"
    return not any(pattern == rule.pattern or pattern.startswith(rule.pattern + ".") for rule in UNBUILT)


@pytest.mark.parametrize(
    "field", sorted(name for name, change in marked_fields().items() if change == "cold" and _is_built(name))
)
def test_a_cold_edit_of_what_is_built_changes_a_spec_hash(field):
    assert unit_ids(edited(*EDITS[field])) != unit_ids(BASE)


def test_a_routing_edit_changes_the_routing_digest_and_nothing_else():
    after = edited("roles.chat.breaker", {"failure_threshold": 9})
    assert routing_digest(after) != routing_digest(BASE)
    assert unit_ids(after) == unit_ids(BASE)
    assert routing_fields(after)["roles.chat.breaker.failure_threshold"] == "9"


def test_the_hash_of_a_known_unit_never_changes_by_itself():
    """A changed value here restarts every user's units at their next apply: raise HASH_VERSION only on purpose."""
    worker = WorkerSpec(
        node="local",
        service="chat",
        replica=0,
        rank=0,
        model=ModelSpec(name="m", source="path:/m", revision="1"),
        max_batch=8,
        max_waiting=64,
    )
    assert spec_hash(worker) == "cd4197b0a418"
    assert spec_hash(GatewaySpec(node="local", bind="127.0.0.1", port=8000)) == "c3ba58a31604"


def test_canonical_json_does_not_depend_on_order():
    assert canonical_json({"b": 1, "a": [2, "é"]}) == canonical_json({"a": [2, "é"], "b": 1}) == '{"a":[2,"é"],"b":1}'
