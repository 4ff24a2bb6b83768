"""A stack over several hosts of a lab: its files, the program that applies it, and what a client sees."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.cluster.lab import PROGRAM, REPOSITORY, Host, Lab

NAME = "fleet"
PORT = 8000


class Fleet:
    """The quickstart model over three hosts as one group, with the gateway on the first of them."""

    def __init__(self, lab: Lab, cache: Path) -> None:
        self.lab = lab
        self.conf = lab.root / "conf"
        self.hosts = {name: lab.add(name) for name in ("one", "two", "three")}
        self.url = f"http://{self.hosts['one'].address}:{PORT}"
        lab.state.mkdir(exist_ok=True)
        (lab.state / "cache").symlink_to(cache, target_is_directory=True)
        lab.write_nodes(self.conf)
        for folder, name in (("models", "smollm2-135m-instruct.yaml"), ("nodes", "local.yaml")):
            (self.conf / folder).mkdir(exist_ok=True)
            (self.conf / folder / name).write_text((REPOSITORY / "conf" / folder / name).read_text())
        self.write(self.stack())

    def stack(self, **services: Any) -> dict[str, Any]:
        """Return the content of the stack's file; `services` beside or instead of `chat`."""
        group = {
            "model": "smollm2-135m-instruct",
            "nodes": list(self.hosts),
            "sharding": {"backend": "ring", "strategy": "tensor", "canary": {"long_tokens": 64}},
            "ready_timeout_s": 300,
        }
        chosen = {name: body for name, body in {"chat": group, **services}.items() if body is not None}
        return {
            "defaults": [{"/nodes": [*self.hosts, "local"]}, {"/models": ["smollm2-135m-instruct"]}, "_self_"],
            "stack": NAME,
            "services": chosen,
            "roles": {"chat": {"endpoints": {name: {"service": name} for name in chosen}}},
            "gateway": {
                "node": "one",
                "bind": self.hosts["one"].address,
                "port": PORT,
                "auth": "none",
                "exposed": "accepted",
            },
        }

    def write(self, stack: dict[str, Any]) -> None:
        """Write the stack's file."""
        (self.conf / "stacks").mkdir(exist_ok=True)
        text = "# @package _global_\n" + yaml.safe_dump(stack, sort_keys=False)
        (self.conf / "stacks" / f"{NAME}.yaml").write_text(text)

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the program, without a terminal."""
        return subprocess.Popen(
            [str(PROGRAM), "--conf", str(self.conf), *arguments], cwd=self.lab.root,
            env=dict(self.lab.environment()), text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run the program to its end and check its exit code."""
        process = self.popen(*arguments)
        out, err = process.communicate(timeout=900)
        assert code is None or process.returncode == code, f"{arguments} exited {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def units(self) -> dict[str, dict[str, Any]]:
        """Return the living units: slot -> what status says."""
        lines = [json.loads(line) for line in self.run("status", NAME, "--json", code=None).stdout.splitlines()]
        return {line["slot"]: line for line in lines if line["type"] == "unit" and line["alive"]}

    def chat(self) -> httpx.Response:
        """Ask the gateway, as a client on another machine does."""
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        body = {"model": "chat", "messages": messages, "max_tokens": 12, "temperature": 0}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=120, trust_env=False)

    def answers(self) -> bool:
        """Tell whether the model gives the right answer."""
        answer = self.chat()
        return answer.status_code == 200 and "Paris" in answer.json()["choices"][0]["message"]["content"]

    def host_of(self, slot: str) -> Host:
        """Return the host that a unit runs on."""
        return self.hosts[self.units()[slot]["node"]]
