"""The keys file and the commands that change it."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.exits import CommandError
from orchestrator.cli.main import cli
from orchestrator.cluster import reach
from orchestrator.delivery import deliver_keys
from orchestrator.directories import Directories
from orchestrator.expand import expand
from orchestrator.journal import Generation, Journal
from orchestrator.keys import KeyNameError, KeysAt
from orchestrator.keys_in_force import bring_into_force, in_force
from runtime.gateway.security.keyring import Keyring
from schemas.admin import ConfigReport
from schemas.base import StackName
from schemas.keys import Keys, key_digest, moment_s, read_keys
from schemas.problems import ConfigurationError
from schemas.stack import Stack
from tests.fakes.upstream import FakeUpstream, refuses, resets
from tests.runtime.gateway.harness import stack_document

KEYED = {"auth": {"keys_file": "secrets/keys.yaml"}}


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    root = tmp_path / "conf"
    (root / "stacks").mkdir(parents=True)
    write(root, "lab", KEYED)
    return root


def write(conf: Path, name: str, gateway: dict[str, Any]) -> None:
    document = stack_document({"a": "http://127.0.0.1:1"}, gateway=gateway | {"port": 1}) | {"stack": name}
    (conf / "stacks" / f"{name}.yaml").write_text("# @package _global_\n" + json.dumps(document))


def run(conf: Path, *arguments: str) -> Any:
    return CliRunner().invoke(cli, ["--conf", str(conf), "keys", *arguments])


def test_a_key_is_told_once_and_kept_as_a_digest(conf: Path) -> None:
    at = KeysAt(conf, "secrets/keys.yaml")
    made = at.add(("inference", "inference"), name="laptop", roles=("chat",), rpm=3, life_s=3600.0)
    assert made.text.startswith(f"sk-orc-{made.id}-")
    assert made.text not in repr(made)
    text = at.path.read_text()
    assert made.text not in text
    assert stat.S_IMODE(at.path.stat().st_mode) == 0o600
    assert [path.name for path in at.path.parent.iterdir()] == ["keys.yaml"]
    entry = at.read().keys[made.id]
    assert entry.sha256 == key_digest(made.text)
    assert (entry.scopes, entry.roles, entry.rpm) == (("inference",), ("chat",), 3)
    assert entry.expires is not None
    assert 0 < moment_s(entry.expires) - time.time() <= 3600
    assert (found := Keyring(at.read(), None).find(made.text)) is not None
    assert found.id == made.id


def test_many_who_write_at_once_lose_no_key(conf: Path) -> None:
    at = KeysAt(conf, "secrets/keys.yaml")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: at.add(("read",)), range(24)))
    assert set(at.read().keys) == {key.id for key in made}


def test_a_key_is_revoked_by_its_id_or_by_a_name_that_only_it_has(conf: Path) -> None:
    at = KeysAt(conf, "secrets/keys.yaml")
    first, second, third = (at.add(("read",), name=name) for name in ("one", "two", "two"))
    assert at.revoke("one")[0] == first.id
    with pytest.raises(KeyNameError, match="2 keys are called 'two'"):
        at.revoke("two")
    at.revoke(second.id)
    assert at.revoke("two")[0] == third.id
    with pytest.raises(KeyNameError, match="There are: none"):
        at.revoke("two")


def test_an_id_names_its_key_whatever_others_are_called_and_nothing_names_one_without_a_name(conf: Path) -> None:
    at = KeysAt(conf, "secrets/keys.yaml")
    first = at.add(("read",))
    at.add(("read",), name=first.id)
    with pytest.raises(KeyNameError, match="No key is called ''"):
        at.revoke("")
    assert at.revoke(first.id)[0] == first.id
    assert at.revoke(first.id)[1].name == first.id


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("keys: [", "not valid YAML"),
        ("keys: {}\nkeys: {}", "stands twice"),
        ("version: 2", "version: expected 1"),
        ("keys: {abcd: !!python/object:os.system x}", "not allowed"),
        ("keys: {abcd: {sha256: sk-orc-canary, scopes: [admin]}}", "64 hexadecimal digits"),
        ("keys: {abcd: {sha256: '%s', scopes: []}}" % ("0" * 64), "keys.abcd.scopes"),
        ("keys: {abcd: {sha256: '%s', scopes: [adm]}}" % ("0" * 64), "expected 'inference'"),
        ("keys: {abcd: {sha256: '%s', scopes: [admin], expires: soon}}" % ("0" * 64), "expected a moment"),
        ("keys: {abcd: {sha256: '%s', scopes: [admin], expires: 2026-11-30}}" % ("0" * 64), "expected a moment"),
        ("keys: {abcd: {sha256: canary, scopes: [admin], expires: 2026-11-31}}", "quote dates"),
        ("keys: {canary: {<<: 1}}", "quote dates"),
        ("keys: {../x: {sha256: '%s', scopes: [admin]}}" % ("0" * 64), "keys"),
    ],
)
def test_a_keys_file_is_read_strictly_and_shows_no_key_in_its_problems(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_keys(text, "keys.yaml")
    assert says in str(caught.value)
    assert "canary" not in str(caught.value)


def test_the_commands(conf: Path) -> None:
    assert "has no keys" in run(conf, "list").stdout
    made = run(conf, "new", "--scope", "inference", "--role", "chat", "--rpm", "60", "--expires", "30d", "--name", "me")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert "not shown again" in made.stderr
    assert "No gateway answers" in made.stderr
    (line,) = [json.loads(line) for line in run(conf, "list", "lab", "--json").stdout.splitlines()]
    assert (line["name"], line["scopes"], line["roles"], line["rpm"]) == ("me", ["inference"], ["chat"], 60)
    assert line["is_expired"] is False
    listed = run(conf, "list").stdout
    for told in (listed, json.dumps(line)):
        assert key not in told
        assert key_digest(key) not in told
    assert "Revoked" in run(conf, "revoke", line["id"]).stdout
    assert "has no keys" in run(conf, "list").stdout
    for before in (("revoke", "lab"), ("revoke", "--stack", "lab")):
        run(conf, "new", "lab", "--scope", "read", "--name", "me")
        assert "Revoked" in run(conf, *before, "me").stdout, "the stack stands where the other commands have it, too"
    assert run(conf, "revoke", "lab", "me", "you").exit_code == 2
    assert run(conf, "revoke", "lab", "me", "--stack", "lab").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["new", "--scope", "inference", "--role", "chta"], "did you mean 'chat'"),
        (["new", "open", "--scope", "inference"], "asks for no keys"),
        (["revoke", "nobody"], "No key is called"),
    ],
)
def test_what_cannot_be_meant_is_refused(conf: Path, arguments: list[str], says: str) -> None:
    write(conf, "open", {})
    failed = run(conf, *arguments)
    assert isinstance(failed.exception, CommandError)
    assert says in failed.exception.message


@pytest.mark.parametrize("text", ["30", "0d", "d", "1w", "-1d", "1.5h", "9999999d"])
def test_a_life_has_a_unit(conf: Path, text: str) -> None:
    assert run(conf, "new", "--scope", "read", "--expires", text).exit_code == 2


def test_a_name_has_at_most_64_characters(conf: Path) -> None:
    refused = run(conf, "new", "--scope", "read", "--name", "x" * 65)
    assert (refused.exit_code, "--name" in refused.output, "found 65" in refused.output) == (2, True, True)
    assert run(conf, "new", "--scope", "read", "--name", "x" * 64).exit_code == 0


def test_of_several_stacks_with_keys_one_has_to_be_named(conf: Path) -> None:
    write(conf, "other", KEYED)
    failed = run(conf, "list")
    assert isinstance(failed.exception, CommandError)
    assert "these name one: lab, other" in failed.exception.message
    assert run(conf, "list", "other").exit_code == 0


def test_the_orchestrators_own_token_is_no_workers(tmp_path: Path) -> None:
    directories = Directories(tmp_path, tmp_path)
    name = Stack.model_validate_json(json.dumps(stack_document({"a": "http://127.0.0.1:1"}))).stack
    assert directories.known_admin_token(name) is None
    worker = directories.worker_token(name)
    assert directories.known_admin_token(name) == worker, "a gateway from before there was one asks for that"
    token = directories.admin_token(name)
    assert directories.known_admin_token(name) == directories.admin_token(name) == token != worker
    assert stat.S_IMODE((directories.stack(name) / "admin.token").stat().st_mode) == 0o600


class Pushed:
    """A node that keeps what it is sent."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, int]] = {}
        self.transport = self

    async def directories(self) -> Directories:
        return Directories(Path("/there"), Path("/there/cache"))

    async def push(self, data: bytes, path: str, *, mode: int) -> None:
        self.files[path] = (data, mode)


