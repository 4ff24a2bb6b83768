"""Pure: what does not work or is not tried, with reasons: as the model is small, or as a client or backend is.

Kept apart from what the API must do. An entry is a client, a feature of its program, and the backends that it is for;
it is strict: a feature that works after all fails the run until its entry is taken out, and so does a test that is to
be left out and is not there.
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
_OLLAMA = "LangChain: ChatOllama"
_OTHER_NUMBER = "the call is there; the small model gives the function another number than the one it was told"
_ENDLESS = "the small model begins a text in the JSON that it never ends; the client is told that the limit cut it off"
_NO_CALL = "the small model may call the function and does not"
_NEVER_FORCED = "the small model may call the function and does not; Ollama's API cannot ask for a call"
"""What llama-server is sent was read: the functions are there, told in words as its template knows none. The model says
`The value of magic_function(3) is 3.` instead of calling it."""
_ONE_IS_ENOUGH = (
    "left out on a worker without a GPU, where it takes long; another of its kind is run, and all of them on llama.cpp"
)

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
    Known(_CHAT, "test_structured_output[json_schema]", _ENDLESS, ("our worker",)),
    Known(_OLLAMA, "test_tool_calling[model0]", _NEVER_FORCED),
    Known(_OLLAMA, "test_tool_calling[model1]", _NEVER_FORCED),
    Known(_OLLAMA, "test_tool_calling_async", _NEVER_FORCED),
    Known(_OLLAMA, "test_bind_runnables_as_tools", _NEVER_FORCED),
    Known(_OLLAMA, "test_tool_calling_with_no_arguments", _NEVER_FORCED),
    Known(_OLLAMA, "test_json_mode", _ENDLESS),
    Known(_OLLAMA, "test_agent_loop[model0]", _NEVER_FORCED),
    Known(_OLLAMA, "test_agent_loop[model1]", _NEVER_FORCED),
    Known(_OLLAMA, "test_unicode_tool_call_integration", _NEVER_FORCED),
)

_LONG_TESTS = (
    "test_tool_calling",
    "test_tool_calling_async",
    "test_bind_runnables_as_tools",
    "test_tool_message_histories_list_content",
    "test_tool_calling_with_no_arguments",
    "test_tool_message_error_status",
    "test_structured_few_shot_examples",
    "test_structured_output[pydantic]",
    "test_structured_output[typeddict]",
    "test_structured_output_async",
    "test_structured_output_pydantic_2_v1",
    "test_structured_output_optional_param",
    "test_json_mode",
    "test_agent_loop",
    "test_unicode_tool_call_integration",
)
LEFT_OUT = tuple(
    Known(client, name, _ONE_IS_ENOUGH, ("our worker",)) for client in (_CHAT, _OLLAMA) for name in _LONG_TESTS
)
"""Tests of others that are not run, by their name or by that of one of their cases."""


def left_out(client: str, backend: str) -> dict[str, str]:
    """Return the reasons by the names of the tests that are not run."""
    return {each.feature: each.reason for each in LEFT_OUT if each.client == client and backend in each.backends}


def reason_of(client: str, feature: str, backend: str) -> str | None:
    """Return why a feature is known not to work; None where it must."""
    found = (
        each.reason for each in KNOWN if (each.client, each.feature) == (client, feature) and backend in each.backends
    )
    return next(found, None)
