"""Pure: how the families of models write tool calls: their marks, and grammars for what they write between them.

mlx-lm knows how to read them; a grammar here is right if mlx-lm's parser gives back what the tool's schema allows. The
syntaxes are those of mlx-lm 0.32's parsers, which follow the models' chat templates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.worker.tools.asked import Tool
from runtime.worker.tools.call_arguments import Arguments, arguments
from runtime.worker.tools.lark import BLANKS, Lark, escaped, one_of
from runtime.worker.tools.reading import PYTHON_TAG

MAX_CALLS = 32
"""Calls that a constrained answer may hold."""

GENERIC = "json_tools"
"""What a model is told to write whose chat template knows no tools, or whose calls nobody can read."""
BARE_JSON = "bare_json"
"""Llama 3's: the answer is the call, without marks. mlx-lm has no parser for it; ours is in `reading`."""


@dataclass(frozen=True, slots=True)
class Family:
    """One syntax. `start` and `end` enclose what the parser reads; without a start the whole answer is the call."""

    name: str
    start: str
    end: str
    ids: Literal["long", "short"] = "long"
    """Mistral's templates take ids of nine letters and digits only."""


def calls(family: Family, lark: Lark, tools: Sequence[Tool], *, is_parallel: bool) -> str:
    """Return an expression for an answer that calls one of `tools`, or several where `is_parallel`.

    Raises ValueError where the family's syntax cannot hold what a tool's schema asks for.
    """
    write = _writer_of(family)
    return f"{lark.text(write.opens)} {_behind(write, lark, tools, is_parallel=is_parallel)}"


def free_calls(family: Family, lark: Lark, tools: Sequence[Tool], *, is_parallel: bool) -> str:
    """Return an expression for any answer whose calls, wherever one begins, are such as `calls` allows.

    Raises ValueError where the family's syntax cannot hold what a tool's schema asks for, or tells too late that a call
    begins.
    """
    write = _writer_of(family)
    if family.name == BARE_JSON:
        return lark.free_or_whole(PYTHON_TAG, [_bare_call(lark, tool) for tool in tools])
    if not family.start or not write.opens.startswith(family.start):
        raise ValueError("its calls have no opening mark")
    # What begins with the mark again is found as the first one was.
    several = is_parallel and write.between is not None and write.opens not in write.between
    rest = lark.text(write.opens.removeprefix(family.start))
    return lark.free(family.start, f"{rest} {_behind(write, lark, tools, is_parallel=several)}")


def _writer_of(family: Family) -> "_Writer":
    write = WRITERS.get(family.name)
    if write is None:
        raise ValueError(f"calls of the family {family.name} cannot be constrained")
    return write


def _behind(write: "_Writer", lark: Lark, tools: Sequence[Tool], *, is_parallel: bool) -> str:
    """Return an expression for what stands behind `write.opens`."""
    one = one_of([_named(write.call, lark, tool) for tool in tools])
    more = f"{{0,{MAX_CALLS - 1}}}"
    if not is_parallel or write.between is None:
        body = one
    elif write.between:
        body = f"{one} ({lark.text(write.between)} {one}){more}"
    else:
        body = f"({one}){{1,{MAX_CALLS}}}"
    return f"{body} {lark.text(write.closes)}"


def _named(write: Callable[[Lark, Tool], str], lark: Lark, tool: Tool) -> str:
    try:
        return lark.rule(write(lark, tool))
    except ValueError as error:
        raise ValueError(f"{tool.name!r} cannot be asked for: {error}") from error


@dataclass(frozen=True, slots=True)
class _Writer:
    """What surrounds the calls of an answer, what stands between two, and one call. No `between`: only one call.

    `opens` begins with the family's opening mark. Where each call has a mark of its own, `between` has it as well.
    """

    call: Callable[[Lark, Tool], str]
    opens: str = ""
    closes: str = ""
    between: str | None = ""


def schema_of(tool: Tool) -> dict[str, Any]:
    """Return the schema of a tool's arguments as one of an object; arguments it does not know help nobody."""
    if tool.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    closed = {"additionalProperties": False} if "properties" in tool.parameters else {}
    return {"type": "object", **closed, **tool.parameters}


def _json_call(before: str, after: str) -> Callable[[Lark, Tool], str]:
    """Return a writer of calls whose arguments are one JSON object; `{}` stands for the tool's name."""

    def write(lark: Lark, tool: Tool) -> str:
        body = lark.json(schema_of(tool), is_strict=tool.is_strict)
        return f"{lark.text(before.replace('{}', tool.name))} {body} {lark.text(after)}"

    return write


def _listed_call(before: str, after: str, how: Arguments) -> Callable[[Lark, Tool], str]:
    """Return a writer of calls that list their arguments."""

    def write(lark: Lark, tool: Tool) -> str:
        body = arguments(lark, how, tool.parameters, is_strict=tool.is_strict)
        return f"{lark.text(before.replace('{}', tool.name))} {body} {lark.text(after)}"

    return write


