"""I/O: `python -m runtime.gateway`: serve a stack."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
from pathlib import Path

import uvloop

WORKER_TOKEN = "ORCHESTRATE_WORKER_TOKEN"  # noqa: S105 - the variable's name
ADMIN_TOKEN = "ORCHESTRATE_ADMIN_TOKEN"  # noqa: S105 - the variable's name
COLLECT_AT = (5_000, 20, 20)
"""When Python looks for objects that hold each other. Requests leave none behind, and Python's own 700 are those of a
few requests at once: a tenth of a request's time was spent on looking at what was in use."""
STARTING_COLLECT_AT = 150_000
"""The same for the start, which makes modules and classes and throws little away; looking was a twelfth of it."""
FOLLOW_AFTER_S = 0.2
"""How long after it listens the gateway begins to follow files: whoever waited for it is answered first."""
SWITCH_S = 0.0005
"""How long a thread that reads files or writes the history may keep the event loop waiting; Python's own is 5 ms."""


def main(argv: list[str] | None = None) -> int:
    """Run the gateway until it is told to end; return 0 after draining, or 1 when it cannot or may not listen."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for name in ("sanic.root", "sanic.server", "sanic.access", "sanic.error", "watchfiles"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.gateway", description="Serve a stack over HTTP.")
    parser.add_argument("--conf", type=Path, required=True, help="configuration directory")
    parser.add_argument("--stack", required=True, help="name of the stack")
    parser.add_argument("--routes", type=Path, required=True, help="routes.json, written by the orchestrator")
    parser.add_argument("--keys", type=Path, help="keys file, where it is not the one below --conf")
    parser.add_argument("--bind", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--drain-s", type=float, default=30.0, help="seconds for requests in flight when told to end")
    return parser


async def _run(arguments: argparse.Namespace) -> int:
    gc.set_threshold(STARTING_COLLECT_AT, *COLLECT_AT[1:])
    from runtime.gateway.assembly import assemble
    from runtime.gateway.reload import Sources, compose_stack
    from runtime.gateway.server import listen, serve

    log = logging.getLogger("runtime.gateway")
    sources = Sources(
        arguments.conf.absolute(),
        arguments.stack,
        arguments.routes.absolute(),
        os.environ.get(WORKER_TOKEN, "").strip() or None,
        bind=arguments.bind,
        keys=arguments.keys.absolute() if arguments.keys is not None else None,
        admin_token=os.environ.get(ADMIN_TOKEN, "").strip() or None,
        # Beside the routes, in a folder of its own: theirs is watched.
        history=arguments.routes.absolute().parent / "gateway" / "history.sqlite3",
    )
    gateway = assemble(sources, compose_stack)
    reloader, live = gateway.services.reloader, gateway.services.live
    # Before listening: beside an old process, a new one must not answer before it knows its routes.
    await reloader.reload()
    # The modules and the table stay: the collector need not walk through them, which takes tens of milliseconds.
    gc.freeze()
    gc.set_threshold(*COLLECT_AT)
    sys.setswitchinterval(SWITCH_S)
    if not gateway.services.guard.may_listen:
        problems = "; ".join(str(problem) for problem in live.problems)
        log.critical("not listening: address=%s may be called by other machines: %s", arguments.bind, problems)
        return 1
    try:
        sock = listen(arguments.bind, arguments.port)
    except OSError as error:
        log.critical("cannot listen: address=%s port=%d reason=%s", arguments.bind, arguments.port, error.strerror)
        return 1
    address, port = sock.getsockname()[:2]
    is_listening = asyncio.Event()

    def note_listening() -> None:
        log.info("listening: address=%s port=%d stack=%s", address, port, live.stack)
        is_listening.set()

    async def follow() -> None:
        await is_listening.wait()
        await asyncio.sleep(FOLLOW_AFTER_S)
        # Files that changed since they were read are read again at once.
        await reloader.run()

    following = asyncio.create_task(follow())
    try:
        await serve(gateway.app, sock, live, arguments.drain_s, note_listening)
    finally:
        following.cancel()
        await asyncio.wait([following])
        gateway.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
