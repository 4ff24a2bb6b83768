"""Pure: bodies that are wrong, each with the status and the `param` of the refusal. Raw bytes are sent as they are."""

from typing import Any

USER = [{"role": "user", "content": "hi"}]
DEEP = b"[" * 100 + b"]" * 100


def chat(**fields: Any) -> dict[str, Any]:
    """Return a chat that would be fine without `fields`."""
    return {"messages": USER, "max_tokens": 2, **fields}


def turn(**message: Any) -> dict[str, Any]:
    """Return a chat of one message."""
    return {"messages": [message], "max_tokens": 2}


BROKEN: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("not JSON", b"hello"),
    ("cut off", b'{"messages": [{"role": "us'),
    ("unterminated string", b'{"messages": "' + b'\\"' * 5000),
    ("a list", b"[]"),
    ("a string", b'"messages"'),
    ("null", b"null"),
    ("not UTF-8", b'{"messages": "\xff\xfe"}'),
    ("UTF-16", '{"messages": []}'.encode("utf-16")),
    ("NUL bytes", b"\0" * 64),
    ("NaN", b'{"messages": [], "temperature": NaN}'),
    ("Infinity", b'{"messages": [], "temperature": -Infinity}'),
    ("deep list", b'{"messages": ' + DEEP + b"}"),
    ("deep unclosed list", b'{"messages": ' + b"[" * 200_000),
    ("deep objects", b'{"a":' * 100 + b"1" + b"}" * 100),
    ("many shallow lists", b"[" + b"[]," * 50_000 + b"[]]"),
    ("huge integer", b'{"messages": [], "seed": ' + b"9" * 5000 + b"}"),
    ("trailing data", b'{"messages": []} {}'),
]

