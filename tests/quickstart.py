"""Pure: the shipped quickstart stack as most tests need it."""

from __future__ import annotations

import re


def without_encoder(text: str) -> str:
    """Return the quickstart stack with its chat model only: most tests need no other, and would have to fetch it."""
    text = text.replace(", all-minilm-l6-v2]", "]")
    for name in ("embed", "embedding"):
        text = re.sub(rf"^  {name}:\n(?:(?:    |  reranking:).*\n)+", "", text, count=1, flags=re.MULTILINE)
    assert "embed" not in text.partition("defaults:")[2], text
    return text
