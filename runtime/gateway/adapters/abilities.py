"""Pure: what the OpenAI paths of each engine really do with the parameters that not all of them know.

`own` is done by the engine itself. Whatever else stands here is done by the gateway, because the engine would pass the
parameter over in silence or answer with an error of the server; what nobody can do is refused by name. An engine that
is not known is left to itself: its parameters are nobody's guess.

Read in: our worker (`runtime/worker/request.py`); llama.cpp `tools/server/server-common.cpp` (`oaicompat_*_parse`) and
`server-task.cpp` (`params_from_json_cmpl`); vllm `entrypoints/openai/*/protocol.py`; ollama 0.33 `openai/openai.go`
(`ChatCompletionRequest`, `CompletionRequest`, `FromChatRequest`) and `middleware/openai.go`; mlx-lm 0.32 `server.py`;
LM Studio's pages "Chat Completions", "Structured Output", "Tool Use" and "API Changelog" of lmstudio.ai/docs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from runtime.gateway.facts.programs import program_of

NOTHING: Mapping[str, tuple[object, ...]] = {}


@dataclass(frozen=True, slots=True)
class Abilities:
    """How one engine is asked for what not all of them can do."""

    name: str
    """What messages call it."""
    choices: Literal["own", "fan-out"] = "own"
    """`n`: in as many requests as answers are wanted."""
    prompts: Literal["own", "fan-out"] = "own"
    """Several texts in the `prompt` of a text completion: in one request each."""
    tokens: Literal["own", "refused"] = "own"
    """Token numbers as the `prompt` of a text completion."""
    form: Literal["own", "asked"] = "own"
    """`response_format` with a JSON Schema: asked for in words, and checked."""
    any_object: Literal["own", "asked", "by schema"] = "own"
    """`response_format` of type `json_object`."""
    text_form: Literal["own", "json_schema", "refused"] = "own"
    """`response_format` of a text completion: in a parameter of that name, or not at all."""
    must_call: Literal["own", "narrowed", "by schema", "asked"] = "own"
    """`tool_choice` that demands a call. `narrowed`: `required` is its own, one that names a function gets no other
    function; `by schema`: the answer is held to the form of a call and made one."""
    no_call: Literal["own", "without tools"] = "own"
    """`tool_choice: none`: it is told of no tools."""
    one_call: Literal["own", "cut"] = "own"
    """`parallel_tool_calls: false`: all calls but the first are cut off."""
    logprobs_beside_tools: Literal["own", "not streamed"] = "own"
    """Log probabilities of answers that may be calls, in streams."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Parameters that it knows by another name."""
    ignored: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Parameters that it passes over or breaks at, with the values for which that makes no difference."""
    effort: Literal["own", "template", "both"] = "own"
    """`reasoning_effort`: told to the chat template as `enable_thinking`, false for `none`; `both` where it is its own
    as well. Templates that know neither pass over them."""
    prefill: Literal["own", "by itself", "refused"] = "own"
    """An answer whose beginning is the last message (`continue_final_message`)."""
    continues: bool = False
    """Whether it goes on with such an answer exactly where it ends, whatever the model, and streams only what is new.
    Ollama does so with some templates. Nobody knows it of an engine that nobody knows."""


OWN = Abilities("openai")
"""All is left to it."""

# Neither is in its structures of a request; encoding/json passes over what it does not know.
_OLLAMA: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"], []),
    "audio": (),
    "web_search_options": (),
    "echo": (False,),
}

_TABLE: Mapping[str, Abilities] = {
    "worker": Abilities("worker", prompts="fan-out", continues=True),
    # `json_value` takes a `tool_choice` that is no text for `auto`. `n` was an error of the server until it could be as
    # large as there are slots; so are `best_of`, `suffix` and `echo`, and log probabilities of streams with tools.
    "llama.cpp": Abilities(
        "llama-server",
        text_form="json_schema",
        effort="template",
        prefill="by itself",
        continues=True,
        choices="fan-out",
        prompts="fan-out",
        must_call="narrowed",
        logprobs_beside_tools="not streamed",
        renamed={"repetition_penalty": "repeat_penalty", "max_completion_tokens": "max_tokens"},
        ignored={"best_of": (1,), "suffix": ("",), "echo": (False,), "functions": ([],), "function_call": ("none",)},
    ),
    # Everything is in its protocol but `best_of`, which its present engine dropped, and the names before `tools`.
    "vllm": Abilities(
        "vllm",
        effort="both",
        continues=True,
        ignored={"best_of": (1,), "functions": ([],), "function_call": ("none", "auto")},
    ),
    "ollama": Abilities(
        "ollama",
        text_form="refused",
        prefill="by itself",
        choices="fan-out",
        prompts="fan-out",
        tokens="refused",
        must_call="by schema",
        no_call="without tools",
        one_call="cut",
        renamed={"max_completion_tokens": "max_tokens"},
        ignored=_OLLAMA,
    ),
    # `tool_choice` is a text there, and `json_object` is an error: only `json_schema` and `text` are known.
    "lm studio": Abilities(
        "lm-studio",
        text_form="refused",
        prefill="refused",
        choices="fan-out",
        prompts="fan-out",
        tokens="refused",
        any_object="by schema",
        must_call="narrowed",
        one_call="cut",
        logprobs_beside_tools="not streamed",
        renamed={"repetition_penalty": "repeat_penalty", "max_completion_tokens": "max_tokens"},
        ignored={"best_of": (1,), "functions": ([],), "function_call": ("none", "auto")},
    ),
    # What else it ignores, or dies of, is refused by `mlx_lm_server`, which sees every request.
    "mlx_lm.server": Abilities(
        "mlx-lm-server",
        text_form="refused",
        effort="template",
        prefill="refused",
        choices="fan-out",
        prompts="fan-out",
        tokens="refused",
        form="asked",
        any_object="asked",
        must_call="asked",
        no_call="without tools",
        one_call="cut",
    ),
}


def abilities_of(engine: str, seen: str = "") -> Abilities:
    """Return what an endpoint can do; `seen` is the program that was recognised there, where the files name none."""
    return _TABLE.get(program_of(engine, seen), OWN)
