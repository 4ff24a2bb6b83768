"""What a role does follows from the models behind it; what mixes kinds is refused where it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.compose import compose
from schemas.kinds import kind_problems, role_kinds
from schemas.stack import Stack

MODELS = {
    "talker": {"source": "path:/m/talker"},
    "encoder": {"source": "path:/m/encoder", "kind": "embedding"},
    "ranker": {"source": "path:/m/ranker", "kind": "reranking"},
}
SERVICES = {
    "talk": {"model": "talker", "nodes": ["here"]},
    "embed": {"model": "encoder", "nodes": ["here"]},
    "rank": {"model": "ranker", "nodes": ["here"]},
    "boxed": {"model": "encoder", "nodes": ["here"], "engine": "llama-server"},
}
HELPERS = {
    "box": {"url": "http://h:1", "models": {"m": {}, "e": {"kind": "embedding"}, "r": {"kind": "reranking"}}},
}


def tree(aliases: dict[str, list[str]] | None = None, **roles: dict[str, Any]) -> dict[str, Any]:
    return {
        "stack": "s", "nodes": {"here": {"reach": "local"}}, "models": MODELS, "services": SERVICES,
        "helpers": HELPERS, "roles": roles, "aliases": aliases or {}, "gateway": {"node": "here"},
    }  # fmt: skip


def role(*names: str, **more: Any) -> dict[str, Any]:
    """Return a role over services, or over models of the helper, written `box/m`."""
    endpoints = {
        f"e{index}": {"helper": "box", "model": name[4:]} if name.startswith("box/") else {"service": name}
        for index, name in enumerate(names)
    }
    return {"endpoints": endpoints, **more}


def problems(**roles: dict[str, Any]) -> dict[str, str]:
    return {".".join(path): text for path, text in kind_problems(tree(**roles))}


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        (role("talk"), "chat"),
        (role("embed"), "embedding"),
        (role("rank"), "reranking"),
        (role("box/m"), "chat"),
        (role("box/e"), "embedding"),
        (role("box/r"), "reranking"),
        (role("box/m", dimensions=768), "embedding"),
        (role("box/m", fallback="skip"), "reranking"),
        (role("box/m", fallback={"local": "embed"}), "embedding"),
        (role("box/m", fallback={"role": "other"}), "reranking"),
        (role("box/m", "embed"), "embedding"),
        (role("box/r", "embed"), "reranking"),
        (role("embed", "rank"), "reranking"),
        (role("embed", fallback="skip"), "reranking"),
    ],
)
def test_a_role_does_what_the_models_behind_it_do(declared, kind):
    whole = tree(one=declared, other=role("rank"))
    assert not list(kind_problems(whole))
    assert role_kinds(Stack.model_validate_json(json.dumps(whole)))["one"] == kind


@pytest.mark.parametrize(
    ("declared", "key", "says"),
    [
        (role("talk", "embed"), "endpoints.e1.service", "embed is of kind embedding, and the role is for chat"),
        (role("rank", "talk"), "endpoints.e1.service", "talk is of kind chat, and the role is for reranking (as rank"),
        (role("talk", fallback="skip"), "endpoints.e0.service", "for reranking (fallback: skip)"),
        (role("talk", dimensions=768), "endpoints.e0.service", "for embedding (it has dimensions)"),
        (role("box/r", dimensions=768), "endpoints.e0.model", "r is of kind reranking"),
        (role("rank", fallback={"local": "talk"}), "fallback.local", "talk is of kind chat"),
        (role("embed", fallback={"role": "other"}), "fallback.role", "the role 'other' is for reranking, this one for"),
        (role("box/r", "boxed"), "endpoints.e1.service", "boxed is of kind embedding"),
        (role("box/m", dimensions=8, fallback="skip"), "dimensions", "and this one is for reranking"),
    ],
)
def test_a_role_that_mixes_kinds_is_refused_where_it_does(declared, key, says):
    found = problems(one=declared, other=role("rank"))
    assert list(found) == [f"roles.one.{key}"]
    assert says in found[f"roles.one.{key}"]


def test_what_means_nothing_for_a_kind_is_refused():
    assert not problems(one=role("embed", limits={"hedge_s": "p95"}), other=role("talk", midstream="restart"))
    found = problems(one=role("talk", limits={"hedge_s": 1}), other=role("rank", midstream="restart"))
    assert list(found) == ["roles.one.limits.hedge_s", "roles.other.midstream"]


def test_a_worker_of_ours_ranks_with_an_embedding_model():
    assert not problems(one=role("rank", fallback={"local": "embed"}), other=role("embed"))


@pytest.mark.parametrize(
    ("api", "declared", "says"),
    [
        ("tei", role("box/m"), "tei has no chat; say what m is for: `kind: embedding` or `kind: reranking`"),
        ("infinity", role("box/m", "talk"), "infinity has no chat"),
        ("mlx-lm-server", role("box/e"), "mlx-lm-server serves chat models only, and this role is for embedding"),
        ("tei", role("box/e"), None),
        ("infinity", role("box/r", fallback="skip"), None),
        ("mlx-lm-server", role("box/m"), None),
    ],
)
def test_a_helper_is_asked_only_for_what_its_api_has(api, declared, says):
    whole = tree(one=declared)
    whole["helpers"] = {"box": {**HELPERS["box"], "api": api}}
    found = [text for path, text in kind_problems(whole) if path == ("roles", "one", "endpoints", "e0", "model")]
    assert len(found) == (says is not None)
    assert says is None or says in found[0]


def test_a_role_for_longer_prompts_is_of_the_same_kind():
    found = problems(one=role("talk", context_fallback="other"), other=role("rank"))
    assert found == {
        "roles.one.context_fallback": "the role 'other' is for reranking, this one for chat; name one of its kind"
    }


def test_only_chat_models_are_sharded_and_served_by_the_stock_server():
    whole = tree(one=role("embed"))
    group = {"model": "encoder", "nodes": ["here", "here"], "sharding": {"backend": "ring", "strategy": "tensor"}}
    whole["services"] = {
        "embed": group,
        "stock": {"model": "ranker", "nodes": ["here"], "engine": "mlx-lm-server"},
    }
    found = {".".join(path): text for path, text in kind_problems(whole)}
    assert sorted(found) == ["services.embed.sharding", "services.stock.engine"]
    assert "models of kind embedding are not sharded" in found["services.embed.sharding"]


def test_an_alias_of_two_kinds_is_refused_at_the_second():
    found = list(kind_problems(tree({"any": ["embed", "one"]}, one=role("talk"))))
    assert found == [(("aliases", "any", "1"), "'one' is for chat, and 'embed' before it for embedding")]


def test_the_file_and_the_line_of_a_mixed_role_are_told(conf):
    conf.edit("kind: chat", "kind: embedding", "models/smollm2-135m-instruct.yaml")
    endpoint = "      chat: {service: chat}\n"
    conf.edit(endpoint, f"{endpoint}      box: {{helper: box, model: m}}\n")
    conf.append("\nhelpers:\n  box: {url: 'http://h:1', models: {m: {kind: chat}}}\n")
    (problem,) = conf.problems()
    assert problem.key == "roles.chat.endpoints.box.model"
    assert problem.file.endswith("stacks/quickstart.yaml")
    assert problem.line == conf.stack.read_text().splitlines().index("      box: {helper: box, model: m}") + 1


def test_nothing_is_lost_where_parts_of_the_tree_are_of_wrong_types():
    for broken in ({"roles": {"a": {"endpoints": []}}}, {"roles": 3, "aliases": {"a": "x"}, "services": {"s": None}}):
        assert list(kind_problems(broken)) == []


def test_the_shipped_stacks_mix_nothing(conf):
    for file in sorted((conf.root / "stacks").glob("*.yaml")):
        compose(conf.root, file.stem)
