"""A stack that asks for keys: its own commands go on working, and no secret is seen anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.e2e.trial import Trial, content_of, poll
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CANARY = "canary-0f3c9a77d1"
SEEN_BY_ITS_OWNER_ONLY = {"worker.token", "admin.token"}


def processes() -> str:
    """Return the command lines of everything that runs."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(process.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


def kept(state: Path) -> str:
    """Return everything that is kept of the stack: journal, routes, records, logs, copies of files."""
    places = (path for path in state.rglob("*") if "cache" not in path.parts)
    return "\n".join(
        content_of(path).decode(errors="replace") for path in places if path.name not in SEEN_BY_ITS_OWNER_ONLY
    )


def test_commands_work_with_keys_and_no_secret_is_seen(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELPER_CANARY", CANARY)
    trial.edit(f"  port: {trial.port}", f"  port: {trial.port}\n  auth: {{keys_file: secrets/keys.yaml}}")
    helper = f"url: 'http://127.0.0.1:{free_port()}', key: '${{env:HELPER_CANARY}}', models: {{away: {{}}}}"
    trial.file.write_text(f"{trial.file.read_text()}\nhelpers:\n  far: {{{helper}}}\naliases:\n  elsewhere: [away]\n")
    said = [trial.run("plan", trial.stack).stdout]
    up = trial.run("up", trial.stack, "--yes")
    assert "Applied generation 1" in up.stdout
    assert "authorization: Bearer $KEY" in up.stdout
    said += [up.stdout, up.stderr]

    made = trial.run("keys", "new", "--scope", "inference", "--name", "laptop", "--expires", "1d")
    assert "In force at the gateway" in made.stderr
    key = made.stdout.strip()
    admin = json.loads(trial.run("keys", "new", "--scope", "admin", "--json").stdout.splitlines()[0])["key"]
    secrets = [CANARY, key, admin]
    secrets += [(trial.state / "stacks" / trial.stack / name).read_text() for name in SEEN_BY_ITS_OWNER_ONLY]

    with httpx.Client(base_url=trial.url, timeout=60, trust_env=False) as client:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        away = body | {"model": "elsewhere"}
        refused = client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 401
        mine = {"authorization": f"Bearer {key}"}
        assert client.post("/v1/chat/completions", json=body, headers=mine).status_code == 200
        answers = [refused, client.post("/v1/chat/completions", json=away, headers=mine)]
        answers += [client.get(path, headers={"x-api-key": admin}) for path in ("/metrics", "/ready", "/admin/config")]
        assert [answer.status_code for answer in answers[2:]] == [200, 200, 200]
        said += [f"{answer.headers} {answer.text}" for answer in answers]

        for words in (("status", trial.stack), ("logs", trial.stack), ("history", trial.stack), ("keys", "list")):
            found = trial.run(*words)
            said.append(found.stdout + found.stderr)
        assert "local/gateway-0.0" in said[-4] and "ready" in said[-4]
        assert "laptop" in said[-1]

        trial.run("keys", "revoke", "laptop")
        assert client.get("/v1/models", headers=mine).status_code == 401
        # By hand, as from git: the gateway watches the file.
        (trial.conf / "secrets" / "keys.yaml").write_text("version: 1\n")
        poll(lambda: client.get("/metrics", headers={"x-api-key": admin}).status_code == 401)
    everything = {"what was said": "\n".join(said), "processes": processes(), "what is kept": kept(trial.state)}
    for place, text in everything.items():
        for secret in secrets:
            assert secret not in text, f"{secret[:12]}... is in {place}"
