"""I/O: `python -m runtime.worker.reference`: what one process answers to the canary's prompts, as JSON lines.

It computes with mlx-lm's model alone, token by token: nothing of the batch, the prompt cache or the group is in it.
The last line of stdout is a `schemas.canary.Reference`, those before it tell how far it is. When its stdin ends it ends
too: who asked for it is gone.
"""

import argparse
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from runtime.worker import status
from runtime.worker.group.identity import fingerprint
from runtime.worker.model import LoadedModel, load
from schemas.canary import (
    ANSWER_TOKENS,
    LONG_PROMPT,
    MOST_NEAR,
    PROMPTS_VERSION,
    SHORT_PROMPTS,
    TIE,
    Reference,
    ReferenceAnswer,
    ReferenceProgress,
    ReferenceToken,
    long_text,
)

READ_BYTES = 1 << 22
STEP_TOKENS = 64
"""Prompt tokens computed at once: little enough to tell how far it is also where ten tokens take a second."""

Progress = Callable[[str, int, int, str], None]
"""Takes what is done now, how much of it is done, of how much, and the unit."""


def refer(directory: Path, long_tokens: int, max_context: int | None, progress: Progress) -> Reference:
    """Answer the canary's prompts; the long one has `long_tokens`, or what the context holds.

    Raises OSError and what mlx-lm raises.
    """
    files = {path.name: _digest(path, progress) for path in sorted(directory.glob("*.safetensors"))}
    model = load(directory, max_context, lambda share: progress("load", round(100 * share), 100, "percent"))
    room = model.limits.context_length - ANSWER_TOKENS
    prompts = dict(_prompts(model.tokenizer, min(long_tokens, room)))
    total = sum(len(prompt) for prompt in prompts.values())
    done = 0

    def computed(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress("answer", done, total, "tokens")

    answers = tuple(_answer(model, name, prompt, computed) for name, prompt in prompts.items())
    return Reference(prompts_version=PROMPTS_VERSION, versions=status.versions(), files=files, answers=answers)


def _prompts(tokenizer: Any, long_tokens: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, text in SHORT_PROMPTS.items():
        yield name, tuple(tokenizer.encode(text))
    begin = tuple(tokenizer.encode(""))  # what every text begins with, such as a token for its beginning
    words = long_tokens
    while len(tokens := tuple(tokenizer.encode(long_text(words)))) < long_tokens:
        words *= 2
    yield LONG_PROMPT, (*begin, *tokens[len(tokens) - long_tokens + len(begin) :])


def _answer(model: LoadedModel, name: str, prompt: tuple[int, ...], computed: Callable[[int], None]) -> ReferenceAnswer:
    from mlx_lm.models.cache import make_prompt_cache

    cache: Any = make_prompt_cache(model.module)
    if not prompt:
        raise ValueError(f"the prompt {name} has no tokens")
    for first in range(0, len(prompt) - 1, STEP_TOKENS):
        part = prompt[first : min(first + STEP_TOKENS, len(prompt) - 1)]
        # The logits of these are never computed: nobody reads them.
        model.module(mx.array([part]), cache=cache)
        mx.eval([layer.state for layer in cache])
        computed(len(part))
    logits = _logits(model, prompt[-1], cache)
    computed(1)
    chosen: list[ReferenceToken] = []
    detokenizer = model.new_detokenizer()
    text = ""
    while True:
        token, near, margin = _judged(logits)
        has_ended = token in model.end_tokens
        text += "" if has_ended else detokenizer.push(token)
        chosen.append(ReferenceToken(token=token, near=near, margin=round(margin, 4), text=text))
        if has_ended or len(chosen) == ANSWER_TOKENS:
            return ReferenceAnswer(name=name, prompt=prompt, tokens=tuple(chosen), ended=has_ended)
        logits = _logits(model, token, cache)


def _logits(model: LoadedModel, token: int, cache: Any) -> mx.array:
    """Compute a token; return the logits behind it."""
    logits: mx.array = model.module(mx.array([[token]]), cache=cache)[0, -1].astype(mx.float32)
    mx.eval(logits, [layer.state for layer in cache])
    return logits


def _judged(logits: mx.array) -> tuple[int, tuple[int, ...], float]:
    """Return the most probable token, those that come close to it, and the distance to the next one."""
    order: Any = mx.argsort(-logits)[: MOST_NEAR + 1]
    values: Any = logits[order].tolist()
    tokens: list[int] = order.tolist()
    near = tuple(token for token, value in zip(tokens, values, strict=True) if values[0] - value < TIE)
    return tokens[0], near if len(near) <= MOST_NEAR else (), values[0] - values[1]


def _digest(path: Path, progress: Progress) -> str:
    state, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            state.update(block)
            done += len(block)
            progress("verify", done, total, "bytes")
    return state.hexdigest()


def _end_with_stdin() -> None:
    """End the process when whoever started it is gone; a model call does not look at signals either."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(argv: list[str] | None = None) -> int:
    """Print the reference of a model directory, or with `--fingerprint` what it is known by."""
    parser = argparse.ArgumentParser(prog="python -m runtime.worker.reference")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--long-tokens", type=int, default=0)
    parser.add_argument("--max-context", type=int)
    parser.add_argument("--fingerprint", action="store_true", help="print a digest of the model's files, read cheaply")
    options = parser.parse_args(argv)
    if options.fingerprint:
        _say(fingerprint(options.model_dir))
        return 0
    _end_with_stdin()
    told: dict[str, int] = {}

    def progress(phase: str, done: int, total: int, unit: str) -> None:
        percent = 100 * done // max(total, 1)
        if told.get(phase) != percent:
            told[phase] = percent
            _say(ReferenceProgress(phase=phase, done=done, total=total, unit=unit).model_dump_json())

    _say(refer(options.model_dir, options.long_tokens, options.max_context, progress).model_dump_json())
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