def _pythonic_call(lark: Lark, tool: Tool) -> str:
    names = [*tool.name.split("."), *((tool.parameters or {}).get("properties") or {})]
    odd = [name for name in names if not name.isidentifier()]
    if odd:
        raise ValueError(f"{odd[0]!r} is no name in this model's syntax")
    return _listed_call("{}(", ")", Arguments("{}=", "", ", ", strings="json"))(lark, tool)


def _bare_call(lark: Lark, tool: Tool) -> tuple[str, str]:
    """Return a regular expression for what tells that an answer of Llama 3's is a call, and the rest of the call.

    The name tells it. Models of the family also write `"type": "function"` before the name, `arguments` for
    `parameters`, and blanks between.
    """
    kind = BLANKS.join(('"type"', ":", '"function"', ",", ""))
    begin = BLANKS.join((r"\{", f"({kind})?" + '"name"', ":", f'"{escaped(tool.name)}"'))
    key = one_of([lark.text('"parameters"'), lark.text('"arguments"')])
    body = lark.json(schema_of(tool), is_strict=tool.is_strict)
    rest = " BLANK? ".join(("", '","', key, '":"', body, '"}"', "")).replace("BLANK", lark.rule("/[ \\t\\r\\n]+/"))
    return begin.replace('"', '\\"'), rest


def _kimi_call(lark: Lark, tool: Tool) -> str:
    """Write the call's id, which counts the calls of the conversation."""
    body = lark.json(schema_of(tool), is_strict=tool.is_strict)
    begin = f"{lark.text(f'<|tool_call_begin|>functions.{tool.name}:')} /[0-9]{{1,3}}/"
    return f"{begin} {lark.text('<|tool_call_argument_begin|>')} {body} {lark.text('<|tool_call_end|>')}"


_GLM = _Writer(
    _listed_call(
        "{}\n",
        "</tool_call>",
        Arguments("<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>\n"),
    ),
    opens="<tool_call>",
    between="\n<tool_call>",
)
WRITERS = {
    GENERIC: _Writer(
        _json_call('\n{"name": "{}", "arguments": ', "}\n</tool_call>"),
        opens="<tool_call>",
        between="\n<tool_call>",
    ),
    BARE_JSON: _Writer(_json_call('{"name": "{}", "parameters": ', "}"), between=None),
    "mistral": _Writer(_json_call("{}[ARGS]", ""), opens="[TOOL_CALLS]", between="[TOOL_CALLS]"),
    "mistral_list": _Writer(
        _json_call('{"name": "{}", "arguments": ', "}"), opens="[TOOL_CALLS][", closes="]", between=", "
    ),
    "kimi_k2": _Writer(
        _kimi_call,
        opens="<|tool_calls_section_begin|>",
        closes="<|tool_calls_section_end|>",
    ),
    "kimi_k3": _Writer(
        _json_call(
            '<|open|>call tool="{}" index="1"<|sep|><|open|>json type="object"<|sep|>',
            "<|close|>json<|sep|><|close|>call<|sep|>",
        ),
        opens="<|open|>tools<|sep|>",
        closes="<|close|>tools<|sep|>",
    ),
    "longcat": _Writer(
        _json_call('{"name": "{}", "arguments": ', "}</longcat_tool_call>"),
        opens="<longcat_tool_call>",
        between="\n<longcat_tool_call>",
    ),
    "pythonic": _Writer(_pythonic_call, opens="<|tool_call_start|>[", closes="]<|tool_call_end|>", between=", "),
    "qwen3_coder": _Writer(
        _listed_call(
            "\n<function={}>\n",
            "</function>\n</tool_call>",
            Arguments("<parameter={}>\n", "\n</parameter>\n"),
        ),
        opens="<tool_call>",
        between="\n<tool_call>",
    ),
    "glm47": _GLM,
    "laguna": _GLM,
    "minimax_m2": _Writer(
        _listed_call('<invoke name="{}">\n', "</invoke>\n", Arguments('<parameter name="{}">', "</parameter>\n")),
        opens="<minimax:tool_call>\n",
        closes="</minimax:tool_call>",
    ),
    "minicpm5": _Writer(
        _listed_call('"{}">', "</function>", Arguments('<param name="{}">', "</param>")),
        opens="<function name=",
        between="\n<function name=",
    ),
    "muse_spark": _Writer(
        _listed_call(
            '<atem:invoke name="{}">\n',
            "</atem:invoke>\n",
            Arguments('<atem:parameter name="{}">', "</atem:parameter>\n", strings="json"),
        ),
        opens="<atem:function_calls>\n",
        closes="</atem:function_calls>",
    ),
    "gemma4": _Writer(
        _listed_call(
            "call:{}{",
            "}<tool_call|>",
            Arguments("{}:", "", ",", quote='<|"|>', nested="bare keys"),
        ),
        opens="<|tool_call>",
        between="<|tool_call>",
    ),
    "function_gemma": _Writer(
        _listed_call(
            "call:{}{",
            "}<end_function_call>",
            Arguments("{}:", "", ",", quote="<escape>", without="}", nested="none"),
        ),
        opens="<start_function_call>",
        between="<start_function_call>",
    ),
}
"""Keyed by the families whose calls can be asked for."""
