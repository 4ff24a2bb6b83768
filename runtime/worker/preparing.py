"""I/O: a request becomes what the batch computes and how its answer is read, before it takes a place."""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from runtime.worker.errors import RequestError
from runtime.worker.model import LoadedModel
from runtime.worker.prompt import encode, tokenise
from runtime.worker.request import ChatPrompt, Request
from runtime.worker.tools.asked import Allowed, Tool, ToolUse
from runtime.worker.tools.constrain import GrammarError, Grammars
from runtime.worker.tools.conversation import ToolSyntax
from runtime.worker.tools.early import forms_of
from runtime.worker.tools.families import calls, free_calls
from runtime.worker.tools.formats import SCHEMA_PARAM, JsonFormat, check_schema, check_size
from runtime.worker.tools.lark import Lark, one_of
from runtime.worker.tools.reading import Call, read_calls
from runtime.worker.tools.sketch import Sketch
from runtime.worker.tools.stream import CallReader
from runtime.worker.tools.thoughts import ThoughtReader

logger = logging.getLogger(__name__)

BLAME_S = 2.0
"""How long the one tool at fault is looked for among many."""
SHOWN_TOKENS = 16
"""Tokens at the end of a prompt in which a template that lets the model think has opened its thoughts."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that may enter."""

    request: Request
    tokens: list[int]
    constraint: str | None
    """A serialised llguidance grammar that the answer obeys."""
    new_reader: Callable[[], CallReader] | None
    """Makes what finds the calls in one choice; none where there are none to find."""
    new_thoughts: Callable[[], ThoughtReader] | None = None
    """Makes what tells the thoughts of one choice apart; none where the model does not think."""


def prepare(parse: Callable[[], Request], model: LoadedModel) -> Prepared:
    """Parse, constrain and tokenise; raises RequestError."""
    request = parse()
    constraint = constraint_of(request, model.tool_syntax, model.grammars)
    tokens = encode(request, model.tokenizer, model.limits, model.tool_syntax)
    thoughts = _thinking(request, tokens, model.tokenizer)
    return Prepared(request, tokens, constraint, _reading(request, model.tool_syntax), thoughts)


def count(parse: Callable[[], Request], model: LoadedModel) -> int:
    """Return how many tokens the prompt of a request has; raises RequestError."""
    return len(tokenise(parse(), model.tokenizer, model.limits, model.tool_syntax))


def _thinking(request: Request, tokens: Sequence[int], tokenizer: Any) -> Callable[[], ThoughtReader] | None:
    if not isinstance(request.prompt, ChatPrompt) or not tokenizer.has_thinking:
        return None
    start, end, is_open = tokenizer.think_start, tokenizer.think_end, opens_thoughts(tokens, tokenizer)
    return lambda: ThoughtReader(start, end, is_open)


def opens_thoughts(tokens: Sequence[int], tokenizer: Any) -> bool:
    """Tell whether a prompt ends with the mark that lets a model think which has one."""
    return bool(tokenizer.decode(list(tokens[-SHOWN_TOKENS:])).rstrip().endswith(tokenizer.think_start))


def _reading(request: Request, syntax: ToolSyntax) -> Callable[[], CallReader] | None:
    tools = request.tools
    if tools is None or not tools.callable:
        return None
    family, is_parallel, known = syntax.family, tools.is_parallel, tools.callable
    new_id = _short_id if family.ids == "short" else _long_id

    def read(text: str) -> list[Call]:
        return read_calls(syntax.parser, text, known)

    forms = forms_of(family.name, read)
    names = frozenset(tool.name for tool in known)
    sketch = partial(Sketch, forms, names) if forms else None
    how = (request.is_stream, tools.must_call, request.format is not None)
    return lambda: CallReader(family.start, family.end, read, new_id, is_parallel, sketch, *how)


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    return secrets.token_hex(5)[:9]


def constraint_of(request: Request, syntax: ToolSyntax, grammars: Grammars) -> str | None:
    """Return the grammar that a request's answer obeys, or None where it is free.

    With a format and tools the answer is either; with a call that must be made it is one. A call that may be made
    keeps the schema of a strict tool where the model's syntax can hold it.

    Raises RequestError, which names the schema at fault.
    """
    tools, wanted = request.tools, request.format
    may_call = tools is not None and bool(tools.callable) and (tools.must_call or wanted is not None)
    if wanted is None and not may_call:
        return _free_calls(tools, syntax, grammars)
    try:
        special = grammars.special_tokens()
    except GrammarError as error:
        param = "response_format" if wanted is not None else "tool_choice"
        raise RequestError(f"{param} is not possible here: {error}.", param=param) from error
    lark = Lark(special)
    forms = []
    if tools is not None and may_call:
        _check_schemas(tools, wanted)
        forms.append(_calls(lark, tools, syntax))
    try:
        if wanted is not None and not (tools is not None and tools.must_call):
            forms.append(lark.json(wanted.schema, is_strict=True))
        grammar = lark.grammar(one_of(forms))
        grammars.check(grammar)
    except ValueError as error:
        raise RequestError(f"{SCHEMA_PARAM} cannot be enforced: {error}.", param=SCHEMA_PARAM) from error
    except GrammarError as error:
        if may_call:
            _blame(request, syntax, grammars, special, error)
        raise _refused(SCHEMA_PARAM, error) from error
    return grammar


