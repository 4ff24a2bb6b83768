"""Pure: refusals of values that are good by themselves and do not go together, which JSON Schema cannot say.

Needs the standard library only: the environment of schemathesis reads it too.
"""

from __future__ import annotations

import re

_RELATIONS = re.compile(
    "|".join(
        (
            r"'stream_options' is for streams only",
            r"'max_tokens' says something else than 'max_completion_tokens'",
            r"'top_logprobs' is for 'logprobs' only",
            r"'tool_choice[a-z.]*' must (not be 'required'|name one of the tools|be the name of one of the tools)",
            r"'tool_choice' asks for a call, but there are no tools",
            r"'tool_choice\.tools\[\d+\]' must name one of the tools",
            r"'messages' ends with a 'tool_use' block",
            r"'input' must have at least one message",
            r"'system' cannot be said with 'raw'",
            r"'images' is not supported: a text that is gone on with has none",
            r"'dimensions' is \d+, and the vectors of",
        )
    )
)


def is_relation(message: str) -> bool:
    """Tell whether an error's text is about values that do not go together."""
    return _RELATIONS.search(message) is not None
