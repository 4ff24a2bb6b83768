"""I/O: what one process answers to the canary's prompts: made once on a node, and kept on this machine.

    <cache>/references/<key>.json      a `schemas.canary.Reference`

The key is made of the contents of the model, the prompts and the versions of the libraries. Models that the user looks
after (`path:`) are known by what their node says of their files, which is asked whenever they are needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from pydantic import ValidationError

from orchestrator.cluster import Cluster, ReachedNode
from orchestrator.execute import EffectError, Progress, Report
from orchestrator.launch import model_path
from orchestrator.models.errors import StoreError
from orchestrator.models.manifest import Manifest, content
from orchestrator.models.sync import Wish, models_here
from orchestrator.node.client import ShimError
from orchestrator.transport.base import TransportError
from schemas.base import ModelName
from schemas.canary import PROMPTS_VERSION, Reference, ReferenceProgress
from schemas.hashing import canonical_json
from schemas.stack import Canary
from schemas.unit import ModelSpec

PROGRAM = "runtime.worker.reference"
FINGERPRINT_S = 120.0
"""For a node to import mlx and to read the edges of a model's files from a disk that is busy."""
IDLE_S = 600.0
"""Between two lines of a process that makes a reference: reading or computing one step of the largest models."""
LIBRARIES = ("mlx", "mlx-lm")


class References:
    """The answers of single processes that are kept on this machine."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._root = cluster.directories.cache / "references"

    def known(self, wanted: Iterable[tuple[ModelSpec, Canary]]) -> frozenset[tuple[ModelName, int]]:
        """Return for which models and lengths of the long prompt answers are kept, without asking any node."""
        found = set()
        for model, canary in wanted:
            manifest = self._manifest(model)
            if manifest is not None and self._read(_key(content(manifest.files), model, canary.long_tokens)):
                found.add((ModelName(model.name), canary.long_tokens))
        return frozenset(found)

    async def find(self, node: ReachedNode, model: ModelSpec, long_tokens: int) -> Reference | None:
        """Return the kept answers; a node that has the model is asked what it is where only the node knows.

        Raises EffectError.
        """
        return await asyncio.to_thread(self._read, await self._place(node, model, long_tokens))

    async def make(
        self, node: ReachedNode, model: ModelSpec, long_tokens: int, report: Report, idle_s: float = IDLE_S
    ) -> Reference:
        """Return the kept answers, made by a process on a node where there are none; raises EffectError.

        A process that has not come any further for `idle_s` is ended.
        """
        key = await self._place(node, model, long_tokens)
        kept = await asyncio.to_thread(self._read, key)
        if kept is not None:
            return kept
        made = await self._compute(node, model, long_tokens, report, idle_s)
        self._check(node, model, made)
        await asyncio.to_thread(self._write, key, made)
        return made

    async def _compute(
        self, node: ReachedNode, model: ModelSpec, long_tokens: int, report: Report, idle_s: float
    ) -> Reference:
        argv = await self._argv(node, model)
        argv += ["--long-tokens", str(long_tokens)]
        if model.context is not None:
            argv += ["--max-context", str(model.context)]
        last = b""
        try:
            async with asyncio.timeout(idle_s) as limit, node.transport.stream(argv) as lines:
                async for line in lines:
                    limit.reschedule(asyncio.get_running_loop().time() + idle_s)
                    last = line
                    _tell(line, report)
                code = await lines.wait()
                said = lines.error_tail()
        except TransportError as error:
            raise EffectError(f"the reference of {model.name} could not be computed: {error}") from error
        except TimeoutError as error:
            raise EffectError(
                f"the reference of {model.name} got no further on {node.name} for {idle_s:.0f} s; {_way_out(model)}"
            ) from error
        try:
            return Reference.from_json(last)
        except ValidationError as error:
            tail = tuple(said.splitlines()[-10:])
            raise EffectError(
                f"the reference of {model.name} could not be computed on {node.name}: exit code {code}; "
                f"{_way_out(model)}",
                log_tail=tail,
            ) from error

    def _check(self, node: ReachedNode, model: ModelSpec, made: Reference) -> None:
        """Refuse answers of weights that are not those that were installed: they would judge every group wrongly."""
        manifest = self._manifest(model)
        if manifest is None:
            return
        wrong = [n for n, digest in made.files.items() if n in manifest.files and manifest.files[n].sha256 != digest]
        if wrong:
            raise EffectError(
                f"{', '.join(wrong)} of {model.name} on {node.name} is not what was installed: the copy is damaged",
                next_step=("models", "verify", self._cluster.stack, "--mend"),
            )

    async def _place(self, node: ReachedNode, model: ModelSpec, long_tokens: int) -> str:
        manifest = await asyncio.to_thread(self._manifest, model)
        digest = content(manifest.files) if manifest is not None else await self._fingerprint(node, model)
        return _key(digest, model, long_tokens)

    async def _fingerprint(self, node: ReachedNode, model: ModelSpec) -> str:
        argv = [*await self._argv(node, model), "--fingerprint"]
        try:
            done = await node.transport.run(argv, timeout_s=FINGERPRINT_S)
        except TransportError as error:
            raise EffectError(f"{model.name} could not be read: {error}") from error
        if done.exit_code:
            tail = tuple(done.stderr.decode("utf-8", "replace").splitlines()[-10:])
            raise EffectError(f"{model.name} could not be read on {node.name}", log_tail=tail)
        return done.stdout.decode().strip()

    async def _argv(self, node: ReachedNode, model: ModelSpec) -> list[str]:
        try:
            path = await model_path(self._cluster, node, Wish(model, "mlx"))
            return [await node.python(), "-m", PROGRAM, "--model-dir", path]
        except (TransportError, ShimError, StoreError) as error:
            raise EffectError(str(error)) from error

    def _manifest(self, model: ModelSpec) -> Manifest | None:
        wish = Wish(model, "mlx")
        here = models_here(self._cluster.store, [wish]).get(wish)
        return None if here is None else here.manifest

    def _read(self, key: str) -> Reference | None:
        try:
            return Reference.from_json((self._root / f"{key}.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def _write(self, key: str, reference: Reference) -> None:
        place = self._root / f"{key}.json"
        temporary = self._root / f"{key}.{secrets.token_hex(4)}.tmp"  # another stack may write the same answers now
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            temporary.write_text(reference.model_dump_json() + "\n")
            temporary.replace(place)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise EffectError(f"{place} cannot be written: {error.strerror}") from error


def _key(digest: str, model: ModelSpec, long_tokens: int) -> str:
    what = {
        "content": digest,
        "context": model.context,
        "long_tokens": long_tokens,
        "prompts": PROMPTS_VERSION,
        "libraries": [_version(name) for name in LIBRARIES],
    }
    return hashlib.sha256(canonical_json(what).encode()).hexdigest()[:32]


def _version(distribution: str) -> str:
    """Return the version that this machine has: one lock file is for all nodes."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _way_out(model: ModelSpec) -> str:
    return (
        f"where one process cannot hold the model, declare what it needs as models.{model.name}.memory_gib; "
        "sharding.canary: off starts the group without"
    )


def _tell(line: bytes, report: Report) -> None:
    try:
        seen = ReferenceProgress.from_json(line)
    except ValidationError:
        return
    report(Progress(seen.phase, seen.done, seen.total, seen.unit))
