"""Pure: a conversation with tools becomes the text of a prompt, by the model's chat template.

A template that knows no tools, or whose calls nobody can read, is told of them in words of ours: any model that chats
can then call tools, and a constrained answer calls them in a syntax that is always read.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from runtime.worker.errors import RequestError
from runtime.worker.fields import valid_text
from runtime.worker.messages import Message, PastCall
from runtime.worker.tools.asked import Named, Tool, ToolUse
from runtime.worker.tools.families import BARE_JSON, GENERIC, Family
from runtime.worker.tools.reading import PYTHON_TAG, Parser, parse_bare_json, parse_json

_PROBE = Tool("probe_of_tools", "Looks whether the template shows tools.", None, is_strict=False)
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_PREFACE = """\
You can call functions. Each line is the JSON of one:
{tools}
To call one, answer with its name and its arguments in exactly this form:
<tool_call>
{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>
Results come back between <tool_response> and </tool_response>. Answer in words where no function helps."""


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """How one model is told of tools, and how its calls are read."""

    family: Family
    parser: Parser
    is_native: bool
    """Its own template shows the tools."""


def tool_syntax(tokenizer: Any) -> ToolSyntax:
    """Find out how the model of `tokenizer`, mlx-lm's wrapper, calls tools."""
    if _shows_tools(tokenizer):
        if tokenizer.tool_parser is not None:
            name = tokenizer.tool_parser.__module__.rpartition(".")[2]
            if name == "mistral" and "[ARGS]" not in tokenizer.get_vocab():
                name = "mistral_list"
            family = Family(name, tokenizer.tool_call_start, tokenizer.tool_call_end)
            if name.startswith("mistral"):
                family = replace(family, ids="short")
            return ToolSyntax(family, tokenizer.tool_parser, is_native=True)
        if PYTHON_TAG in tokenizer.get_vocab():
            return ToolSyntax(Family(BARE_JSON, "", ""), parse_bare_json, is_native=True)
    return ToolSyntax(Family(GENERIC, "<tool_call>", "</tool_call>"), parse_json, is_native=False)


def _shows_tools(tokenizer: Any) -> bool:
    if not tokenizer.has_chat_template:
        return False
    messages = [{"role": "user", "content": "Hello"}]
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=[_PROBE.as_json()], tokenize=False, add_generation_prompt=True
        )
    except Exception:  # noqa: BLE001 - templates are programs of the model's maker
        return False
    return _PROBE.name in text


def render(
    messages: Sequence[Message],
    tools: ToolUse | None,
    tokenizer: Any,
    syntax: ToolSyntax,
    *,
    is_constrained: bool,
    is_continued: bool = False,
    effort: str | None = None,
) -> str:
    """Return the text of a prompt for the next answer.

    A constrained answer has its form from its first character on, so the model is not let think before it. One that is
    continued goes on where the last message ends. `effort` is how much the model is to think: `none` is not at all,
    others are for templates that know them.

    Raises RequestError where the template refuses the messages.
    """
    shown = _shown(tools)
    options: dict[str, Any] = {"add_generation_prompt": not is_continued}
    if is_continued:
        options["continue_final_message"] = True
    if is_constrained or effort == "none":
        options["enable_thinking"] = False
    elif effort is not None:
        options["reasoning_effort"] = effort
    if syntax.is_native and shown:
        options["tools"] = [tool.as_json() for tool in shown]
    if syntax.family.ids == "short":
        messages = [_with_short_ids(message) for message in messages]
    if syntax.is_native:
        text = _apply(messages, tokenizer, options)
    else:
        text = _apply_in_words(messages, shown, tokenizer, options)
    if is_constrained and tokenizer.has_thinking and _is_thinking(text, tokenizer):
        text += f"{tokenizer.think_end}\n\n"
    return valid_text(text, "messages")


def _shown(tools: ToolUse | None) -> Sequence[Tool]:
    """Return the tools that the model is shown: one that it must call alone."""
    if tools is None or tools.choice == "none":
        return ()
    return tools.callable if isinstance(tools.choice, Named) else tools.tools