CHAT: list[tuple[dict[str, Any], int, str | None]] = [
    ({}, 400, "messages"),
    ({"messages": None}, 400, "messages"),
    ({"messages": []}, 400, "messages"),
    ({"messages": "hi"}, 400, "messages"),
    ({"messages": {"role": "user"}}, 400, "messages"),
    ({"messages": ["hi"]}, 400, "messages[0]"),
    ({"messages": [[]]}, 400, "messages[0]"),
    (turn(content="hi"), 400, "messages[0].role"),
    (turn(role=None, content="hi"), 400, "messages[0].role"),
    (turn(role=["user"], content="hi"), 400, "messages[0].role"),
    (turn(role="function", content="hi"), 400, "messages[0].role"),
    (turn(role="user"), 400, "messages[0].content"),
    (turn(role="user", content=None), 400, "messages[0].content"),
    (turn(role="user", content=5), 400, "messages[0].content"),
    (turn(role="user", content=["hi"]), 400, "messages[0].content[0]"),
    (turn(role="user", content=[{"type": "image_url"}]), 400, "messages[0].content[0].type"),
    (turn(role="user", content=[{"type": "text", "text": 1}]), 400, "messages[0].content[0].text"),
    (turn(role="user", content="a\ud800"), 400, "messages[0].content"),
    (turn(role="assistant", content="a", tool_calls=[{"id": "x"}]), 400, "messages[0].tool_calls[0]"),
    (chat(model="other"), 404, "model"),
    (chat(model=7), 400, "model"),
    (chat(model="\udfff"), 400, "model"),
    (chat(n=17), 400, "n"),
    (chat(n=0), 400, "n"),
    (chat(n="1"), 400, "n"),
    (chat(temperature="hot"), 400, "temperature"),
    (chat(temperature=-0.1), 400, "temperature"),
    (chat(temperature=True), 400, "temperature"),
    (chat(temperature=10**400), 400, "temperature"),
    (chat(top_p=1.1), 400, "top_p"),
    (chat(top_p=[]), 400, "top_p"),
    (chat(top_k=1.5), 400, "top_k"),
    (chat(top_k=-2), 400, "top_k"),
    (chat(min_p=2), 400, "min_p"),
    (chat(seed="x"), 400, "seed"),
    (chat(seed=1.0), 400, "seed"),
    (chat(seed=1 << 64), 400, "seed"),
    (chat(repetition_penalty=0), 400, "repetition_penalty"),
    (chat(frequency_penalty=3), 400, "frequency_penalty"),
    (chat(presence_penalty=-3), 400, "presence_penalty"),
    (chat(max_tokens=0), 400, "max_tokens"),
    (chat(max_tokens=-5), 400, "max_tokens"),
    (chat(max_tokens="many"), 400, "max_tokens"),
    (chat(max_tokens=1e9), 400, "max_tokens"),
    (chat(max_completion_tokens=0), 400, "max_completion_tokens"),
    (chat(stop=""), 400, "stop"),
    (chat(stop=[1]), 400, "stop"),
    (chat(stop=[""]), 400, "stop"),
    (chat(stop={"a": 1}), 400, "stop"),
    (chat(stop=["x"] * 17), 400, "stop"),
    (chat(stop="x" * 2000), 400, "stop"),
    (chat(stop="\ud83d"), 400, "stop"),
    (chat(stream="yes"), 400, "stream"),
    (chat(stream_options=[]), 400, "stream_options"),
    (chat(stream_options={"include_usage": True}), 400, "stream_options"),
    (chat(stream=True, stream_options={"include_usage": 1}), 400, "stream_options.include_usage"),
    (chat(tools=[{"type": "function"}]), 400, "tools[0].function"),
    (chat(functions=[{"name": "f"}]), 400, "functions"),
    (chat(tool_choice="required"), 400, "tool_choice"),
    (chat(tool_choice={"type": "function"}), 400, "tool_choice"),
    (chat(response_format={"type": "yaml"}), 400, "response_format.type"),
    (chat(response_format="json"), 400, "response_format"),
    (chat(logprobs=1), 400, "logprobs"),
    (chat(top_logprobs=3), 400, "top_logprobs"),
    (chat(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    (chat(logprobs=True, top_logprobs=-1), 400, "top_logprobs"),
    (chat(logprobs=True, top_logprobs=True), 400, "top_logprobs"),
    (chat(logit_bias=[5]), 400, "logit_bias"),
    (chat(logit_bias={str(token): 1 for token in range(2000)}), 400, "logit_bias"),
    (chat(logit_bias={"5": 100.5}), 400, "logit_bias[5]"),
    (chat(logit_bias={"1": 1, "5": -101}), 400, "logit_bias[5]"),
    (chat(logit_bias={"5": None}), 400, "logit_bias[5]"),
    (chat(logit_bias={"5": True}), 400, "logit_bias[5]"),
    (chat(logit_bias={"5": "1"}), 400, "logit_bias[5]"),
    (chat(logit_bias={"5": 10**400}), 400, "logit_bias[5]"),
    (chat(logit_bias={"5": 1, "05": 1}), 400, "logit_bias[5]"),
    (chat(logit_bias={"-5": 1}), 400, "logit_bias[-5]"),
    (chat(logit_bias={"the": 1}), 400, "logit_bias[the]"),
    (chat(logit_bias={"٣": 1}), 400, "logit_bias[٣]"),
    (chat(logit_bias={"\ud800": 1}), 400, "logit_bias[?]"),
    (chat(logit_bias={"": 1}), 400, "logit_bias[]"),
    (chat(logit_bias={"9" * 5000: 1}), 400, f"logit_bias[{'9' * 20}]"),
    (chat(modalities=["audio"]), 400, "modalities"),
    (chat(audio={"voice": "x"}), 400, "audio"),
]

COMPLETIONS: list[tuple[dict[str, Any], int, str | None]] = [
    ({}, 400, "prompt"),
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [""]}, 400, "prompt"),
    ({"prompt": ["a", "b"]}, 400, "prompt"),
    ({"prompt": [[1, 2]]}, 400, "prompt"),
    ({"prompt": [1, "a"]}, 400, "prompt"),
    ({"prompt": [True]}, 400, "prompt"),
    ({"prompt": [1.5]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": {"text": "a"}}, 400, "prompt"),
    ({"prompt": "\udc00"}, 400, "prompt"),
    ({"prompt": "a", "logprobs": 6}, 400, "logprobs"),
    ({"prompt": "a", "logprobs": True}, 400, "logprobs"),
    ({"prompt": "a", "echo": True}, 400, "echo"),
    ({"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ({"prompt": "a", "best_of": 3}, 400, "best_of"),
]

REFUSED_BY_THE_MODEL: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": USER + USER}, "messages"),  # its template
    ("/v1/completions", {"prompt": [1 << 40]}, "prompt"),  # its vocabulary
    ("/v1/completions", {"prompt": "a", "n": 13}, "n"),  # the places of the worker of these tests
    ("/v1/completions", {"prompt": "a", "logit_bias": {"100000": 1}}, "logit_bias[100000]"),  # the same
]

TOLERATED: list[dict[str, Any]] = [
    chat(tools=[], tool_choice="auto", functions=None, parallel_tool_calls=True),
    chat(tool_choice="none", response_format={"type": "text"}, logit_bias={}, logprobs=False, top_logprobs=0),
    chat(stop=None, seed=None, temperature=None, n=None, stream=None, stream_options=None, model=None),
    chat(model="tiny", user="u", metadata={"a": 1}, store=False, something_new=[1]),
    chat(max_tokens=1, max_completion_tokens=2, n=1, top_k=-1, top_p=0, temperature=2),
    chat(top_k=10**9, min_p=1, seed=-(1 << 63), repetition_penalty=1.2, frequency_penalty=-2, presence_penalty=2),
    chat(modalities=["text"], stop=["x"] * 16),
    chat(n=3, logit_bias={"5": 100, "6": -100, "7": 0.5}, logprobs=True, top_logprobs=20, max_tokens=2),
    turn(role="developer", content="be brief"),
    turn(role="user", content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
    turn(role="user", content=""),
    turn(role="assistant", content=None),
]