def _free_calls(tools: ToolUse | None, syntax: ToolSyntax, grammars: Grammars) -> str | None:
    """Return a grammar of answers whose calls are of the tools that may be called, and keep the schemas of strict ones.

    None where it cannot be made, or there is nothing to keep.

    Clients send `strict` without being asked to, so a schema that cannot be kept refuses nothing: it is kept as far as
    calls that must be made keep it without `strict`, or not at all.
    """
    if tools is None or not tools.callable:
        return None
    if not isinstance(tools.choice, Allowed) and not any(tool.is_strict for tool in tools.callable):
        return None
    kept = tools.callable
    try:
        check_size([tool.parameters for tool in kept if tool.parameters is not None], "tools")
        special = grammars.special_tokens()
        if (grammar := _freely(kept, tools, syntax, grammars, special)) is None:
            kept = tuple(_as_far_as_possible(tool, syntax, grammars, special) for tool in kept)
            grammar = _freely(kept, tools, syntax, grammars, special)
    except (GrammarError, RequestError):
        return None
    return grammar


def _freely(
    kept: Sequence[Tool], tools: ToolUse, syntax: ToolSyntax, grammars: Grammars, special: dict[str, int]
) -> str | None:
    lark = Lark(special)
    try:
        grammar = lark.grammar(free_calls(syntax.family, lark, kept, is_parallel=tools.is_parallel))
        grammars.check(grammar)
    except (ValueError, GrammarError) as error:
        logger.debug("strict tools are not kept as they are: %s", error)
        return None
    return grammar


def _as_far_as_possible(tool: Tool, syntax: ToolSyntax, grammars: Grammars, special: dict[str, int]) -> Tool:
    """Return a tool that is strict only where that can be kept."""
    lark = Lark(special)
    try:
        grammars.check(lark.grammar(calls(syntax.family, lark, [tool], is_parallel=False)))
    except (ValueError, GrammarError):
        return replace(tool, is_strict=False)
    return tool


def _check_schemas(tools: ToolUse, wanted: JsonFormat | None) -> None:
    """Raise RequestError where a schema of the tools is none, or all schemas of the request are very large."""
    schemas = [tool.parameters for tool in tools.callable if tool.parameters is not None]
    check_size([*schemas, *(() if wanted is None else (wanted.schema,))], "tools")
    for tool in tools.callable:
        if tool.parameters is not None:
            check_schema(tool.parameters, _param(tool, tools))


def _calls(lark: Lark, tools: ToolUse, syntax: ToolSyntax) -> str:
    try:
        return calls(syntax.family, lark, tools.callable, is_parallel=tools.is_parallel)
    except ValueError as error:
        param = "tool_choice" if tools.must_call else "response_format"
        message = f"{param} is not possible here: {error}. tool_choice auto without response_format works."
        raise RequestError(message, param=param) from error


def _blame(
    request: Request, syntax: ToolSyntax, grammars: Grammars, special: dict[str, int], whole: GrammarError
) -> None:
    """Raise RequestError for the first tool whose calls cannot be compiled alone, where it is soon found."""
    deadline = time.monotonic() + BLAME_S
    for tool in request.tools.callable if request.tools is not None else ():
        if time.monotonic() > deadline:
            raise _refused("tools", whole)
        lark = Lark(special)
        grammar = lark.grammar(calls(syntax.family, lark, [tool], is_parallel=False))
        try:
            grammars.check(grammar)
        except GrammarError as error:
            raise _refused(_param(tool, request.tools), error) from error
    if request.format is None:
        raise RequestError("tools are too many to be enforced together; name one in tool_choice.", param="tools")


def _refused(param: str, error: GrammarError) -> RequestError:
    return RequestError(f"{param} cannot be enforced: {error}.", param=param)


def _param(tool: Tool, tools: ToolUse | None) -> str:
    index = tools.tools.index(tool) if tools is not None else 0
    return f"tools[{index}].function.parameters"
