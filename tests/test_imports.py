"""The import rules of the architecture, read from the syntax tree of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("schemas", "orchestrator", "runtime")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
IMPURE = {
    "asyncio", "httpx", "httptools", "subprocess", "os", "pathlib", "time", "random", "logging", "socket",
    "threading", "signal", "selectors",
    "shutil", "tempfile", "urllib.request", "http.client", "http.server", "sanic", "watchfiles",
}  # fmt: skip
# what may import a library, where it is not everybody
ONLY_IN = {
    "mlx": ("runtime/worker/",),
    "mlx_lm": ("runtime/worker/",),
    "zmq": ("runtime/worker/group/control.py", "orchestrator/launch.py"),
    "sanic": ("runtime/gateway/", "runtime/worker/http/"),
    "hydra": ("schemas/compose.py",),
    "omegaconf": ("schemas/compose.py",),
    "httptools": ("runtime/gateway/upstream.py", "runtime/gateway/connections.py"),
    "click": ("orchestrator/cli/",),
    "rich": ("orchestrator/cli/",),
    "zeroconf": ("orchestrator/node/discover.py",),  # of an extra that few install
    "ifaddr": ("orchestrator/node/discover.py",),
    # Whoever reads these runs what the sender says; nothing of ours is sent or kept like that.
    "pickle": (),
    "marshal": (),
    "shelve": (),
    "multiprocessing": (),
}
MUST_BE_PURE = (
    "schemas/base.py", "schemas/stack.py", "schemas/node.py", "schemas/model.py", "schemas/policy.py",
    "schemas/exits.py", "schemas/kinds.py", "schemas/sharding.py", "schemas/prefer.py", "schemas/on_demand.py",
    "schemas/unit.py", "schemas/routes.py", "schemas/hashing.py", "schemas/checks.py", "schemas/explain.py",
    "schemas/drafting.py", "orchestrator/drafting.py", "orchestrator/footprint.py",
    "orchestrator/expand.py", "orchestrator/observed.py", "orchestrator/placement.py", "orchestrator/reconcile.py",
    "orchestrator/budget.py", "orchestrator/causes.py", "orchestrator/addresses.py", "orchestrator/consequences.py",
    "orchestrator/decide.py", "orchestrator/drain.py", "orchestrator/draft.py",
    "orchestrator/groups.py", "orchestrator/kinds.py", "orchestrator/ladders.py", "orchestrator/proof.py",
    "orchestrator/link_verdict.py",
    "orchestrator/memory.py", "orchestrator/policy.py", "orchestrator/scope.py", "orchestrator/sharding.py",
    "orchestrator/sharing.py",
    "orchestrator/plan.py", "orchestrator/simulate.py", "orchestrator/commands.py",
    "orchestrator/watching/pace.py", "orchestrator/installed.py", "orchestrator/status.py",
    "orchestrator/worker_words.py",
    "orchestrator/node/announced.py", "orchestrator/surroundings.py",
    "orchestrator/helpers/answers.py", "orchestrator/helpers/identify.py", "orchestrator/helpers/compare.py",
    "orchestrator/helpers/silence.py",
    "orchestrator/models/facts.py", "orchestrator/models/sources.py", "orchestrator/models/wishes.py",
    "orchestrator/engines/description.py", "orchestrator/engines/catalogue.py", "orchestrator/engines/llama_server.py",
    "orchestrator/engines/vllm.py", "orchestrator/engines/mlx_lm_server.py", "orchestrator/engines/command.py",
    "runtime/worker/encode/modules.py", "runtime/worker/encode/recipe.py", "runtime/worker/encode/rows.py",
    "runtime/worker/encode/prompts.py",
    "runtime/worker/encode/queue.py", "runtime/worker/encode/request.py", "runtime/worker/encode/work.py",
    "runtime/worker/steps.py", "runtime/worker/prefill.py",
    "runtime/worker/group/wire.py", "runtime/worker/group/pace.py",
    "runtime/worker/group/link_schedule.py",
    "runtime/worker/on_demand/attempts.py", "runtime/worker/on_demand/room.py", "runtime/worker/on_demand/use.py",
    "runtime/worker/on_demand/words.py",
    "runtime/worker/options.py", "runtime/worker/jobs.py",
    "runtime/worker/logprobs.py", "runtime/worker/refusals.py",
    "runtime/worker/choices.py", "runtime/worker/cache_size.py",
    "schemas/canary.py", "schemas/verdict.py", "schemas/foreign.py", "schemas/ollama_names.py",
    "orchestrator/comparison.py", "orchestrator/referencing.py",
    "runtime/worker/tools/call_arguments.py", "runtime/worker/tools/conversation.py",
    "runtime/worker/tools/families.py",
    "runtime/worker/tools/formats.py", "runtime/worker/tools/lark.py", "runtime/worker/tools/bounds.py",
    "runtime/worker/messages.py",
    "runtime/worker/tools/reading.py", "runtime/worker/tools/early.py", "runtime/worker/tools/sketch.py",
    "runtime/worker/tools/json_text.py",
    "runtime/worker/tools/shapes.py", "runtime/worker/tools/stream.py", "runtime/worker/tools/asked.py",
    "runtime/worker/tools/thoughts.py",
    "runtime/gateway/routing/table.py", "runtime/gateway/routing/select.py", "runtime/gateway/routing/breaker.py",
    "runtime/gateway/routing/outcome.py", "runtime/gateway/routing/build.py", "runtime/gateway/routing/checks.py",
    "runtime/gateway/adapters/strict.py", "runtime/gateway/adapters/abilities.py",
    "runtime/gateway/adapters/emulation/plan.py", "runtime/gateway/adapters/emulation/forms.py",
    "runtime/gateway/adapters/emulation/schema.py", "runtime/gateway/adapters/emulation/choices.py",
    "runtime/gateway/adapters/emulation/gathering.py", "runtime/gateway/adapters/emulation/one_call.py",
    "schemas/parameters.py", "runtime/gateway/adapters/mlx_lm_server.py",
    "runtime/gateway/routing/health.py", "runtime/gateway/routing/statistics.py", "runtime/gateway/routing/by_hand.py",
    "runtime/gateway/endpoints.py", "orchestrator/breakers.py", "orchestrator/columns.py", "orchestrator/past.py",
    "runtime/gateway/routing/settings.py", "runtime/gateway/adapters/vectors.py", "runtime/gateway/adapters/ranking.py",
    "runtime/gateway/adapters/collect.py", "runtime/gateway/adapters/whole.py",
    "runtime/gateway/attempt.py", "runtime/gateway/walk.py",
    "runtime/gateway/adapters/refusals.py", "runtime/gateway/adapters/tei.py", "runtime/gateway/adapters/infinity.py",
    "runtime/gateway/adapters/ollama.py", "runtime/gateway/adapters/splitting.py",
    "schemas/legacy.py", "schemas/hostfile.py",
    "runtime/gateway/ladder.py", "runtime/gateway/routing/pool.py", "runtime/gateway/routing/lease.py",
    "runtime/gateway/routing/standing.py", "runtime/gateway/routing/pace.py", "runtime/gateway/routing/budget.py",
    "runtime/gateway/routing/affinity.py", "orchestrator/drill.py", "schemas/receipt.py",
    "runtime/gateway/observe/receipts.py",
    "runtime/gateway/observe/past.py", "schemas/history.py",
    "runtime/gateway/facts/known.py", "runtime/gateway/facts/answers.py", "runtime/gateway/facts/inquiry.py",
    "runtime/gateway/facts/programs.py",
    "runtime/gateway/facts/names.py", "runtime/gateway/facts/cards.py", "runtime/gateway/facts/lengths.py",
    "runtime/gateway/facts/engines/infinity.py", "runtime/gateway/facts/engines/llama_cpp.py",
    "runtime/gateway/facts/engines/lm_studio.py", "runtime/gateway/facts/engines/mlx_lm_server.py",
    "runtime/gateway/facts/engines/ollama.py", "runtime/gateway/facts/engines/openai.py",
    "runtime/gateway/facts/engines/tei.py", "runtime/gateway/facts/engines/vllm.py",
    "runtime/gateway/facts/engines/worker.py", "runtime/worker/described.py", "runtime/worker/contexts.py",
    "runtime/gateway/protocols/translation.py", "runtime/gateway/protocols/dialect.py",
    "runtime/gateway/protocols/reading.py",
    "runtime/gateway/protocols/anthropic/answer.py", "runtime/gateway/protocols/anthropic/content.py",
    "runtime/gateway/protocols/anthropic/messages.py", "runtime/gateway/protocols/anthropic/request.py",
    "runtime/gateway/protocols/anthropic/tokens.py", "runtime/gateway/protocols/anthropic/tools.py",
    "runtime/gateway/counting.py",
    "runtime/gateway/protocols/ollama/answers.py", "runtime/gateway/protocols/ollama/calls.py",
    "runtime/gateway/protocols/ollama/fields.py", "runtime/gateway/protocols/ollama/listing.py",
    "runtime/gateway/protocols/ollama/messages.py", "runtime/gateway/protocols/ollama/options.py",
    "runtime/gateway/protocols/ollama/requests.py",
    "runtime/gateway/usage.py", "runtime/gateway/mending.py", "runtime/gateway/continuing.py",
    "runtime/gateway/protocols/responses/answer.py", "runtime/gateway/protocols/responses/document.py",
    "runtime/gateway/protocols/responses/items.py", "runtime/gateway/protocols/responses/request.py",
    "runtime/gateway/openapi/document.py", "runtime/gateway/openapi/shapes.py",
    "runtime/gateway/openapi/operations.py", "runtime/gateway/openapi/errors.py",
)  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


CODE = [path for path in MODULES if path.read_text().strip()]


@pytest.mark.parametrize("path", CODE, ids=name)
def test_a_module_says_whether_it_is_pure_and_keeps_to_it(path):
    first = docstring(path).split(":")[0]
    assert first in ("Pure", "I/O"), f"{name(path)}: begin its docstring with `Pure:` or `I/O:`"
    if first == "Pure":
        impure = {module for module in imports(path) if module in IMPURE or module.split(".")[0] in IMPURE}
        assert not impure, f"{name(path)} says that it is pure and imports {sorted(impure)}"


@pytest.mark.parametrize("path", MUST_BE_PURE)
def test_the_core_is_pure(path):
    assert docstring(ROOT / path).startswith("Pure:")


@pytest.mark.parametrize("path", CODE, ids=name)
def test_packages_import_only_what_they_may(path):
    package = path.relative_to(ROOT).parts[0]
    forbidden = {"schemas": {"orchestrator", "runtime"}, "orchestrator": {"runtime"}, "runtime": {"orchestrator"}}[
        package
    ]
    used = {module.split(".")[0] for module in imports(path)}
    assert not used & forbidden
    assert not used & {"tests", "bench"}


@pytest.mark.parametrize("path", CODE, ids=name)
def test_a_library_is_imported_only_where_it_belongs(path):
    for module in imports(path):
        places = ONLY_IN.get(module.split(".")[0])
        assert places is None or name(path).startswith(places), f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", CODE, ids=name)
def test_nobody_imports_the_command_line(path):
    if not name(path).startswith("orchestrator/cli/"):
        assert not any(module.startswith("orchestrator.cli") for module in imports(path))


@pytest.mark.parametrize("script", ["node/shim.py", "node/builder.py", "node/http_call.py", "models/keeper.py"])
def test_what_is_copied_to_nodes_needs_the_standard_library_only(script):
    used = {module.split(".")[0] for module in imports(ROOT / "orchestrator" / script)} - {"__future__"}
    assert used - {"pip"} <= sys.stdlib_module_names  # the builder brings its pip along


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from orchestrator.cli.main import main; main(sys.argv[1:]);"
        "heavy = {'mlx', 'sanic', 'hydra', 'pydantic', 'httpx', 'omegaconf'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
