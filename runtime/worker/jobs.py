"""Pure: a request becomes jobs of the batch, one for each of its choices."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from runtime.worker.batch import Job
from runtime.worker.prompt import Limits, answer_limit
from runtime.worker.request import Request


def jobs_of(
    request: Request, tokens: list[int], ids: Sequence[int], limits: Limits, constraint: str | None = None
) -> list[Job]:
    """Return one job an id; those of one request share the computation of its prompt."""
    first = Job(
        id=ids[0],
        tokens=tokens,
        max_tokens=answer_limit(request, len(tokens), limits),
        sampling=request.sampling,
        stop=request.stop,
        constraint=constraint,
        logprobs=request.logprobs,
        shares=ids[0] if len(ids) > 1 else None,
    )
    seed = request.sampling.seed
    return [
        replace(first, id=job_id, sampling=replace(request.sampling, seed=choice_seed(seed, choice)))
        for choice, job_id in enumerate(ids)
    ]


def choice_seed(seed: int | None, choice: int) -> int | None:
    """Return the seed of one of several choices: the first is what the request alone gets, the others differ from it.

    The same for the same request, so all choices of a seeded request can be had again.
    """
    if seed is None or choice == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed} {choice}".encode(), digest_size=8).digest(), "big") >> 1
