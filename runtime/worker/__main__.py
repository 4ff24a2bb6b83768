"""I/O: `python -m runtime.worker`: serve one model over HTTP until TERM, alone or as one rank of a group."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import uvloop

from runtime.worker.arguments import parse
from runtime.worker.settings import Group, Settings
from schemas import exits

if TYPE_CHECKING:
    from runtime.worker.group.lead import Lead
    from runtime.worker.group.membership import End
    from runtime.worker.on_demand.hosting import E, Host, Make

logger = logging.getLogger("runtime.worker")


def main(argv: list[str] | None = None) -> int:
    """Run the worker; return the process's exit code, one of `schemas.exits`."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("sanic").setLevel(logging.WARNING)  # its start banner is no state change
    logging.getLogger("sanic.root").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # what a worker asks of its neighbours, they log themselves
    settings = parse(argv)
    # Read when numpy is loaded. Ranks share their machine's cores, and threads that wait for each other at every
    # product stand still whenever one of them has no core. Encoders have threads of their own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if settings.group is not None and settings.group.rank > 0:
        return _run(_follow(settings, settings.group))
    try:
        listener = socket.create_server((settings.host, settings.port), family=_family(settings.host), backlog=512)
    except OSError as error:
        reason = error.strerror or str(error)
        logger.log(logging.ERROR, "cannot listen on %s port %d: %s", settings.host, settings.port, reason)
        return exits.FAILED
    return _run(_serve(settings, listener))


def _run(work: Coroutine[Any, Any, tuple[int, bool]]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code, is_stuck = runner.run(work)
        if is_stuck:
            # The interpreter's own exit aborts while a thread is inside the model.
            logging.shutdown()
            os._exit(code)
        return code


async def _follow(settings: Settings, group: Group) -> tuple[int, bool]:
    """Be a rank above 0 until rank 0 ends; its thread may be inside a collective that never returns."""
    from runtime.worker.group.follower import Follower

    end = await Follower(settings, group).run()
    return end.code, True


async def _serve(settings: Settings, listener: socket.socket) -> tuple[int, bool]:
    """Serve until TERM or until generation dies; return the exit code and whether the generation thread still runs."""
    # Sanic and MLX take seconds to import: bad arguments and a taken port are told before.
    from runtime.worker.encode.engine import EncodeEngine
    from runtime.worker.engine import Engine
    from runtime.worker.http.app import build_app, build_encoding_app
    from runtime.worker.http.server import close_server, open_server
    from runtime.worker.on_demand.hosting import Always

    is_over = asyncio.Event()
    code = exits.OK
    lead: Lead | None = None

    def fail(number: int = exits.FAILED) -> None:
        nonlocal code
        if lead is not None:
            # A group that is stopped before it has formed ends the thread that waits for it.
            if not lead.is_draining:
                lead.fail(exits.RANK_FAILED, "rank 0 stopped generating")
        else:
            code = number
        is_over.set()

    def end_group(end: End) -> None:
        nonlocal code
        code = end.code
        engine.abort(f"The group of this model ended: {end.message}.")
        is_over.set()

    make = Engine if settings.kind == "chat" else EncodeEngine
    host: Host[Any]
    if settings.group is None:
        try:
            host = _open_host(settings, lambda on_end: make(settings, on_end), fail)
        except OSError as error:
            logger.log(logging.ERROR, "the node's on-demand workers cannot be joined: %s", error)
            return exits.FAILED, False
    else:
        lead = _open_lead(settings, settings.group, end_group)
        if lead is None:
            return exits.FAILED, False
        engine = Engine(settings, fail, lead.thread.load, lead.thread.make_steps, lead.report, lead.refuse)
        lead.start(engine.pulse)
        host = Always(engine)
    app = build_app(settings, host) if settings.kind == "chat" else build_encoding_app(settings, host)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, is_over.set)
    server = await open_server(app, listener)
    logger.info("listening on %s:%d for %s", *listener.getsockname()[:2], settings.name)
    host.start(_url(listener))
    await is_over.wait()
    if lead is None or lead.end is None:
        if lead is not None:
            lead.drain()
        await host.drain()
    await close_server(server)
    if lead is not None:
        await lead.close()
    logger.info("stopped")
    return code, host.is_alive or lead is not None


def _open_host(settings: Settings, make: Make[E], on_end: Callable[[int], None]) -> Host[E]:
    """Return what lends engines that `make` makes to requests; `on_end` takes an exit code. Raises OSError."""
    from runtime.worker.on_demand.hosting import Always
    from runtime.worker.on_demand.lending import OnDemand

    if settings.on_demand is None:
        return Always(make(lambda: on_end(exits.FAILED)))
    return OnDemand(settings, settings.on_demand, make, on_end)


def _open_lead(settings: Settings, group: Group, on_end: Callable[[End], None]) -> Lead | None:
    # Only a group needs ZeroMQ and its authenticator.
    from runtime.worker.group.control import ControlError
    from runtime.worker.group.lead import Lead

    try:
        return Lead(settings, group, on_end)
    except ControlError as error:
        logger.log(logging.ERROR, "%s", error)
        return None


def _url(listener: socket.socket) -> str:
    """Return where other processes of this machine reach a listener."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


if __name__ == "__main__":
    sys.exit(main())
