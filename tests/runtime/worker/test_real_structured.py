"""SmolLM2 through OpenAI's client: a schema, a call, and a call that streams."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.runtime.worker.process import Worker

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}


@pytest.mark.e2e
@pytest.mark.slow
def test_openais_client_gets_json_and_calls(quickstart_model_dir: Path, tmp_path: Path) -> None:
    with Worker(quickstart_model_dir, tmp_path / "log") as worker:
        worker.wait_ready()
        with OpenAI(
            base_url=f"{str(worker.http.base_url).rstrip(chr(47))}/v1", api_key="none", timeout=300, max_retries=0
        ) as client:
            schema: Any = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
            answer = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Invent a person, as JSON with a name and an age."}],
                response_format=schema,
                temperature=0,
                max_tokens=60,
            )
            person = json.loads(answer.choices[0].message.content or "")
            assert isinstance(person["name"], str)
            assert 0 <= person["age"] <= 150
            with pytest.raises(BadRequestError, match="Unimplemented"):
                schema["json_schema"]["schema"] = {"not": {}}
                client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": "x"}], response_format=schema
                )
            question: Any = {
                "model": "tiny",
                "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
                "tools": [WEATHER],
                "tool_choice": "required",
                "parallel_tool_calls": False,
                "temperature": 0,
                "max_tokens": 60,
            }
            called = client.chat.completions.create(**question).choices[0]
            assert called.finish_reason == "tool_calls"
            (call,) = called.message.tool_calls or []
            assert call.type == "function"
            assert json.loads(call.function.arguments) == {"city": "Paris"}
            streamed = ""
            for chunk in client.chat.completions.create(**question, stream=True):
                for delta in chunk.choices[0].delta.tool_calls or []:
                    streamed += (delta.function and delta.function.arguments) or ""
            assert json.loads(streamed) == {"city": "Paris"}