def _apply_in_words(messages: Sequence[Message], tools: Sequence[Tool], tokenizer: Any, options: dict[str, Any]) -> str:
    if not tools:
        return _apply(_in_words(messages), tokenizer, options)
    lines = "\n".join(json.dumps(tool.as_json()["function"], ensure_ascii=False) for tool in tools)
    preface = _PREFACE.format(tools=lines)
    try:
        return _apply(_in_words(_told_by_system(messages, preface)), tokenizer, options)
    except RequestError as error:
        # Some templates know no system (Gemma 2's): then the user tells of the tools.
        try:
            return _apply(_in_words(_told_by_user(messages, preface)), tokenizer, options)
        except RequestError:
            raise error from None


def _apply(messages: Sequence[Message], tokenizer: Any, options: dict[str, Any]) -> str:
    has_calls = any(message.calls for message in messages)
    problem: Exception | None = None
    # Most templates want the arguments of past calls as objects, some as text; each raises on the other.
    for are_objects in (True, False) if has_calls else (True,):
        plain = [_as_json(message, are_objects=are_objects) for message in messages]
        try:
            return str(tokenizer.apply_chat_template(plain, tokenize=False, **options))
        except Exception as error:  # noqa: BLE001 - templates raise what they like about roles and their order
            problem = problem or error
    raise RequestError(f"The model's chat template refused the messages: {problem}", param="messages") from problem


def _as_json(message: Message, *, are_objects: bool) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thoughts is not None:
        plain["reasoning_content"] = message.thoughts
    if message.calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call) if are_objects else call.arguments},
            }
            for call in message.calls
        ]
    if message.call_id is not None:
        plain["tool_call_id"] = message.call_id
    if message.name is not None:
        plain["name"] = message.name
    return plain


def _arguments(call: PastCall) -> Any:
    """Return the arguments as an object; what a model once wrote wrongly stays the text it was."""
    try:
        value = json.loads(call.arguments or "{}")
    except ValueError:
        return call.arguments
    return value if isinstance(value, dict) else call.arguments


def _with_short_ids(message: Message) -> Message:
    calls = tuple(replace(call, id=_short(call.id)) for call in message.calls)
    call_id = None if message.call_id is None else _short(message.call_id)
    return replace(message, calls=calls, call_id=call_id)


def _short(call_id: str) -> str:
    return call_id if _SHORT_ID.fullmatch(call_id) else blake2b(call_id.encode(), digest_size=8).hexdigest()[:9]


def _is_thinking(text: str, tokenizer: Any) -> bool:
    return bool(text.rfind(tokenizer.think_start) > text.rfind(tokenizer.think_end))


def _told_by_system(messages: Sequence[Message], preface: str) -> list[Message]:
    first, *others = messages if messages[0].role == "system" else (Message("system", ""), *messages)
    return [Message("system", f"{first.content}\n\n{preface}".strip()), *others]


def _told_by_user(messages: Sequence[Message], preface: str) -> list[Message]:
    at = next((index for index, message in enumerate(messages) if message.role == "user"), None)
    if at is None:
        return [Message("user", preface), *messages]
    first = replace(messages[at], content=f"{preface}\n\n{messages[at].content}")
    return [*messages[:at], first, *messages[at + 1 :]]


def _in_words(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation for a template that does not know the messages of tools."""
    told: list[Message] = []
    for index, message in enumerate(messages):
        past = messages[index - 1] if index else None
        if message.role == "tool":
            worded = Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
            if past is not None and past.role == "tool":
                # Several results of one answer are one message: most templates want the roles to alternate.
                told[-1] = replace(told[-1], content=f"{told[-1].content}\n{worded.content}")
                continue
        elif past is not None and past.role == "tool" and message.role == "user":
            told[-1] = replace(told[-1], content=f"{told[-1].content}\n{message.content}")
            continue
        elif message.calls:
            calls = (
                json.dumps({"name": call.name, "arguments": _arguments(call)}, ensure_ascii=False)
                for call in message.calls
            )
            written = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
            worded = Message("assistant", f"{message.content}\n{written}".strip())
        else:
            worded = message
        told.append(worded)
    return told
