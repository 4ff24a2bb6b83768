"""I/O: who is let in: the one owner of the rules in force, and of the requests that they were last asked about.

A request is admitted once, before its handler runs, by the scope of its route. Who is admitted with a key and still
being answered when the key is revoked or expires is sent away.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from http import HTTPStatus

from sanic import Request
from sanic.exceptions import SanicException

from runtime.gateway.errors import ApiError
from runtime.gateway.security.callers import ANYBODY, NOBODY, THIS_MACHINE, Caller
from runtime.gateway.security.credentials import credential_of
from runtime.gateway.security.rates import Rates
from runtime.gateway.security.rules import LOOPBACK_NAMES, Rules, as_host, host_name, is_address, is_this_machine
from runtime.gateway.security.scopes import Need
from schemas.addresses import is_loopback

log = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
FRIENDLY_SITES = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site for what the gateway's own pages ask, and for what a person typed."""
LONGEST_TIMER_S = 24 * 3600.0
"""A key that expires later than this is looked at again then: clocks are set."""


class MisdirectedError(SanicException):
    """The Host header names nobody that is known here. Its text is ours and may be shown."""

    status_code = HTTPStatus.MISDIRECTED_REQUEST


class Stay:
    """One request that was admitted with a key, while it is answered."""

    __slots__ = ("_task", "is_over", "reason")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - handlers run in tasks
        self._task = task
        self.is_over = False
        self.reason = ""

    def end(self, reason: str) -> None:
        """Cancel what answers the request, which closes the connection to the endpoint."""
        if not self.is_over:
            self.is_over, self.reason = True, reason
            self._task.cancel()

    def was_cancelled_here(self) -> bool:
        """Tell, in the task that was cancelled, whether nobody but `end` wanted that; may be called once."""
        return self.is_over and self._task.uncancel() == 0