def test_another_machine_gets_the_keys_of_now_in_one_place(conf: Path) -> None:
    desired = expand(Stack.model_validate_json(json.dumps(stack_document({}, gateway=KEYED) | role())), str(conf))
    node: Any = Pushed()
    place = asyncio.run(deliver_keys(node, desired))
    assert read_keys(node.files[place][0].decode(), "keys.yaml") == Keys()
    made = KeysAt(conf, "secrets/keys.yaml").add(("read",))
    assert asyncio.run(deliver_keys(node, desired)) == place == "/there/stacks/lab/keys.yaml"
    data, mode = node.files[place]
    assert (set(read_keys(data.decode(), "keys.yaml").keys), mode) == ({made.id}, 0o600)


class Overtaken(Pushed):
    """A node on the way to which another command changes the keys, and brings them, before ours arrive."""

    def __init__(self, meanwhile: Callable[[], bytes]) -> None:
        super().__init__()
        self._meanwhile = [meanwhile]

    async def push(self, data: bytes, path: str, *, mode: int) -> None:
        while self._meanwhile:
            await super().push(self._meanwhile.pop()(), path, mode=mode)
        await super().push(data, path, mode=mode)


def test_a_key_that_was_revoked_while_the_keys_were_on_their_way_stays_revoked(conf: Path) -> None:
    desired = expand(Stack.model_validate_json(json.dumps(stack_document({}, gateway=KEYED) | role())), str(conf))
    at = KeysAt(conf, "secrets/keys.yaml")
    kept, lost = at.add(("read",)), at.add(("read",))

    def revoke() -> bytes:
        at.revoke(lost.id)
        return at.path.read_bytes()

    node: Any = Overtaken(revoke)
    place = asyncio.run(deliver_keys(node, desired))
    assert set(read_keys(node.files[place][0].decode(), "keys.yaml").keys) == {kept.id}


