"""Pure: prompts that are longer than an endpoint can read, as far as that is certain without its tokenizer.

Some servers, Ollama among them, cut a prompt that is too long without a word, so that nobody learns it from an answer.
Every word is at least one token: the tokenizers of models split a text at blanks before they look for tokens. English
has some 1.3 tokens a word, so little is missed; in scripts without blanks nothing is certain, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from runtime.gateway.attempt import Ask
from runtime.gateway.facts.known import Facts
from runtime.gateway.routing.table import Route, Target


def least_tokens(document: Mapping[str, Any]) -> int:
    """Return how many tokens a request's prompt has at least."""
    messages = document.get("messages")
    if isinstance(messages, list):
        return sum(_words(message.get("content")) for message in messages if isinstance(message, dict))
    return _words(document.get("prompt"))


def route_for(ask: Ask, route: Route, facts_of: Callable[[Target], Facts]) -> Route:
    """Return the first role, from a route on along those that read more, of which not all are known to read too little.

    A role without a `context_fallback` is returned as it is: its endpoints say themselves what they refuse.
    """
    least: int | None = None
    while route.context is not None:
        lengths = [facts_of(target).context_length for rung in route.rungs() for target in rung.targets()]
        known = [length for length in lengths if length is not None]
        # A word and its blank are two bytes: most requests are seen to be short without being read.
        if not known or len(known) < len(lengths) or len(ask.body.raw) < 2 * max(known):
            return route
        least = least_tokens(ask.body.document) if least is None else least
        if least <= max(known):
            return route
        route = route.context
    return route


def _words(content: object) -> int:
    if isinstance(content, str):
        return len(content.split())
    if isinstance(content, list):
        if content and all(type(part) is int for part in content):
            return len(content)
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return sum(len(text.split()) for text in texts if isinstance(text, str))
    return 0
