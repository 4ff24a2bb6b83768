"""Pure: the tools of a request, and what the model may do with them."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from runtime.worker.errors import RequestError
from runtime.worker.fields import Fields, valid_text

MAX_TOOLS = 256
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the client's. `parameters` is the JSON Schema of its arguments; none takes no arguments."""

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    is_strict: bool

    def as_json(self) -> dict[str, Any]:
        """Return it in OpenAI's shape, which chat templates and mlx-lm's parsers read; they rely on parameters."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Named:
    """The model must call this one."""

    name: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """The model is shown all tools and may call these alone, or must where it `is_required`."""

    names: frozenset[str]
    is_required: bool


Choice = Literal["auto", "none", "required"] | Named | Allowed


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request, at least one; `is_parallel` allows several calls in one answer."""

    tools: tuple[Tool, ...]
    choice: Choice
    is_parallel: bool

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Return the tools that the answer may call."""
        match self.choice:
            case "none":
                return ()
            case Named(name):
                return tuple(tool for tool in self.tools if tool.name == name)
            case Allowed(names):
                return tuple(tool for tool in self.tools if tool.name in names)
            case _:
                return self.tools

    @property
    def must_call(self) -> bool:
        """Tell whether the answer has to be a call."""
        is_allowed = isinstance(self.choice, Allowed) and self.choice.is_required
        return self.choice == "required" or is_allowed or isinstance(self.choice, Named)


def parse_tools(fields: Fields) -> ToolUse | None:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`; none where there are no tools.

    Raises RequestError.
    """
    _refuse_old_names(fields)
    tools = _tools(fields.get("tools"))
    choice = _choice(fields.get("tool_choice"), tools)
    is_parallel = fields.get("parallel_tool_calls") is None or fields.boolean("parallel_tool_calls")
    if not tools:
        if choice not in ("auto", "none"):
            raise RequestError("tool_choice asks for a call, but there are no tools.", param="tool_choice")
        return None
    return ToolUse(tools, choice, is_parallel)


def refuse_tools(fields: Fields) -> None:
    """Refuse tools where no chat template could show them to the model."""
    for name in ("tools", "functions"):
        if fields.get(name):
            raise RequestError(f"{name} needs a conversation: use /v1/chat/completions.", param=name)


def _refuse_old_names(fields: Fields) -> None:
    if fields.get("functions"):
        raise RequestError("functions is not supported: use tools, its successor.", param="functions")
    if fields.get("function_call") not in (None, "none", "auto"):
        raise RequestError("function_call is not supported: use tool_choice, its successor.", param="function_call")


def _tools(value: object) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RequestError("tools must be a list of tools.", param="tools")
    if len(value) > MAX_TOOLS:
        raise RequestError(f"tools may hold at most {MAX_TOOLS} tools.", param="tools")
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(value))
    names = [tool.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            where = f"tools[{index}].function.name"
            raise RequestError(f"{where} {name!r} is the name of two tools.", param=where)
    return tools


def _tool(value: object, where: str) -> Tool:
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object.", param=where)
    if value.get("type", "function") != "function":
        raise RequestError(f"{where}.type must be function: no other tools are supported.", param=f"{where}.type")
    if not isinstance(value.get("function"), dict):
        raise RequestError(f"{where}.function must be an object.", param=f"{where}.function")
    fields = Fields(value["function"], f"{where}.function.")
    name = fields.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = f"{where}.function.name must be 1 to 128 letters, digits or characters of _.:/-"
        raise RequestError(message, param=f"{where}.function.name")
    description = fields.get("description")
    if description is not None and not isinstance(description, str):
        raise RequestError(f"{where}.function.description must be a string.", param=f"{where}.function.description")
    parameters = fields.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        message = f"{where}.function.parameters must be a JSON Schema, which is an object."
        raise RequestError(message, param=f"{where}.function.parameters")
    if description is not None:
        valid_text(description, f"{where}.function.description")
    return Tool(name, description, parameters, fields.boolean("strict"))


def _choice(value: object, tools: tuple[Tool, ...]) -> Choice:
    match value:
        case None:
            return "auto"
        case "auto" | "none" | "required":
            return value
        case {"type": "function", "function": {"name": str(name)}}:
            return Named(_known(name, tools))
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [*named]}} if (
            named
        ):
            return Allowed(frozenset(_allowed(tool, tools) for tool in named), mode == "required")
        case _:
            known = 'auto, none, required, {"type": "function", "function": {"name": ...}}'
            allowed = '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}'
            raise RequestError(f"tool_choice must be {known} or {allowed}.", param="tool_choice")


def _allowed(value: object, tools: tuple[Tool, ...]) -> str:
    """Return the name of an allowed tool (openai-python 3.54, `types/chat/chat_completion_allowed_tools_param.py`)."""
    match value:
        case {"type": "function", "function": {"name": str(name)}}:
            return _known(name, tools)
        case _:
            message = 'tool_choice.allowed_tools.tools must hold {"type": "function", "function": {"name": ...}}.'
            raise RequestError(message, param="tool_choice")


def _known(name: str, tools: tuple[Tool, ...]) -> str:
    if all(tool.name != name for tool in tools):
        raise RequestError(f"tool_choice names {name!r}, which is none of the tools.", param="tool_choice")
    return name
