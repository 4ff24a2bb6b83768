"""Pure: what becomes of a request whose endpoint cannot do all of it: it is put differently, put together, or refused.

What the gateway does in the endpoint's place is named in the receipt and in the header `x-orchestrate-emulated`. The
endpoints of a role keep their order: one that can do it by itself is not preferred to one that comes before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from runtime.gateway.adapters.abilities import Abilities
from runtime.gateway.adapters.emulation.forms import Form, call_of, maybe_call_of, spoken, told, value_of
from runtime.gateway.adapters.emulation.gathering import Gathering, rewritten, unwritten
from runtime.gateway.adapters.refusals import refused
from runtime.gateway.attempt import Ask
from runtime.gateway.bodies import Body, is_tokens
from runtime.gateway.errors import ApiError

MOST_ANSWERS = 16
"""Requests that one may become: as many answers as our worker gives to one prompt."""

_DEMANDS = frozenset(
    {
        *("audio", "best_of", "echo", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens"),
        *("add_generation_prompt", "continue_final_message", "min_p", "modalities", "n", "parallel_tool_calls"),
        *("reasoning_effort", "repetition_penalty", "response_format", "suffix", "tool_choice", "tools"),
        *("top_k", "top_logprobs", "web_search_options"),
    }
)
_IMAGE = b'"image'
"""How the types of parts that are images begin in a body."""


def has_demands(body: Body) -> bool:
    """Tell whether a request asks for anything that some engine or model cannot do. Most need no second look."""
    document = body.document
    return not _DEMANDS.isdisjoint(document) or type(document.get("prompt")) is list or _IMAGE in body.raw


def planned(
    ask: Ask,
    able: Abilities,
    *,
    make: Callable[[Ask], Ask],
    has_eyes: bool | None = None,
    has_tools: bool | None = None,
) -> Ask:
    """Return a request for text as an endpoint may have it, in words of OpenAI and then in those of its engine.

    `has_eyes` says whether its model can see and `has_tools` whether it is told of tools, None where nobody knows.
    `make` puts a request in the engine's words.
    Raises `ApiError` with status 400, which names the parameter, for what cannot be done.
    """
    return _Plan(ask, able, make).made(has_eyes, has_tools)


class _Plan:
    """One request on its way to an engine."""

    def __init__(self, ask: Ask, able: Abilities, make: Callable[[Ask], Ask]) -> None:
        self._ask = ask
        self._able = able
        self._make = make
        self._document = {key: value for key, value in ask.body.document.items() if value is not None}
        self._is_chat = ask.path.endswith("/chat/completions")
        self._names: list[str] = []
        """The parameters that the gateway sees to."""
        self._form: Form | None = None
        self._must_gather = self._is_one_call = False
        """`_is_one_call`: calls behind the first one are cut off, while the answer is streamed where nothing else is
        to be done to it."""

    def made(self, has_eyes: bool | None, has_tools: bool | None) -> Ask:
        before = dict(self._document)
        if self._is_chat:
            if has_eyes is False:
                self._refuse_images()
            self._see_to_thoughts()
            if has_tools is False and self._document.get("tools"):
                self._speak_of_tools()
            self._see_to_tools()
        self._see_to_words()
        if self._is_chat:
            self._see_to_form()
            self._see_to_logprobs()
        else:
            self._see_to_text_form()
        prompts = self._prompts()
        count = self._count(len(prompts))
        is_cut_whole = self._is_one_call and not self._ask.body.is_stream
        if count * len(prompts) > 1 or self._form is not None or self._must_gather or is_cut_whole:
            return self._gathered(count, prompts)
        if self._document == before:
            return self._make(self._ask)
        made = self._make(rewritten(self._ask, self._document))
        return replace(made, is_one_call=self._is_one_call, emulated=tuple(sorted(self._names)))

    def _refused(self, param: str, message: str, code: str = "unsupported_parameter") -> ApiError:
        return refused(self._able.name, param, message, code)

    def _refuse_images(self) -> None:
        for index, message in enumerate(self._document["messages"]):
            content = message.get("content")
            for place, part in enumerate(content if isinstance(content, list) else ()):
                if isinstance(part, dict) and part.get("type") in ("image_url", "image", "input_image"):
                    where = f"messages[{index}].content[{place}]"
                    raise self._refused(where, "is an image, and the model there cannot see")

    def _see_to_thoughts(self) -> None:
        """Say how much is to be thought, and that the last message is continued, in the engine's words."""
        effort, how = self._document.get("reasoning_effort"), self._able.effort
        if effort is not None and how != "own":
            said = self._document.get("chat_template_kwargs")
            is_wanted = {"enable_thinking": effort != "none"}
            self._document["chat_template_kwargs"] = {**is_wanted, **(said if isinstance(said, dict) else {})}
            if how == "template" or effort == "none":
                del self._document["reasoning_effort"]
        if self._ask.is_rest and not self._able.continues and self._document.get("continue_final_message") is True:
            raise self._refused("messages", "cannot end with the beginning of another endpoint's answer")
        if self._able.prefill == "own":
            return
        is_prefilled = self._document.pop("continue_final_message", False) is True
        self._document.pop("add_generation_prompt", None)
        if is_prefilled and self._able.prefill == "refused":
            raise self._refused("messages", "cannot end with the beginning of the answer")

    def _see_to_words(self) -> None:
        """Take care of parameters that the engine does not know, or knows by another name."""
        for old, new in self._able.renamed.items():
            if old in self._document:
                self._document[new] = self._document.pop(old)
        wanted = self._document.get("n", 1)
        for key, harmless in self._able.ignored.items():
            if key not in self._document:
                continue
            value = self._document.pop(key)
            if not any(value == each and type(value) is type(each) for each in harmless) and not (
                key == "best_of" and value == wanted
            ):
                raise self._refused(key, "is not supported; `drop_params` of the helper leaves it out")

    def _speak_of_tools(self) -> None:
        """Let the model know of tools by words: its template would leave them out in silence."""
        self._able = replace(self._able, must_call="by schema" if self._able.form == "own" else "asked")
        self._document["messages"] = spoken(self._document["messages"])
        if self._document.get("tool_choice", "auto") != "auto":
            return
        if (self._document.get("response_format") or {}).get("type", "text") != "text":
            raise self._refused("tools", "are not known to the model there, and cannot be told of beside a form")
        self._form = maybe_call_of(_functions(self._document["tools"], self._refused))
        for key in ("tools", "tool_choice", "parallel_tool_calls"):
            self._document.pop(key, None)
        self._names.append("tools")

    def _see_to_tools(self) -> None:
        tools, choice = self._document.get("tools") or [], self._document.get("tool_choice", "auto")
        match choice:
            case "auto":
                if self._able.must_call in ("by schema", "asked"):
                    self._document.pop("tool_choice", None)
            case "none":
                if self._able.no_call != "own":
                    for key in ("tools", "tool_choice", "parallel_tool_calls"):
                        self._document.pop(key, None)
                    self._names.append("tool_choice")
                    return
            case "required":
                self._see_to_call(tools)
            case {"type": "function", "function": {"name": str(name)}}:
                self._see_to_call([tool for tool in tools if _function(tool).get("name") == name], is_named=True)
            case _:
                if self._able.must_call != "own":
                    message = "must be auto, none, required or name a function"
                    raise self._refused("tool_choice", message, "invalid_value")
        if self._able.one_call == "cut" and self._document.pop("parallel_tool_calls", True) is False and tools:
            self._is_one_call = True
            if self._form is None:
                self._names.append("parallel_tool_calls")

    def _see_to_call(self, tools: Sequence[Any], *, is_named: bool = False) -> None:
        """Let the answer be a call of one of these tools."""
        how = self._able.must_call
        if how == "own" or (how == "narrowed" and not is_named):
            return
        if not tools:
            message = "names a function that is none of the tools" if is_named else "asks for a call, without any tools"
            raise self._refused("tool_choice", message, "invalid_value")
        self._names.append("tool_choice")
        if how == "narrowed":
            self._document |= {"tools": list(tools), "tool_choice": "required"}
            return
        self._form = call_of(_functions(tools, self._refused))
        # What is said of the form of the answer is of no account: there is none but the call.
        for key in ("tools", "tool_choice", "response_format"):
            self._document.pop(key, None)
        if how == "by schema":
            self._document["response_format"] = _format("call", self._form.schema)

    def _see_to_form(self) -> None:
        wanted = self._document.get("response_format")
        if wanted is None or self._form is not None:
            return
        match wanted:
            case {"type": "json_schema", "json_schema": {"schema": dict(schema)}} if self._able.form == "asked":
                self._ask_for(schema)
            case {"type": "json_object"} if self._able.any_object == "asked":
                self._ask_for({"type": "object"})
            case {"type": "json_object"} if self._able.any_object == "by schema":
                self._document["response_format"] = _format("object", {"type": "object"})
                self._names.append("response_format")
            case {"type": "json_schema"} if self._able.form == "asked":
                message = "must be a JSON Schema, which is an object"
                raise self._refused("response_format.json_schema.schema", message, "invalid_value")
            case _:
                return

    def _see_to_text_form(self) -> None:
        wanted, how = self._document.get("response_format"), self._able.text_form
        if how == "own" or wanted is None:
            return
        del self._document["response_format"]
        match wanted:
            case {"type": "text"}:
                return
            case {"type": "json_schema", "json_schema": {"schema": dict(schema)}} if how == "json_schema":
                self._document["json_schema"] = schema
            case {"type": "json_object"} if how == "json_schema":
                self._document["json_schema"] = {"type": "object"}
            case _:
                raise self._refused("response_format", "is not supported for text completions")

    def _ask_for(self, schema: Mapping[str, Any]) -> None:
        del self._document["response_format"]
        self._form = value_of(schema)
        self._names.append("response_format")

    def _see_to_logprobs(self) -> None:
        is_late = self._able.logprobs_beside_tools != "own" and self._ask.body.is_stream
        if is_late and self._document.get("logprobs") is True and self._document.get("tools"):
            self._must_gather = True
            self._names.append("logprobs")

    def _count(self, prompts: int) -> int:
        """Return how many answers the gateway has to ask for, to each prompt."""
        if self._able.choices == "own" and prompts == 1:
            return 1
        count = int(self._document.pop("n", 1))
        if count > 1:
            self._names.append("n")
        return count

    def _prompts(self) -> list[Any]:
        """Return the prompts, each of which gets requests of its own; a conversation is one."""
        prompt = self._document.get("prompt")
        if not isinstance(prompt, list):
            return [prompt]
        prompts = [prompt] if is_tokens(prompt) else prompt
        if self._able.tokens == "refused" and not all(isinstance(each, str) for each in prompts):
            raise self._refused("prompt", "must be texts: tokens are not supported")
        if self._able.prompts == "own":
            return [prompt]
        if len(prompts) > 1:
            self._names.append("prompt")
        else:
            self._document["prompt"] = prompts[0]
        return prompts

    def _gathered(self, count: int, prompts: Sequence[Any]) -> Ask:
        if count * len(prompts) > MOST_ANSWERS:
            param = "n" if count > 1 else "prompt"
            message = f"asks for more than {MOST_ANSWERS} answers at once"
            raise self._refused(param, message, "invalid_value")
        if self._form is not None:
            self._document["messages"] = told(self._document["messages"], self._form.instruction)
        plain = tuple(
            self._part(prompt, place) for place, prompt in enumerate(each for each in prompts for _ in range(count))
        )
        # What the engine's own words refuse in one of them they refuse in all.
        self._make(replace(plain[0], body=replace(plain[0].body, raw=self._ask.body.raw)))
        gathering = Gathering(plain, self._make, len(prompts), self._form, self._is_one_call)
        return replace(self._ask, gathering=gathering, emulated=tuple(sorted(self._names)))

    def _part(self, prompt: Any, place: int) -> Ask:
        """Return a request for one answer. The endpoint is asked for a stream, so that one that is given up frees it.

        Log probabilities and ids of tokens come with whole answers only.
        """
        kept = {key: value for key, value in self._document.items() if key not in ("n", "stream", "stream_options")}
        logprobs = self._document.get("logprobs")
        is_collected = (logprobs is None or logprobs is False) and not self._document.get("return_token_ids")
        if is_collected:
            kept["stream"] = True
            if "stream_options" not in self._ask.dropped:
                kept["stream_options"] = {"include_usage": True}
        if prompt is not None:
            kept["prompt"] = prompt
        if type(kept.get("seed")) is int and place:
            kept["seed"] = kept["seed"] + place if kept["seed"] < 0 else (kept["seed"] + place) % 2**63
        body = replace(self._ask.body, is_stream=False, is_collected=is_collected)
        return unwritten(replace(self._ask, body=body), kept)


def _functions(tools: Sequence[Any], refused_as: Callable[[str, str, str], ApiError]) -> list[Mapping[str, Any]]:
    functions = [_function(tool) for tool in tools]
    for index, function in enumerate(functions):
        if not isinstance(function.get("name"), str) or not isinstance(function.get("parameters") or {}, dict):
            message = "must have a name, and a JSON Schema as parameters"
            raise refused_as(f"tools[{index}].function", message, "invalid_value")
    return functions


def _function(tool: Any) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function if isinstance(function, dict) else {}


def _format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