class Guard:
    """Judges requests. Used on one event loop."""

    def __init__(self, bind: str, now: Callable[[], float], wall: Callable[[], float]) -> None:
        """`bind` is where the process listens, `now` the event loop's clock, `wall` the seconds since the epoch."""
        self._is_exposed = not is_loopback(bind)
        self._first_hosts = LOOPBACK_NAMES | {as_host(bind)}
        self._now = now
        self._wall = wall
        self._rules: Rules | None = None
        self._rates = Rates()
        self._stays: dict[bytes, set[Stay]] = {}
        """Of every key, by its digest."""
        self._timers: dict[bytes, asyncio.TimerHandle] = {}

    @property
    def may_listen(self) -> bool:
        """Tell whether it is known who may ask, or only this machine can."""
        return self._rules is not None or not self._is_exposed

    def adopt(self, rules: Rules) -> None:
        """Judge by other rules from now on, and send away whose key is no more."""
        self._rules = rules
        self._rates.keep({caller.id for caller in rules.keyring})
        for digest in list(self._stays):
            caller = rules.keyring.current(digest)
            if caller is None:
                self._send_away(digest, "revoked")
            else:
                self._watch_expiry(caller)

    # -- before routing --------------------------------------------------------------------------------------------

    def check_host(self, host: str | None) -> None:
        """Refuse a request that was sent to another name than ours; raises `MisdirectedError`.

        A page of another site reaches a server at home by letting its own name point there; its browser says that
        name. Without a Host header (HTTP/1.0) no browser has sent it, and an address is where it was sent to.
        """
        if host is None:
            return
        hosts, name = self._first_hosts if self._rules is None else self._rules.hosts, host_name(host)
        if name in hosts or is_address(name):
            return
        raise MisdirectedError("This host name is not one of the gateway's; `gateway.hosts` in its stack lists them.")

    # -- before the handler ----------------------------------------------------------------------------------------

    def admit(self, request: Request, need: Need) -> Caller:
        """Return who may go on to a route; raises `ApiError` with status 400, 401, 403, 429 or 503 for who may not."""
        headers = request.headers
        if "origin" in headers or "sec-fetch-site" in headers:
            self._check_page(request)
        rules = self._rules
        if need == "open":
            return self._recognise(request)
        if rules is None or not rules.is_keyed:
            return self._admit_without_keys(request, need)
        credential = credential_of(headers.getall("authorization", ()), headers.getall("x-api-key", ()))
        if credential is None:
            raise ApiError(401, "Send a key: 'Authorization: Bearer KEY'.", code="missing_api_key")
        caller = rules.keyring.find(credential)
        if caller is None:
            raise ApiError(401, "This is no key of this gateway.", code="invalid_api_key")
        if caller.expires_at is not None and caller.expires_at <= self._wall():
            raise ApiError(401, "This key has expired.", code="expired_api_key")
        if need not in caller.scopes:
            raise ApiError(403, f"This key may not do this; it takes the scope '{need}'.", code="insufficient_scope")
        if caller.rpm is not None and need == "inference" and request.method not in SAFE_METHODS:
            self._take_turn(caller.id, caller.rpm)
        return caller

    def _recognise(self, request: Request) -> Caller:
        """Return who asks for what is open to all; a key that is none is no reason to refuse that."""
        rules = self._rules
        if rules is None or not rules.is_keyed:
            return THIS_MACHINE if _is_here(request) and not _is_page(request) else ANYBODY
        try:
            found = credential_of(request.headers.getall("authorization", ()), request.headers.getall("x-api-key", ()))
        except ApiError:
            return NOBODY
        caller = rules.keyring.find(found) if found is not None else None
        is_current = caller is not None and (caller.expires_at is None or caller.expires_at > self._wall())
        return caller if caller is not None and is_current else NOBODY

    def _admit_without_keys(self, request: Request, need: Need) -> Caller:
        """Let everybody ask models; what shows or changes the gateway is for this machine and for the orchestrator.

        The peer is the socket's: no header can name another one. A page that may ask is not the machine whose browser
        shows it.
        """
        if self._rules is None and self._is_exposed:
            message = "The gateway has no usable configuration yet, so it does not know who may ask."
            raise ApiError(503, message, code="configuration_invalid", retry_after_s=1.0)
        if need in ANYBODY.scopes:
            return ANYBODY
        if _is_here(request) and not _is_page(request):
            return THIS_MACHINE
        found = credential_of(request.headers.getall("authorization", ()), request.headers.getall("x-api-key", ()))
        caller = self._rules.keyring.find(found) if self._rules is not None and found is not None else None
        if caller is None or need not in caller.scopes:
            message = "Other machines and web pages need a key for this; the stack has none."
            raise ApiError(401, message, code="invalid_api_key")
        return caller

    def _take_turn(self, key: str, rpm: int) -> None:
        wait_s = self._rates.take(key, rpm, self._now())
        if wait_s > 0:
            message = f"This key may make {rpm} requests a minute, and has."
            raise ApiError(429, message, code="rate_limit_exceeded", retry_after_s=float(math.ceil(wait_s)))

    def _check_page(self, request: Request) -> None:
        """Refuse what a page of another site asks for, where that changes something or goes on; raises `ApiError`."""
        headers, rules = request.headers, self._rules
        origin, site = headers.getone("origin", None), headers.getone("sec-fetch-site", None)
        if origin is not None and self.is_listed(origin):
            request.ctx.origin = origin
            return
        is_stream = "text/event-stream" in headers.getone("accept", "")
        if request.method in SAFE_METHODS and not is_stream:
            return
        is_own = origin is None or (rules is not None and _is_same(origin, headers.getone("host", "")))
        if not is_own or (site is not None and site not in FRIENDLY_SITES):
            message = "Pages of this site may not ask the gateway; `gateway.origins` in its stack lists those that may."
            raise ApiError(403, message, code="cross_origin")

    def is_listed(self, origin: str) -> bool:
        """Tell whether the pages of an origin may ask."""
        return self._rules is not None and origin in self._rules.origins

    # -- while it is answered --------------------------------------------------------------------------------------

    def enter(self, caller: Caller) -> Stay:
        """Note that a request of a key is being answered by the current task, until `leave`."""
        stay = Stay()
        stays = self._stays.get(caller.digest)
        if stays is None:
            stays = self._stays[caller.digest] = set()
        stays.add(stay)
        if caller.expires_at is not None and caller.digest not in self._timers:
            self._watch_expiry(caller)
        return stay

    def leave(self, caller: Caller, stay: Stay) -> None:
        """Note that a request is over."""
        stays = self._stays.get(caller.digest, set())
        stays.discard(stay)
        if not stays:
            self._stays.pop(caller.digest, None)
            timer = self._timers.pop(caller.digest, None)
            if timer is not None:
                timer.cancel()

    def _send_away(self, digest: bytes, reason: str) -> None:
        stays = list(self._stays.get(digest, ()))
        log.info("ending what was asked with a key that is no more: requests=%d reason=%s", len(stays), reason)
        for stay in stays:
            stay.end(reason)

    def _watch_expiry(self, caller: Caller) -> None:
        """Send away whose key expires while they are answered."""
        timer = self._timers.pop(caller.digest, None)
        if timer is not None:
            timer.cancel()
        if caller.expires_at is None:
            return
        left_s = caller.expires_at - self._wall()
        if left_s <= 0:
            self._send_away(caller.digest, "expired")
            return
        loop = asyncio.get_running_loop()
        self._timers[caller.digest] = loop.call_later(min(left_s, LONGEST_TIMER_S), self._watch_expiry, caller)


def _is_here(request: Request) -> bool:
    return is_this_machine(request.transport.get_extra_info("peername"))


def _is_page(request: Request) -> bool:
    """Tell whether a listed page of another site asks."""
    return getattr(request.ctx, "origin", None) is not None


def _is_same(origin: str, host: str) -> bool:
    """Tell whether an origin is that of the gateway's own pages, also behind a proxy that speaks TLS."""
    scheme, _, rest = origin.lower().partition("://")
    return scheme in ("http", "https") and rest == host.lower() and rest != ""
