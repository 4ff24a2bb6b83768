"""I/O: `python -m runtime.worker`: serve one model over HTTP until TERM."""

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop

from runtime.worker.settings import Settings

TOKEN_VARIABLE = "ORCHESTRATE_WORKER_TOKEN"  # noqa: S105 - a name, not a secret

logger = logging.getLogger("runtime.worker")


def main(argv: list[str] | None = None) -> int:
    """Run the worker; return the process's exit code: 0 after a TERM, 1 when it cannot serve, 2 for bad arguments."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("sanic").setLevel(logging.WARNING)  # its start banner is no state change
    logging.getLogger("sanic.root").setLevel(logging.WARNING)
    settings = _settings(argv)
    try:
        listener = socket.create_server((settings.host, settings.port), family=_family(settings.host), backlog=512)
    except OSError as error:
        reason = error.strerror or str(error)
        logger.log(logging.ERROR, "cannot listen on %s port %d: %s", settings.host, settings.port, reason)
        return 1
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code, is_stuck = runner.run(_serve(settings, listener))
        if is_stuck:
            # The interpreter's own exit aborts while a thread is inside the model.
            logging.shutdown()
            os._exit(code)
        return code


async def _serve(settings: Settings, listener: socket.socket) -> tuple[int, bool]:
    """Serve until TERM or until generation dies; return the exit code and whether the generation thread still runs."""
    # Sanic and MLX take seconds to import: bad arguments and a taken port are told before.
    from runtime.worker.engine import Engine
    from runtime.worker.http import build_app, close_server, open_server

    is_over = asyncio.Event()
    has_failed = False

    def fail() -> None:
        nonlocal has_failed
        has_failed = True
        is_over.set()

    engine = Engine(settings, fail)
    app = build_app(settings, engine)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, is_over.set)
    server = await open_server(app, listener)
    logger.info("listening on %s:%d for %s", *listener.getsockname()[:2], settings.name)
    engine.start()
    await is_over.wait()
    await engine.drain()
    await close_server(server)
    logger.info("stopped")
    return (1 if has_failed else 0), engine.is_alive


def _settings(argv: list[str] | None) -> Settings:
    parser = argparse.ArgumentParser(prog="python -m runtime.worker", description="Serve one model on MLX.")
    parser.add_argument("--model-dir", type=Path, required=True, help="an MLX model directory; nothing is downloaded")
    parser.add_argument("--name", required=True, help="the model's name for clients")
    parser.add_argument("--host", default="127.0.0.1", help=f"other than loopback needs {TOKEN_VARIABLE} to be set")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one and logs it")
    parser.add_argument("--max-batch", type=_positive, default=8, help="requests computed together (default 8)")
    parser.add_argument("--max-waiting", type=_count, default=64, help="further requests that wait (default 64)")
    parser.add_argument("--max-context", type=_positive, help="lower the model's context length, in tokens")
    parser.add_argument("--drain-s", type=_seconds, default=10.0, help="time for requests under way after TERM")
    arguments = parser.parse_args(argv)
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not _is_loopback(arguments.host):
        parser.error(f"--host {arguments.host} is not loopback: set {TOKEN_VARIABLE}")
    return Settings(
        model_dir=str(arguments.model_dir),
        name=arguments.name,
        host=arguments.host,
        port=arguments.port,
        token=token,
        max_batch=arguments.max_batch,
        max_waiting=arguments.max_waiting,
        max_context=arguments.max_context,
        drain_s=arguments.drain_s,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _positive(text: str) -> int:
    return _at_least(1, text)


def _count(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 86400:
        raise argparse.ArgumentTypeError("must be between 0 and 86400")
    return number


if __name__ == "__main__":
    sys.exit(main())
