"""Pure: what a worker says of itself at `/status`, in words for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from schemas.base import NodeName
from schemas.messages import WorkerLink, WorkerMemory, WorkerRank, WorkerStatus

_MIB = 1 << 20


def worker_words(worker: WorkerStatus) -> Iterator[str]:
    """Yield what belongs to the worker as a whole: links, use, and what its caches were good for."""
    ranks = worker.group.ranks if worker.group is not None else ()
    links = [rank.link for rank in ranks if rank.link is not None]
    if links:
        yield _worst_words(links)
    yield from _use_words(worker)
    yield from _prompt_words(worker)
    if not ranks:
        yield f"memory {_size(_total(worker.memory))}"


def rank_lines(worker: WorkerStatus, nodes: Mapping[int, NodeName]) -> Iterator[str]:
    """Yield one line for each rank of a group; `nodes` are keyed by its number."""
    for rank in worker.group.ranks if worker.group is not None else ():
        where = f"rank {rank.rank} on {nodes[rank.rank]}" if rank.rank in nodes else f"rank {rank.rank}"
        yield f"{where}: {'; '.join(_rank_words(rank))}"


def _rank_words(rank: WorkerRank) -> Iterator[str]:
    if rank.phase != "ready":
        yield rank.phase if rank.progress is None else f"{rank.phase} {rank.progress:.0%}"
    if rank.memory is not None:
        yield _memory_words(rank.memory)
    if rank.link is not None:
        yield _worst_words([rank.link])
    if rank.heartbeat_age_s is not None:
        yield f"heard {rank.heartbeat_age_s:.0f} s ago"
    elif rank.rank:
        yield "not heard yet"


def _memory_words(memory: WorkerMemory) -> str:
    """Say how much a process holds, at most held, and for what; caches that are empty are left out."""
    parts = [f"model {_size(memory.model_bytes)}"]
    parts += [f"requests {_size(memory.kv_bytes)}"] if memory.kv_bytes else []
    parts += [f"prompt cache {_size(memory.prompt_cache_bytes)}"] if memory.prompt_cache_bytes else []
    return f"memory {_size(_total(memory))}, peak {_size(_peak(memory))} ({', '.join(parts)})"


def _total(memory: WorkerMemory) -> int:
    """Return what the process holds: on macOS, where nobody tells that cheaply, what MLX holds."""
    return memory.active_bytes + memory.cache_bytes if memory.rss_bytes is None else memory.rss_bytes


def _peak(memory: WorkerMemory) -> int:
    return max(_total(memory), memory.peak_bytes if memory.rss_bytes is None else memory.rss_peak_bytes)


def _size(count: int) -> str:
    """Write bytes as people do: `0.2 MiB`, `412 MiB`, `1.3 GiB`."""
    mib = count / _MIB
    if mib >= 1000:
        return f"{mib / 1024:.1f} GiB"
    return f"{mib:.0f} MiB" if mib >= 10 else f"{mib:.1f} MiB"


def _worst_words(links: list[WorkerLink]) -> str:
    """Say the figures of links, those of the rank that has the worst."""
    latency = f"links {max(link.latency_us for link in links) / 1000:.1f} ms"
    rates = [link.bandwidth_gbps for link in links if link.bandwidth_gbps is not None]
    return f"{latency}, {min(rates):.1f} Gb/s" if rates else latency


def _use_words(worker: WorkerStatus) -> Iterator[str]:
    """Yield what it is doing, or how long ago it did something."""
    queue, tokens = worker.queue, worker.tokens
    if queue.batch or queue.waiting:
        yield f"{queue.batch} of {queue.batch_limit} places in use, {queue.waiting} waiting"
        yield f"{tokens.per_s:.3g} tokens/s"
    elif tokens.last_age_s is not None and worker.on_demand is None:  # else it is told for how long it was idle
        yield f"idle, last token {_age(tokens.last_age_s)} ago"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _prompt_words(worker: WorkerStatus) -> Iterator[str]:
    """Yield what a prompt cache and a draft model were good for, once they were used."""
    kept, drafted = worker.prompt_cache, worker.speculation
    if kept is not None and kept.lookups:
        yield f"prompt cache hit by {kept.hits} of {kept.lookups}"
    if drafted is not None and drafted.failure is not None:
        yield f"its draft model is not used any more: {drafted.failure}"
    elif drafted is not None and drafted.proposed:
        yield f"{drafted.accepted} of {drafted.proposed} drafted tokens accepted"
