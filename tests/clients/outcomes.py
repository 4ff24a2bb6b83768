"""I/O: runs the programs of clients, each in its own environment, and keeps what they said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.clients.environments import LOCKS, missing, node_directory, python_of
from tests.clients.serving import BACKENDS, LLAMA, WORKER, Backend, Serving
from tests.clients.small_model import left_out
from tests.clients.table import versions_in

PROGRAMS = Path(__file__).parent / "programs"
LIMIT_S = 600.0
"""Of one program with one backend; each of its requests has a shorter limit of its own."""
SCENARIO = re.compile(r'^@?scenario\(\s*"([^"]+)"', re.MULTILINE)
PRIVATE = ("OPENAI_", "ANTHROPIC_", "OLLAMA_", "LANGCHAIN_", "LANGSMITH_", "PYTEST_", "PYTHONDONTWRITEBYTECODE")
"""Variables by which users of such clients set where they ask, and ours of the run that starts them.

Half of the seconds before a Python client's first request are its packages compiled anew, so it keeps them compiled.
"""


@dataclass(frozen=True, slots=True)
class Client:
    """One client as the table has it, and the program that uses it."""

    name: str
    file: Path
    argv: Callable[[Path], list[str]]
    """The command for the program's file; makes its environment."""
    version: str
    """What is installed, in words."""
    backends: Sequence[Backend] = (WORKER, LLAMA)
    leaves_out: bool = False
    """Its program is told which of its features it is to leave out, and why."""

    def features(self) -> list[str]:
        """Return what its program tries, in the order of the text; none where only its run can tell."""
        return SCENARIO.findall(self.file.read_text())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a feature; see programs/scenarios.py, and for what is left out programs/langchain_standard.py."""

    outcome: str
    detail: str = ""


def _python(name: str, program: str, environment: str, packages: Sequence[str]) -> Client:
    version = versions_in((LOCKS / f"{environment}.lock").read_text(), packages)
    return Client(name, PROGRAMS / program, lambda file: [str(python_of(environment)), str(file)], version)


def _standard(name: str, case: str, packages: Sequence[str]) -> Client:
    """LangChain's standard tests of one class."""

    def argv(file: Path) -> list[str]:
        return [str(python_of("langchain")), str(file), case]

    version = versions_in((LOCKS / "langchain.lock").read_text(), [*packages, "langchain-tests"])
    return Client(name, PROGRAMS / "langchain_standard.py", argv, version, leaves_out=True)


def _node(name: str, program: str, package: str) -> Client:
    def argv(file: Path) -> list[str]:
        # Node looks for packages from a program's own place upwards, so the program goes to them.
        place = node_directory()
        for each in (file, file.with_name("scenarios.mjs")):
            shutil.copy(each, place)
        return ["node", str(place / file.name)]

    locked = json.loads((LOCKS / "package-lock.json").read_text())["packages"][f"node_modules/{package}"]
    return Client(name, PROGRAMS / program, argv, f"{package} {locked['version']}")


def _plain(name: str, program: str, version: str, needs: str | None = None) -> Client:
    """A program without packages of its own: cheap enough for every backend."""

    def argv(file: Path) -> list[str]:
        if needs is not None and shutil.which(needs) is None:
            missing(f"`{needs}` is not installed")
        return [sys.executable, "-B", str(file)]

    return Client(name, PROGRAMS / program, argv, version, BACKENDS)


CLIENTS = (
    _python("openai for Python", "openai_python.py", "sdks", ["openai"]),
    _python("openai for Python, Responses", "openai_responses.py", "sdks", ["openai"]),
    _node("openai for Node", "openai_node.mjs", "openai"),
    _python("anthropic for Python", "anthropic_python.py", "sdks", ["anthropic"]),
    _python("ollama for Python", "ollama_python.py", "sdks", ["ollama"]),
    _node("ollama for JavaScript", "ollama_js.mjs", "ollama"),
    _python("LlamaIndex", "llamaindex_python.py", "llama-index", ["llama-index-core", "llama-index-llms-openai-like"]),
    _plain("curl", "curl.py", "whatever the machine has", "curl"),
    _plain("Open WebUI", "open_webui.py", "its requests, as its backend sends them"),
    _node("Continue", "continue_cli.mjs", "@continuedev/cli"),
)
STANDARD = (
    _standard("LangChain: ChatOpenAI", "TestChatOpenAI", ["langchain-openai"]),
    _standard("LangChain: ChatOllama", "TestChatOllama", ["langchain-ollama"]),
    _standard("LangChain: OpenAIEmbeddings", "TestOpenAIEmbeddings", ["langchain-openai"]),
    _standard("LangChain: OllamaEmbeddings", "TestOllamaEmbeddings", ["langchain-ollama"]),
)


@dataclass(slots=True)
class Outcomes:
    """Everything that was seen in this run."""

    serving: Serving
    seen: dict[tuple[str, str], Mapping[str, Outcome]] = field(default_factory=dict)
    """By client and backend."""

    def of(self, client: Client, backend: Backend) -> Mapping[str, Outcome]:
        """Return the outcome of each feature."""
        key = (client.name, backend.name)
        if key not in self.seen:
            self.seen[key] = self._run(client, backend)
        return self.seen[key]

    def _run(self, client: Client, backend: Backend) -> Mapping[str, Outcome]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
        argv = [*client.argv(client.file), self.serving.setting(backend)]
        if client.leaves_out:
            argv.append(json.dumps(left_out(client.name, backend.name)))
        environment = {**clean, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        process = subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += f"\nended after {LIMIT_S:.0f} s"
        lines = [json.loads(line) for line in out.splitlines() if line.startswith('{"feature"')]
        told = {line["feature"]: Outcome(line["outcome"], line["detail"]) for line in lines}
        lost = Outcome("failed", f"the program ended with {process.returncode}:\n{out[-1000:]}\n{err[-3000:]}")
        # A suite's features are known only from its lines: too few where it was cut off (it ends with neither 0 nor 1).
        wanted = client.features() or [*told, *([] if process.returncode in (0, 1) and told else ["its end"])]
        return {feature: told.get(feature, lost) for feature in wanted}
