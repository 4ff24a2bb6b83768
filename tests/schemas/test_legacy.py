"""The older shapes `helper_nodes:` and `backends:` in today's words, and what is told of them when they are wrong."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.compose import compose
from schemas.legacy import modernised
from schemas.problems import ConfigurationError

HEAD = """\
# @package _global_
defaults:
  - /nodes: [local]
  - /models: [all-minilm-l6-v2]
  - _self_
stack: lab
gateway: {node: local}
services:
  embed: {model: all-minilm-l6-v2, nodes: [local]}
"""
DOCUMENTED = """\
helper_nodes:
  embedding: {url: "http://192.168.188.20:11434", model: "nomic-embed-text-v1.5", timeout_sec: 10, fallback: "local"}
  reranking:
    endpoints:
      - {url: "http://192.168.188.20:11434", model: "jina-reranker-v3", timeout_sec: 10, priority: 1}
      - {url: "http://192.168.188.21:11434", model: "jina-reranker-v3", timeout_sec: 10, priority: 2}
    fallback: "skip"
    health_check_interval_sec: 30
    circuit_breaker: {failure_threshold: 3, reset_timeout_sec: 60}
"""
TODAY = """\
helpers: {192.168.188.20: {url: "http://other:1", models: {m: {}}}}
roles: {chat: {endpoints: {c: {helper: 192.168.188.20, model: m}}}}
aliases: {vectors: [embedding]}
"""
FIRST, SECOND = "192.168.188.20", "192.168.188.21"


@pytest.fixture
def lab(conf):
    """Write a stack over the shipped files; return what composing it gives."""

    def write(text, *overrides):
        (conf.root / "stacks" / "lab.yaml").write_text(text)
        return compose(conf.root, "lab", overrides)

    return write


def problems(lab, text, *overrides):
    with pytest.raises(ConfigurationError) as caught:
        lab(text, *overrides)
    return [(problem.line, problem.key, problem.message, problem.suggestion) for problem in caught.value.problems]


def test_the_documented_shape_becomes_helpers_and_roles(lab):
    composed = lab(HEAD + DOCUMENTED)
    tree = composed.stack.model_dump(mode="json", exclude_unset=True)
    assert tree["helpers"] == {
        FIRST: {
            "url": f"http://{FIRST}:11434",
            "models": {"nomic-embed-text-v1.5": {"kind": "embedding"}, "jina-reranker-v3": {"kind": "reranking"}},
        },
        SECOND: {"url": f"http://{SECOND}:11434", "models": {"jina-reranker-v3": {"kind": "reranking"}}},
    }
    assert tree["roles"]["embedding"] == {
        "endpoints": {FIRST: {"helper": FIRST, "model": "nomic-embed-text-v1.5", "priority": 1, "timeout_s": 10}},
        "fallback": {"local": "embed"},
    }
    assert tree["roles"]["reranking"] == {
        "endpoints": {
            FIRST: {"helper": FIRST, "model": "jina-reranker-v3", "priority": 1, "timeout_s": 10},
            SECOND: {"helper": SECOND, "model": "jina-reranker-v3", "priority": 2, "timeout_s": 10},
        },
        "fallback": "skip",
        "health_check": {"interval_s": 30},
        "breaker": {"failure_threshold": 3, "reset_timeout_s": 60},
    }
    assert composed.notes == (
        f"helper_nodes.embedding is read as roles.embedding: {FIRST}, then embed",
        f"helper_nodes.reranking is read as roles.reranking: {FIRST}, {SECOND}, then skip",
    )


def test_it_stands_beside_todays_words_and_takes_overrides(lab):
    composed = lab(HEAD + TODAY + DOCUMENTED, "helper_nodes.embedding.timeout_sec=5").stack
    assert list(composed.helpers) == [FIRST, f"{FIRST}-2", SECOND]
    (endpoint,) = composed.roles["embedding"].endpoints.values()
    assert (endpoint.helper, endpoint.timeout_s) == (f"{FIRST}-2", 5)
    assert list(composed.roles) == ["chat", "embedding", "reranking"]


@pytest.mark.parametrize("shape", ["backends: [%s, %s]", "backends: {chat: {endpoints: [%s, %s]}}"])
def test_backends_are_the_endpoints_of_the_role_chat(lab, shape):
    text = shape % ("{url: 'http://box:8000', model: m, timeout_sec: 60}", "{url: 'http://box:8000', model: n}")
    composed = lab(HEAD + text).stack
    assert composed.helpers["box"].model_dump(exclude_unset=True)["models"] == {"m": {}, "n": {}}
    role = composed.roles["chat"].model_dump(mode="json", exclude_unset=True)
    assert role == {
        "endpoints": {
            "box": {"helper": "box", "model": "m", "priority": 1, "timeout_s": 60},
            "box-2": {"helper": "box", "model": "n", "priority": 1},
        }
    }


def test_long_timeouts_get_a_deadline_that_holds_them_and_the_fallback(lab):
    composed = lab(HEAD + DOCUMENTED.replace("timeout_sec: 10", "timeout_sec: 20")).stack
    assert composed.roles["reranking"].timeouts.total_s == 70
    assert composed.roles["embedding"].timeouts.total_s == 50


OTHER = "  other: {model: all-minilm-l6-v2, nodes: [local]}\n"
EMBED = "  embed: {model: all-minilm-l6-v2, nodes: [local]}\n"


@pytest.mark.parametrize(
    ("text", "line", "key", "says", "guess"),
    [
        (HEAD + DOCUMENTED.replace("timeout_sec: 10, fallback", "timeout: 10, fallback"),
         11, "embedding.timeout", "unknown key", "timeout_sec"),
        (HEAD + DOCUMENTED.replace("priority: 2", "priority: 0"),
         15, "reranking.endpoints.1.priority", "greater than or equal to 1", None),
        (HEAD + DOCUMENTED.replace('"skip"', '"skipp"'), 16, "reranking.fallback", "found 'skipp'", "skip"),
        (HEAD + DOCUMENTED.replace(":11434\", model: \"nomic", ":99999\", model: \"nomic"),
         11, "embedding.url", "Port out of range", None),
        (HEAD + DOCUMENTED.replace("endpoints:\n", "url: http://a:1\n    endpoints:\n"),
         12, "reranking", "and not both", None),
        (HEAD + "helper_nodes: {embedding: {url: 'http://a:1'}}\n", 10, "embedding", "a `url` with its `model`", None),
        (HEAD + "helper_nodes: {reranking: {endpoints: []}}\n", 10, "reranking", "or a list of `endpoints`", None),
        (HEAD + DOCUMENTED.replace('"local"', '"skip"'), 11, "embedding.fallback", "skip is for reranking", None),
        (HEAD + DOCUMENTED + "roles: {embedding: {endpoints: {e: {service: embed}}}}\n",
         11, "embedding", "`roles.embedding` is in the files too", None),
        (HEAD.replace("services:\n" + EMBED, "") + DOCUMENTED,
         9, "embedding.fallback", "no service here has a model of kind embedding; add one under `services:`", None),
        (HEAD + OTHER + DOCUMENTED, 12, "embedding.fallback",
         "there are embed, other; write the role as `roles.embedding` with `fallback: {local: embed}`", None),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_the_keys_and_lines_of_the_file(lab, text, line, key, says, guess):
    (found,) = problems(lab, text)
    assert (found[0], found[1], found[3]) == (line, f"helper_nodes.{key}", guess)
    assert says in found[2]


def test_a_wrong_list_of_backends_and_an_override_are_told_at_their_keys(lab):
    (found,) = problems(lab, HEAD + "backends:\n  - {url: 'http://a:1', model: m, timeout_sec: 0}\n")
    assert found[:2] == (11, "backends.0.timeout_sec")
    (found,) = problems(lab, HEAD + DOCUMENTED, "helper_nodes.embedding.timeout_sec=soon")
    assert found[:2] == (None, "helper_nodes.embedding.timeout_sec")


def test_what_follows_from_it_is_told_at_its_keys_too(lab):
    text = HEAD + "helper_nodes: {ask: {url: 'http://a:1', model: m}}\naliases: {ask: [embed]}\n"
    assert ("aliases.ask", 11) in {(key, line) for line, key, _, _ in problems(lab, text)}
    text = HEAD + "helper_nodes:\n  embedding: {url: 'http://a:1', model: m}\n  rerank: {url: 'http://a:1', model: m}\n"
    (found,) = problems(lab, text)
    assert found[:2] == (12, "helper_nodes.rerank.model")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["url", "model", "endpoints", "fallback", "timeout_sec", "circuit_breaker", "embedding"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(_JSON, st.sampled_from(["helper_nodes", "backends"]), _JSON)
def test_no_tree_of_any_shape_escapes_as_an_error_or_is_changed(value, key, roles):
    tree = {key: value, "roles": roles, "services": roles}
    before = copy.deepcopy(tree)
    modern = modernised(tree)
    assert tree == before
    assert "helper_nodes" not in modern.tree and "backends" not in modern.tree
    assert all(finding.path[0] == key for finding in modern.findings)
