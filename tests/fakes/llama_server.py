"""I/O: llama.cpp's own HTTP server behind the options of its program `llama-server`, for machines without that.

The server is the one that is compiled into the Python package `xllamacpp`; only the reading of the command line is
ours. An option that is not here ends it, as one that llama.cpp does not know ends the real program.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("llama-server", allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-a", "--alias", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--api-key", default=os.environ.get("LLAMA_API_KEY", ""))
    parser.add_argument("-np", "--parallel", type=int, default=1)
    parser.add_argument("-c", "--ctx-size", type=int, default=0)
    parser.add_argument("-t", "--threads", type=int, default=-1)
    parser.add_argument("--kv-unified", action="store_true")
    parser.add_argument("--embeddings", "--embedding", action="store_true")
    parser.add_argument("--pooling", choices=("none", "mean", "cls", "last"))
    parser.add_argument("--no-cache-prompt", action="store_true")
    parser.add_argument("--jinja", action="store_true")
    parser.add_argument("--no-webui", action="store_true")
    return parser.parse_args(arguments)


def main() -> None:
    asked = parse(sys.argv[1:])
    import xllamacpp

    params: Any = xllamacpp.CommonParams()
    params.model.path = asked.model
    params.hostnames = [asked.host]
    params.port = asked.port
    params.api_keys = [asked.api_key] if asked.api_key else []
    params.model_alias = {asked.alias} if asked.alias else set()
    params.n_parallel = asked.parallel
    params.n_ctx = asked.ctx_size
    params.kv_unified = asked.kv_unified
    params.embedding = asked.embeddings
    if asked.pooling:
        params.pooling_type = xllamacpp.llama_pooling_type(("none", "mean", "cls", "last").index(asked.pooling))
    if asked.no_cache_prompt:
        params.cache_prompt, params.cache_ram_mib = False, 0
    params.use_jinja = True
    params.ui = not asked.no_webui
    if asked.threads > 0:
        params.cpuparams.n_threads = asked.threads
    server = xllamacpp.Server(params)
    sys.stdout.write(f"listening on {server.listening_address}\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        signal.pause()
