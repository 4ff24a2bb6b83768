"""Pure: the tools of an Anthropic request as OpenAI's functions, and what the model may do with them.

Shapes: anthropic-sdk-python 0.121, `types/tool_param.py` and `types/tool_choice_*_param.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.gateway.bodies import invalid
from runtime.gateway.errors import ApiError


def tools_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return OpenAI's `tools`, `tool_choice` and `parallel_tool_calls`, as far as the request says something of them.

    Raises `ApiError` with status 400.
    """
    given = document.get("tools")
    if given is not None and not isinstance(given, list):
        raise invalid("tools", "must be a list")
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(given or [])]
    choice = document.get("tool_choice")
    if choice is not None and not isinstance(choice, dict):
        raise invalid("tool_choice", "must be an object with a type")
    if choice is not None and not tools and choice.get("type") in ("any", "tool"):
        raise invalid("tool_choice", "asks for a call, but there are no tools")
    said = {} if choice is None else _choice(choice, tools)
    return {"tools": tools, **said} if tools else {}


def _tool(tool: object, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise invalid(where, "must be an object")
    kind = tool.get("type")
    if kind not in (None, "custom"):
        if not isinstance(kind, str):
            raise invalid(f"{where}.type", "must be a text")
        # What such a tool takes and gives is known to Anthropic's own models only, and some run on their servers.
        message = (
            f"'{where}.type' is '{kind[:64]}', a tool of Anthropic's own, which is not there: describe it by a name, "
            "a description and an input_schema instead."
        )
        raise ApiError(400, message, code="unsupported_parameter", param=f"{where}.type")
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise invalid(f"{where}.name", "must be a text that is not empty")
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise invalid(f"{where}.input_schema", "must be a JSON Schema, which is an object")
    function: dict[str, Any] = {"name": name, "parameters": schema}
    description = tool.get("description")
    if description is not None:
        if not isinstance(description, str):
            raise invalid(f"{where}.description", "must be a text")
        function["description"] = description
    is_strict = tool.get("strict")
    if is_strict is not None:
        if not isinstance(is_strict, bool):
            raise invalid(f"{where}.strict", "must be true or false")
        function["strict"] = is_strict
    return {"type": "function", "function": function}


def _choice(choice: Mapping[str, Any], tools: list[dict[str, Any]]) -> dict[str, Any]:
    is_single = choice.get("disable_parallel_tool_use")
    if is_single is not None and not isinstance(is_single, bool):
        raise invalid("tool_choice.disable_parallel_tool_use", "must be true or false")
    more = {"parallel_tool_calls": False} if is_single else {}
    match choice.get("type"):
        case "auto":
            return {"tool_choice": "auto", **more}
        case "any":
            return {"tool_choice": "required", **more}
        case "none":
            return {"tool_choice": "none"}
        case "tool":
            name = choice.get("name")
            if not isinstance(name, str) or all(tool["function"]["name"] != name for tool in tools):
                raise invalid("tool_choice.name", "must be the name of one of the tools")
            return {"tool_choice": {"type": "function", "function": {"name": name}}, **more}
        case _:
            raise invalid("tool_choice.type", "must be one of auto, any, tool, none")