def test_a_broken_keys_file_leaves_the_keys_from_before_on_another_machine(conf: Path) -> None:
    desired = expand(Stack.model_validate_json(json.dumps(stack_document({}, gateway=KEYED) | role())), str(conf))
    node: Any = Pushed()
    at = KeysAt(conf, "secrets/keys.yaml")
    made = at.add(("read",))
    place = asyncio.run(deliver_keys(node, desired))
    for broken in (b"keys: [", b"\xff\xfe"):
        at.path.write_bytes(broken)
        assert asyncio.run(deliver_keys(node, desired)) == place
        assert set(read_keys(node.files[place][0].decode(), "keys.yaml").keys) == {made.id}


def test_a_keys_file_that_cannot_be_read_is_a_problem_of_the_configuration(conf: Path) -> None:
    at = KeysAt(conf, "secrets/keys.yaml")
    at.path.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"secrets/keys\.yaml.*cannot be read: "):
        at.read()


def report(**routing: str) -> ConfigReport:
    return ConfigReport(
        stack="lab",
        generation=1,
        revision=None,
        routing_digest="0" * 12,
        routing=routing,
        is_current=True,
        loaded_at=0.0,
        reloads=1,
        failed_reloads=0,
        pid=1,
        endpoints=(),
    )


def test_keys_are_in_force_only_where_the_gateway_asks_for_them() -> None:
    assert in_force(report(**{"gateway.auth.keys_file": '"keys.yaml"'})).kind == "now"
    later = in_force(report(**{"gateway.auth.token": '"***"'}))
    assert (later.kind, later.words) == ("later", "The gateway asks for no keys yet; orchestrate apply lab")


async def test_a_gateway_that_refuses_to_read_its_keys_is_told_as_one(conf: Path) -> None:
    KeysAt(conf, "secrets/keys.yaml").add(("read",))
    async with FakeUpstream(behave=refuses(403)) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        document = stack_document({}, gateway=KEYED | {"port": port}) | role()
        stack = Stack.model_validate_json(json.dumps(document))
        cluster = reach(stack.stack, stack.nodes, Directories(conf / "state", conf / "cache"))
        found = await bring_into_force(stack, cluster, str(conf))
    assert found.kind == "failed"
    assert "refuses" in found.words


async def test_a_gateway_that_takes_the_question_and_gives_no_answer_is_not_taken_for_none(conf: Path) -> None:
    KeysAt(conf, "secrets/keys.yaml").add(("read",))
    async with FakeUpstream(behave=resets) as gateway:
        document = stack_document({}, gateway=KEYED | {"port": gateway.port}) | role()
        stack = Stack.model_validate_json(json.dumps(document))
        cluster = reach(stack.stack, stack.nodes, Directories(conf / "state", conf / "cache"))
        found = await bring_into_force(stack, cluster, str(conf))
    assert found.kind == "failed"
    assert "whether the gateway has read it is unknown" in found.words


def test_the_commands_go_by_the_overrides_that_were_applied(conf: Path) -> None:
    write(conf, "lab", {})
    directories = Directories.from_environment({"ORCHESTRATE_STATE": str(conf.parent / "state")})
    Journal(directories.stack(StackName("lab"))).record(applied("gateway.auth={keys_file: secrets/keys.yaml}"))
    at = KeysAt(conf, "secrets/keys.yaml")
    made = at.add(("read",))
    for arguments in (("list",), ("list", "lab")):
        listed = run(conf, *arguments)
        assert made.id in listed.stdout, listed.output


def applied(*overrides: str) -> Generation:
    return Generation(
        generation=1,
        revision=None,
        is_dirty=False,
        overrides=overrides,
        owner="/conf",
        actor="me",
        at=0.0,
        changes=(),
        outcome="applied",
    )


def role() -> dict[str, Any]:
    return {
        "helpers": {"a": {"url": "http://127.0.0.1:1", "models": {"m": {}}}},
        "roles": {"chat": {"endpoints": {"a": {"helper": "a", "model": "m"}}}},
    }
