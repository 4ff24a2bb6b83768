"""Pure: the right to send one request to one endpoint, and what its attempt makes known of that endpoint."""

from __future__ import annotations

from typing import Protocol

from runtime.gateway.routing import breaker
from runtime.gateway.routing.affinity import Affinity, Prefix
from runtime.gateway.routing.budget import Budget
from runtime.gateway.routing.outcome import CLIENT_LEFT, SUCCESS, Verdict
from runtime.gateway.routing.pace import LEAST_FIRST_S
from runtime.gateway.routing.select import Skipped
from runtime.gateway.routing.standing import Standing
from runtime.gateway.routing.table import Target

SLOW_SHARE = 0.8
"""Share of its time to the first content from which a call is slow, where the files name no seconds."""
HEDGE_SHARE = 0.95
"""What `hedge_s: p95` means."""


class Giver(Protocol):
    """Who gave a lease, and takes it back: the pool."""

    affinity: Affinity

    def now(self) -> float:
        """Return the time, in seconds."""
        ...

    def record(self, lease: Lease, standing: Standing, permit: int, verdict: Verdict, /) -> None:
        """Tell the breaker what is known of a leased request."""
        ...

    def take_back(
        self, lease: Lease, standing: Standing, permit: int, verdict: Verdict, error: str | None, tokens: int, /
    ) -> None:
        """Record the end of a leased request."""
        ...


class Lease:
    """The right to send one request to one endpoint. It is given back exactly once."""

    __slots__ = (
        "_is_done",
        "_permit",
        "_pool",
        "_standing",
        "began_at",
        "budget",
        "ends_as",
        "first_at",
        "first_limit_s",
        "is_drawn",
        "is_panic",
        "is_probe",
        "is_retry",
        "is_waited_out",
        "passed_over",
        "prefix",
        "size",
        "target",
        "was_asleep",
    )

    def __init__(
        self,
        pool: Giver,
        target: Target,
        standing: Standing,
        *,
        is_retry: bool,
        is_probe: bool = False,
        is_panic: bool = False,
        budget: Budget | None = None,
        prefix: Prefix | None = None,
        is_drawn: bool = False,
        passed_over: tuple[Skipped, ...] = (),
    ) -> None:
        """`is_drawn` says that the endpoint should hold something of `prefix`, the beginning of the prompt.

        `is_panic` says that the lease is given although the breaker is open: what comes of it opens nothing, and an
        answer closes it.
        """
        self.target = target
        self.began_at = pool.now()
        self.budget = budget
        self.prefix = prefix
        self.is_drawn = is_drawn
        self.passed_over = passed_over
        """The endpoints that were not taken when this one was chosen."""
        self.ends_as = CLIENT_LEFT
        """What is recorded when the attempt ends for a reason of its own."""
        self.size = 0
        self.first_limit_s = target.timeouts.first_token_s or LEAST_FIRST_S
        """How long the first content may take."""
        self.is_retry = is_retry
        self.is_probe = is_probe
        self.is_panic = is_panic
        self.first_at: float | None = None
        """When the first content came, of answers that come in pieces."""
        self.is_waited_out = False
        self.was_asleep = bool(standing.asleep)
        """Whether the model had to be brought into memory first, which takes as long as it takes."""
        self._pool = pool
        self._standing = standing
        self._permit = standing.breaker.generation
        self._is_done = False

    @property
    def is_broken(self) -> bool:
        """Tell whether a drill lets this request fail."""
        return self._standing.broken_until > self.began_at

    def sends(self, size: int) -> None:
        """Take note of the bytes of the body that is about to be sent: a long prompt may take its time."""
        self.size = size
        self.first_limit_s = self.target.timeouts.first_token_s or self._standing.pace.first_limit_s(size)

    def confirm(self) -> None:
        """Let a trial close its breaker at its first content: a long answer must not keep all others waiting.

        Whatever comes after that counts like any other request. In a closed breaker nothing is recorded before the
        end, so that answers which begin and then break still add up.
        """
        standing = self._standing
        self.first_at = self._pool.now()
        standing.pace.began(self.size, self.first_at - self.began_at)
        is_trial = isinstance(standing.breaker, breaker.HalfOpen) and standing.breaker.generation == self._permit
        if is_trial or self.is_panic:
            self._pool.record(self, standing, self._permit, SUCCESS)
            self._permit = standing.breaker.generation
            self.is_panic = False

    def finish(self, verdict: Verdict, error: str | None = None, tokens: int = 0) -> None:
        """Record how the request ended, and how many tokens came of it. Only the first call counts."""
        if self._is_done:
            return
        self._is_done = True
        self._pool.take_back(self, self._standing, self._permit, verdict, error, tokens)

    def release(self) -> None:
        """Give the lease back without a verdict, when the request ended for a reason of its own."""
        self.finish(self.ends_as)

    def reports(self, cached_tokens: int | None) -> None:
        """Take note of how much of the prompt the endpoint says it had read before, if it does."""
        if cached_tokens is not None:
            self._pool.affinity.reported(self.target.identity, cached_tokens)

    @property
    def is_doubted(self) -> bool:
        """Tell whether the end of this request should be known although another endpoint has answered it.

        An endpoint that was outrun time and again may be slower than others, or may hang: only its end tells. So is the
        trial of a breaker decided. A few requests at once are enough.
        """
        standing = self._standing
        is_trial = isinstance(standing.breaker, breaker.HalfOpen) and standing.breaker.generation == self._permit
        is_suspect = is_trial or standing.outrun + 1 >= self.target.breaker.failure_threshold
        return is_suspect and standing.waited_out < self.target.breaker.failure_threshold

    def wait_out(self) -> None:
        """Take note that the end of this request is waited for although nobody needs its answer."""
        self._standing.waited_out += 1
        self.is_waited_out = True
        if self.budget is not None:
            # The request is over: what goes on takes nothing from the attempts of others.
            self.budget.end(is_retry=self.is_retry)
            self.budget = None

    def hedge_after_s(self) -> float | None:
        """Return after how many seconds another endpoint should be asked too; None for never, or not known yet."""
        hedge_s = self.target.hedge_s
        return self._standing.pace.percentile_s(HEDGE_SHARE) if hedge_s == "p95" else hedge_s

    def is_slow(self, now: float) -> bool:
        """Tell whether an answer that ended well at `now` was slow to begin; vectors and scores begin with their end.

        A whole completion takes as long as it is long, which says nothing.
        """
        if self.was_asleep or (self.first_at is None and self.target.kind == "chat"):
            return False
        limit_s = self.target.breaker.slow_call_s
        taken_s = (now if self.first_at is None else self.first_at) - self.began_at
        return taken_s >= (SLOW_SHARE * self.first_limit_s if limit_s is None else limit_s)
