"""Pure: what does not work, with reasons: as the model of the tests is small, or as a client or backend is.

Kept apart from what the API must do. An entry is a client, a feature of its program, and the backends that it is for;
it is strict: a feature that works after all fails the run until its entry is taken out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """Something that does not work, and why."""

    client: str
    feature: str
    reason: str
    backends: Collection[str] = ("our worker", "llama.cpp", "mlx_lm.server")


_CHAT = "LangChain: ChatOpenAI"
_OTHER_NUMBER = "the call is there; the small model gives the function another number than the one it was told"
_ENDLESS = "the small model begins a text in the JSON that it never ends; the client is told that the limit cut it off"
_NO_CALL = "the small model may call the function and does not"

KNOWN = (
    Known(_CHAT, "test_tool_calling[model0]", _OTHER_NUMBER),
    Known(_CHAT, "test_tool_calling[model1]", _OTHER_NUMBER),
    Known(_CHAT, "test_tool_calling_async", _OTHER_NUMBER),
    Known(_CHAT, "test_structured_output_pydantic_2_v1", _ENDLESS),
    Known(_CHAT, "test_structured_output_optional_param", _ENDLESS),
    Known(_CHAT, "test_json_mode", _ENDLESS),
    Known(_CHAT, "test_unicode_tool_call_integration", _ENDLESS),
    Known(_CHAT, "test_agent_loop[model0]", _NO_CALL),
    Known(_CHAT, "test_agent_loop[model1]", _NO_CALL),
)


def reason_of(client: str, feature: str, backend: str) -> str | None:
    """Return why a feature is known not to work; None where it must."""
    found = (
        each.reason for each in KNOWN if (each.client, each.feature) == (client, feature) and backend in each.backends
    )
    return next(found, None)
