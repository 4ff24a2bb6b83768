"""Pure: how calls of each family look while they are written, as far as they can be told early.

The syntaxes are those that mlx-lm 0.32's parsers read, in the form that the models' chat templates teach. What looks
another way is told when it is whole.
"""

import re
from collections.abc import Callable, Mapping

from runtime.worker.tools.families import BARE_JSON
from runtime.worker.tools.reading import PYTHON_TAG, Call
from runtime.worker.tools.sketch import Begun, CommaFinder, Form, JsonFollower, ListFollower, MarkFinder

Read = Callable[[str], list[Call]]
"""Reads what stands between a family's marks."""
_Make = Callable[[Read], Form]


def forms_of(family: str, read: Read) -> tuple[Form, ...]:
    """Return the forms of a family's calls; none where they are told only when they are whole."""
    return tuple(make(read) for make in _FORMS.get(family, ()))


def _json(opening: str, *, is_single: bool = False) -> _Make:
    """Return a form whose arguments are one JSON object, which begins behind `opening`."""
    form = Form(re.compile(rf"{opening}\s*(?=\{{)"), lambda call, _: JsonFollower(call), is_single)
    return lambda _: form


def _envelope(before: str, keys: str = "arguments", *, is_single: bool = False) -> _Make:
    """Return the form `{"name": ..., "arguments": {...}}`."""
    opening = rf'{before}\s*\{{\s*"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*"(?:{keys})"\s*:'
    return _json(opening, is_single=is_single)


def _marked(
    opening: str, argument_end: str, call_end: str, closing: str | None = None, *, is_single: bool = False
) -> _Make:
    """Return a form whose arguments and calls end with marks; `closing` ends a call where `call_end` is empty."""
    pattern = re.compile(opening)

    def make(read: Read) -> Form:
        def follow(call: Begun, text: str) -> ListFollower:
            finder = MarkFinder(argument_end, call_end)
            return ListFollower(call, finder, read, call_end if closing is None else closing, text=text)

        return Form(pattern, follow, is_single)

    return make


def _called(
    opening: str, quotes: tuple[str, ...], closing: str, *, is_python: bool = False, is_single: bool = False
) -> _Make:
    """Return a form with commas between the arguments, as in `name(a=1, b=2)`.

    What stands behind a backslash in Python depends on whether all of it is Python: mlx-lm reads it otherwise then.
    """
    pattern = re.compile(opening)

    def make(read: Read) -> Form:
        def follow(call: Begun, text: str) -> ListFollower:
            text = "[" + text.lstrip("[, \n") if is_python else text
            finder = CommaFinder(len(text), quotes, has_escapes=is_python)
            return ListFollower(call, finder, read, closing, "\\" if is_python else "", text)

        return Form(pattern, follow, is_single)

    return make


_GLM = (_marked(r"\s*(?P<name>[^\s<]+)\s*(?=<arg_key>)", "</arg_value>", "", ""),)
_KIMI_3_CALL = r'(?:[^<]|<\|close\|>)*?<\|open\|>call[^<]*?\btool="(?P<name>[^"&]+)"[^<]*<\|sep\|>'
_FORMS: Mapping[str, tuple[_Make, ...]] = {
    "json_tools": (_envelope("", is_single=True),),
    BARE_JSON: (_envelope(rf"[\s;}}]*(?:{re.escape(PYTHON_TAG)})?", "parameters|arguments"),),
    "mistral": (
        _json(r"\s*(?:\[TOOL_CALLS\]\s*)?(?P<name>[\w-]+)\s*\[ARGS\]"),
        _envelope(r"(?:\s*\[|\s*\}\s*,)"),
    ),
    "mistral_list": (_envelope(r"(?:\s*\[|\s*\}\s*,)"),),
    "kimi_k2": (
        _json(
            r"\s*(?:<\|tool_call_end\|>\s*)?<\|tool_call_begin\|>\s*"
            r"(?P<id>(?:functions\.)?(?P<name>[^\s<:]+):\d+)\s*<\|tool_call_argument_begin\|>"
        ),
    ),
    "kimi_k3": (
        _json(rf"{_KIMI_3_CALL}\s*<\|open\|>json[^<]*<\|sep\|>"),
        _marked(rf"{_KIMI_3_CALL}(?=\s*<\|open\|>argument)", "<|close|>argument<|sep|>", "<|close|>call<|sep|>"),
    ),
    "longcat": (
        _envelope("", is_single=True),
        _marked(r"\s*(?P<name>[^\s<{]+)\s*(?=<longcat_arg_key>)", "</longcat_arg_value>", "", ""),
    ),
    "qwen3_coder": (_marked(r"\s*<function=\s*(?P<name>[^\s<>]+)>", "</parameter>", "</function>", is_single=True),),
    "glm47": _GLM,
    "laguna": _GLM,
    "minimax_m2": (_marked(r"""\s*<invoke name=["']?(?P<name>[^\s"'<>]+)["']?>""", "</parameter>", "</invoke>"),),
    "minicpm5": (_marked(r"""\s*["']?(?P<name>[^\s"'<>]+)["']?\s*>""", "</param>", "", ""),),
    "muse_spark": (
        _marked(r'\s*<atem:invoke\b[^>]*?\bname="(?P<name>[^"]+)">', "</atem:parameter>", "</atem:invoke>"),
    ),
    "pythonic": (_called(r"\s*[\[,]\s*(?P<name>[\w.]+)\(", ('"""', "'''", '"', "'"), ")]", is_python=True),),
    "gemma4": (_called(r"\s*call:(?P<name>[\w-]+)\{", ('<|"|>',), "}"),),
    "function_gemma": (_called(r"\s*call:(?P<name>\w+)\{", ("<escape>",), "}", is_single=True),),
}
"""By the names of families."""
