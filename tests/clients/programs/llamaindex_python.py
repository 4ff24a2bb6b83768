"""I/O: LlamaIndex, by its OpenAI-like and its Ollama integrations. It reads the types of tools as they are."""

import asyncio
from typing import Any, Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.ollama import Ollama
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from scenarios import Setting, main, scenario

FRANCE = [ChatMessage(role="user", content="What is the capital of France?")]


class Person(BaseModel):
    name: Literal["Ada", "Bo"]
    age: Literal[7, 8]


def openai_like(setting: Setting, **more: Any) -> OpenAILike:
    return OpenAILike(
        model=setting.model, api_base=f"{setting.url}/v1", api_key="unused", is_chat_model=True, temperature=0,
        max_tokens=8, max_retries=0, timeout=120, **more,
    )  # fmt: skip


def ollama(setting: Setting) -> Ollama:
    more = {"num_predict": 8}
    return Ollama(
        model=setting.model, base_url=setting.url, temperature=0, request_timeout=120, context_window=2048,
        additional_kwargs=more,
    )  # fmt: skip


def get_weather(city: Literal["Paris", "Oslo"]) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}."


def check_chat(llm: Any) -> None:
    whole = llm.chat(FRANCE)
    assert whole.message.content
    assert list(llm.stream_chat(FRANCE))[-1].message.content == whole.message.content
    assert asyncio.run(llm.achat(FRANCE)).message.content == whole.message.content
    assert llm.complete("The capital of France is").text


@scenario("OpenAILike: chat, stream, asynchronous, complete")
def chat(setting: Setting) -> None:
    check_chat(openai_like(setting))


@scenario("OpenAILike: a tool that is required", may_refuse=("tools", "tool_choice"))
def tools(setting: Setting) -> None:
    llm = openai_like(setting, is_function_calling_model=True)
    llm.max_tokens = 40
    tool = FunctionTool.from_defaults(get_weather)
    answer = llm.chat_with_tools(
        [tool], user_msg="What is the weather in Paris?", tool_required=True, allow_parallel_tool_calls=False
    )
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "get_weather"
    assert call.tool_kwargs["city"] in {"Paris", "Oslo"}


@scenario("OpenAILike: a Pydantic model, by json_schema", may_refuse=("response_format",))
def structured(setting: Setting) -> None:
    llm = openai_like(setting, should_use_structured_outputs=True)
    llm.max_tokens = 40
    answer = llm.as_structured_llm(Person).chat(FRANCE)
    assert isinstance(answer.raw, Person), answer


@scenario("OpenAILikeEmbedding", needs="embedding")
def embedding(setting: Setting) -> None:
    model = OpenAILikeEmbedding(
        model_name=setting.embedding, api_base=f"{setting.url}/v1", api_key="unused", max_retries=0, timeout=120
    )
    check_vectors(model, setting)


def check_vectors(model: Any, setting: Setting) -> None:
    vectors = model.get_text_embedding_batch(["a cat", "quantum physics", "a kitten"])
    assert [len(vector) for vector in vectors] == [setting.dimensions] * 3
    assert len(model.get_query_embedding("a cat")) == setting.dimensions


@scenario("Ollama: chat, stream, asynchronous, complete")
def ollama_chat(setting: Setting) -> None:
    check_chat(ollama(setting))


@scenario("Ollama: a Pydantic model, by format")
def ollama_structured(setting: Setting) -> None:
    llm = ollama(setting)
    llm.additional_kwargs = {"num_predict": 40}
    assert isinstance(llm.as_structured_llm(Person).chat(FRANCE).raw, Person)


@scenario("OllamaEmbedding", needs="embedding")
def ollama_embedding(setting: Setting) -> None:
    check_vectors(OllamaEmbedding(model_name=setting.embedding, base_url=setting.url), setting)


if __name__ == "__main__":
    main()
