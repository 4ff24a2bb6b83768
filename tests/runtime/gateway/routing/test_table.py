"""What each name resolves to."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from runtime.gateway.routing.build import SWAP_S, build_table
from runtime.gateway.routing.table import Missing, RoutingTable
from schemas.base import UnitId
from schemas.routes import Routes
from schemas.stack import Stack

STACK: dict[str, Any] = {
    "stack": "lab",
    "nodes": {"here": {"reach": "local"}},
    "models": {"tiny": {"source": "path:/models/tiny"}, "big": {"source": "path:/models/big"}},
    "policies": {"lan": {"breaker": {"failure_threshold": 7, "reset_timeout_s": 5.0}, "limits": {"attempts": 2}}},
    "services": {
        "small": {"model": "tiny", "nodes": ["here"]},
        "large": {"model": "big", "nodes": ["here"]},
        "spare": {"model": "tiny", "nodes": ["here"]},
    },
    "helpers": {
        "rtx": {"url": "http://10.0.0.9:11434/v1", "models": {"qwen3:8b": {}, "other/m": {}}, "key": "${env:RTX_KEY}"}
    },
    "roles": {
        "chat": {
            "endpoints": {
                "backup": {"helper": "rtx", "model": "qwen3:8b", "priority": 2},
                "main": {"service": "small", "timeout_s": 9.0, "weight": 3},
            },
            "policy": "lan",
            "breaker": {"failure_threshold": 2},
            "timeout_s": 20.0,
        },
        "coding": {"endpoints": {"main": {"service": "large"}}},
    },
    "aliases": {"gpt-4o-mini": ["coding", "small", "qwen3:8b"]},
    "gateway": {"node": "here", "body_limit_mib": 1.5},
}


def instance(service: str, model: str, port: int, state: str = "ready", replica: int = 0) -> dict[str, Any]:
    return {
        "unit": f"{service}-{replica}.0@abcdefabcdef",
        "node": "here",
        "service": service,
        "model": model,
        "url": f"http://127.0.0.1:{port}",
        "state": state,
    }


def table(
    *instances: dict[str, Any],
    environ: dict[str, str] | None = None,
    since: dict[UnitId, float] | None = None,
    **changes: Any,
) -> RoutingTable:
    routes = Routes.from_json(json.dumps({"stack": "lab", "generation": 4, "instances": instances}))
    stack = Stack.model_validate_json(json.dumps(STACK | changes))
    environ = {"RTX_KEY": "k1"} if environ is None else environ
    return build_table(stack, routes, environ=environ, worker_token="w1", replaced_since=since)


def shape(found: RoutingTable, name: str) -> list[list[str]]:
    return [[f"{target.name}={target.identity.model}" for target in tier] for tier in found.routes[name].tiers]


def missing(found: RoutingTable, name: str) -> list[tuple[str, str]]:
    return [(one.name, one.reason) for one in found.routes[name].missing]


SMALL, LARGE = instance("small", "tiny", 18100), instance("large", "big", 18101)


def test_tiers_follow_priority_and_not_the_order_of_the_file() -> None:
    assert shape(table(SMALL), "chat") == [["main=tiny"], ["backup=qwen3:8b"]]


def test_replicas_share_a_tier() -> None:
    found = table(SMALL, instance("small", "tiny", 18102, replica=1))
    assert [target.identity.port for target in found.routes["chat"].tiers[0]] == [18100, 18102]


def test_a_service_that_does_not_run_or_drains_is_missing_with_that_reason() -> None:
    assert missing(table(), "chat") == [("main", "not running")]
    assert missing(table(instance("small", "tiny", 18100, "draining")), "chat") == [("main", "draining")]
    assert shape(table(), "chat") == [["backup=qwen3:8b"]]


def test_without_routes_helpers_are_served() -> None:
    stack = Stack.model_validate_json(json.dumps(STACK))
    found = build_table(stack, None, environ={"RTX_KEY": "k1"}, worker_token=None)
    assert found.generation == 0
    assert shape(found, "chat") == [["backup=qwen3:8b"]]


def test_settings_are_the_roles_over_the_policys_over_the_defaults() -> None:
    route = table(SMALL).routes["chat"]
    main, backup = route.tiers[0][0], route.tiers[1][0]
    assert (main.breaker.failure_threshold, main.breaker.reset_timeout_s) == (2, 5.0)
    assert main.breaker.max_reset_timeout_s == 300.0
    assert (main.timeouts.first_token_s, backup.timeouts.first_token_s) == (9.0, 20.0)
    assert route.attempts == 2
    assert main.weight == 3


def test_an_alias_walks_its_list_in_order() -> None:
    found = table(SMALL, LARGE)
    assert shape(found, "gpt-4o-mini") == [["main=big"], ["small=tiny"], ["backup=qwen3:8b"]]


def test_services_endpoints_and_models_are_names_too() -> None:
    found = table(SMALL, LARGE, instance("spare", "tiny", 18103))
    assert shape(found, "large") == [["large=big"]]
    assert shape(found, "backup") == [["backup=qwen3:8b"]]
    assert shape(found, "tiny") == [["main=tiny"], ["spare=tiny"]]
    assert shape(found, "other/m") == [["rtx=other/m"]]
    assert "nothing" not in found.routes


def test_a_model_asked_for_by_name_keeps_the_settings_of_its_role() -> None:
    found = table(SMALL)
    assert found.routes["small"].tiers[0][0].breaker.failure_threshold == 2
    assert found.routes["other/m"].tiers[0][0].breaker.failure_threshold == 3


def test_tokens_go_to_their_owners_only() -> None:
    route = table(SMALL).routes["chat"]
    assert (route.tiers[0][0].token, route.tiers[1][0].token) == ("w1", "k1")
    assert "k1" not in repr(route) and "w1" not in repr(route)


@pytest.mark.parametrize("environ", [{}, {"RTX_KEY": "two\nlines"}, {"RTX_KEY": "schlüssel"}])
def test_a_key_that_cannot_be_sent_makes_its_endpoint_misconfigured(environ: dict[str, str]) -> None:
    found = table(SMALL, environ=environ)
    assert missing(found, "chat") == [("backup", "misconfigured")]
    assert shape(found, "chat") == [["main=tiny"]]
    assert all("helpers.rtx.key" in one.detail for one in found.routes["chat"].missing)


def test_identities_are_normalised() -> None:
    identity = table().routes["qwen3:8b"].tiers[0][0].identity
    assert (identity.scheme, identity.host, identity.port, identity.base_path) == ("http", "10.0.0.9", 11434, "")
    assert identity.url == "http://10.0.0.9:11434"


def test_models_are_listed_once_with_roles_first() -> None:
    cards = [(card.id, card.kind, card.owner) for card in table().cards]
    assert cards == [
        ("chat", "role", "orchestrate"),
        ("coding", "role", "orchestrate"),
        ("gpt-4o-mini", "alias", "orchestrate"),
        ("tiny", "model", "orchestrate"),
        ("big", "model", "orchestrate"),
        ("qwen3:8b", "model", "rtx"),
        ("other/m", "model", "rtx"),
    ]


def test_the_table_says_what_it_was_made_from() -> None:
    found = table()
    assert (found.stack, found.generation, found.body_limit) == ("lab", 4, 1_572_864)
    assert found.digest and found.fields["helpers.rtx.key"] == '"***"'
    assert all(isinstance(one, Missing) for one in found.routes["small"].missing)


# --- engines, swaps, fallbacks, size


@pytest.mark.parametrize(
    ("engine", "token"),
    [
        ("mlx", "w1"),
        ("llama-server", "w1"),
        ("vllm", "w1"),
        ("mlx-lm-server", None),
        ("ollama", None),
        ("command", "w1"),
    ],
)
def test_an_engine_is_asked_under_its_own_name_and_told_the_token_only_where_it_was_started_with_it(
    engine: str, token: str | None
) -> None:
    found = table({**SMALL, "engine": engine, "upstream_model": "default_model"})
    for name in ("chat", "small", "tiny"):
        target = found.routes[name].tiers[0][0]
        assert (target.identity.engine, target.identity.model) == (engine, "tiny")
        assert (target.upstream_model, target.token) == ("default_model", token)
        assert found.routes[name].is_strict == (engine in ("mlx-lm-server", "ollama"))


def test_an_older_file_means_our_own_worker() -> None:
    target = table(SMALL).routes["chat"].tiers[0][0]
    assert (target.identity.engine, target.upstream_model) == ("mlx", "tiny")


def test_another_engine_at_the_same_address_is_another_endpoint() -> None:
    before = table(SMALL).routes["chat"].tiers[0][0]
    after = table({**SMALL, "engine": "llama-server"}).routes["chat"].tiers[0][0]
    assert before.identity != after.identity


def test_an_instance_that_is_replaced_is_missing_until_its_successor_is_there() -> None:
    gone = instance("small", "tiny", 18100, "replacing")
    assert missing(table(gone), "chat") == [("main", "replacing")]
    found = table(gone, instance("small", "tiny", 18102, replica=1))
    assert [target.identity.port for target in found.routes["chat"].tiers[0]] == [18102]


def test_a_successor_is_waited_for_as_long_as_its_service_may_take() -> None:
    gone = instance("small", "tiny", 18100, "replacing")
    services = STACK["services"] | {"small": {**STACK["services"]["small"], "drain_s": 5, "ready_timeout_s": 20}}
    found = table(gone, since={gone["unit"]: 100.0}, services=services)
    assert [one.held_until for one in found.routes["chat"].missing if one.name == "main"] == [125.0 + SWAP_S]


def with_fallback(role: str, fallback: Any) -> dict[str, Any]:
    return STACK["roles"] | {role: STACK["roles"][role] | {"fallback": fallback}}


def ladder(found: RoutingTable, name: str) -> list[str]:
    return [rung.name for rung in found.routes[name].rungs()]


def test_a_role_falls_back_to_a_service_with_that_ones_settings() -> None:
    found = table(SMALL, LARGE, roles=with_fallback("coding", {"local": "small"}))
    assert ladder(found, "coding") == ["coding", "small"]
    below = found.routes["coding"].fallback
    assert below is not None
    assert below.tiers[0][0].breaker.failure_threshold == 2, "the settings of the first role that names it"
    assert shape(found, "coding") == [["main=big"]], "the role itself is as it was"
    assert ladder(found, "gpt-4o-mini") == ["gpt-4o-mini", "small"]
    assert ladder(found, "large") == ["large"]


def test_roles_fall_back_to_roles_in_a_row() -> None:
    roles = with_fallback("coding", {"role": "chat"})
    roles = roles | {"chat": roles["chat"] | {"fallback": {"local": "spare"}}}
    found = table(SMALL, LARGE, roles=roles)
    assert ladder(found, "coding") == ["coding", "chat", "spare"]
    below = found.routes["coding"].fallback
    assert below is not None and below.attempts == 2


def test_a_circle_that_validation_did_not_see_ends() -> None:
    roles = with_fallback("coding", {"role": "chat"})
    roles = roles | {"chat": roles["chat"] | {"fallback": {"role": "coding"}}}
    found = table(SMALL, LARGE, roles=roles)
    assert ladder(found, "coding") == ["coding", "chat"]
    assert ladder(found, "chat") == ["chat", "coding"]


def test_checks_are_the_roles_over_the_policys() -> None:
    roles = {"chat": STACK["roles"]["chat"] | {"health_check": {"interval_s": 7.0}}, "coding": {
        "endpoints": {"main": {"service": "large"}}, "policy": "lan"
    }}  # fmt: skip
    found = table(SMALL, LARGE, roles=roles, policies={"lan": {"health_check": {"interval_s": 9.0}}})
    assert found.routes["chat"].tiers[0][0].check_s == 7.0
    assert found.routes["coding"].tiers[0][0].check_s == 9.0
    assert table(SMALL).routes["chat"].tiers[0][0].check_s is None


def test_five_thousand_instances_are_a_matter_of_a_moment() -> None:
    names = [f"s{number}" for number in range(1000)]
    stack = Stack.model_validate_json(
        json.dumps(
            {
                "stack": "lab",
                "nodes": {"here": {"reach": "local"}},
                "models": {f"m-{name}": {"source": f"path:/models/{name}"} for name in names},
                "services": {name: {"model": f"m-{name}", "nodes": ["here"]} for name in names},
                "roles": {
                    f"r{role}": {"endpoints": {name: {"service": name} for name in names[role::20]}}
                    for role in range(20)
                },
                "aliases": {f"a-{name}": [name] for name in names},
                "gateway": {"node": "here"},
            }
        )
    )
    instances = [
        instance(name, f"m-{name}", 10_000 + 5 * number + replica, replica=replica)
        for number, name in enumerate(names)
        for replica in range(5)
    ]
    routes = Routes.from_json(json.dumps({"stack": "lab", "generation": 1, "instances": instances}))

    def calls_of(count: int) -> int:
        """Count what building takes, on no clock: calls of Python functions."""
        published = routes.model_copy(update={"instances": routes.instances[: count * 5]})
        calls = 0

        def count_call(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count_call)
        try:
            found = build_table(stack, published, environ={}, worker_token=None)
        finally:
            sys.setprofile(None)
        assert sum(1 for _ in found.targets()) >= count * 5
        return calls

    small, large = calls_of(100), calls_of(1000)
    base = calls_of(0)
    assert (large - base) < 13 * (small - base), "ten times the instances take about ten times the work"
    started = time.perf_counter()
    build_table(stack, routes, environ={}, worker_token=None)
    assert time.perf_counter() - started < 60.0, "a fraction of a second on an idle machine; tests share theirs"
