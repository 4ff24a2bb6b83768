"""A declared helper against what was seen of it."""

from __future__ import annotations

import pytest

from orchestrator.helpers.compare import describe, has_model, mismatches, to_pull
from orchestrator.observed import HelperSeen, HelperSilent
from schemas.stack import Helper

OLLAMA = HelperSeen("ollama", "0.5.7", frozenset({"nomic-embed-text:latest", "llama3.2:3b", "m:1"}))


def helper(*models: str, api="ollama", ensured=()):
    declared = {name: {"ensure": "present"} if name in ensured else {} for name in (*models, *ensured)}
    return Helper.model_validate({"url": "http://box:11434", "api": api, "models": declared})


def test_a_model_is_there_under_the_name_that_ollama_understands():
    assert has_model(OLLAMA, "nomic-embed-text")
    assert not has_model(OLLAMA, "llama3.2")
    assert not has_model(HelperSeen("vllm", present=frozenset({"m:latest"})), "m")


def test_what_should_be_there_and_is_not_is_pulled():
    assert to_pull(helper("m:1", ensured=("qwen3", "nomic-embed-text", "a")), OLLAMA) == ("a", "qwen3")


@pytest.mark.parametrize("seen", [HelperSeen("vllm"), HelperSeen("localai")])
def test_nothing_is_pulled_by_another_program_than_ollama(seen):
    assert to_pull(helper(ensured=("m",)), seen) == ()


def test_another_program_than_declared_is_told_with_the_mend():
    (text,) = mismatches("rtx", helper("m"), HelperSeen("vllm", "0.11.0", frozenset({"m"})))
    assert text == (
        "helpers.rtx.api says ollama, but vllm 0.11.0 answers at http://box:11434; "
        "write `api: openai` or correct the URL"
    )


def test_a_missing_model_is_told_with_the_nearest_name():
    (text,) = mismatches("rtx", helper("llama3.2"), OLLAMA)
    assert text == (
        "helpers.rtx.models: ollama 0.5.7 has no 'llama3.2'; it has: llama3.2:3b, m:1, nomic-embed-text; "
        "did you mean 'llama3.2:3b'?"
    )


def test_a_model_that_will_be_pulled_is_no_mismatch():
    assert mismatches("rtx", helper(ensured=("qwen3",)), OLLAMA) == ()


def test_a_server_that_answers_to_any_name_misses_none():
    seen = HelperSeen("llama.cpp", present=frozenset({"x"}), takes_any_name=True)
    assert mismatches("box", helper("y", api="openai"), seen) == ()


def test_a_stock_server_is_to_be_asked_in_checked_requests():
    seen = HelperSeen("mlx_lm.server", present=frozenset({"default_model"}))
    (text, _) = mismatches("mac", helper("qwen", api="openai"), seen)
    assert text.startswith("helpers.mac.api says openai, and mlx_lm.server answers at http://box:11434: some requests")
    assert mismatches("mac", helper("qwen", api="mlx-lm-server"), seen) == ()
    (text,) = mismatches("mac", helper("qwen", api="mlx-lm-server"), HelperSeen("vllm", present=frozenset({"qwen"})))
    assert "write `api: openai`" in text


def test_more_texts_than_a_server_takes_are_told():
    seen = HelperSeen("tei", "1.7.1", frozenset({"m"}), max_batch=16)
    (text,) = mismatches("gpu", helper("m", api="tei"), seen)
    assert text == ("helpers.gpu.max_batch is 32, and tei 1.7.1 takes 16 texts in a request; write `max_batch: 16`")
    smaller = helper("m", api="tei").model_copy(update={"max_batch": 8})
    assert mismatches("gpu", smaller, seen) == ()


def test_a_silent_helper_is_told_with_its_reason():
    assert mismatches("rtx", helper("m"), HelperSilent("box refuses port 1")) == ("helper rtx: box refuses port 1",)


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (HelperSeen("ollama", "0.5.7", frozenset("abc"), frozenset({"nomic-embed-text:latest"})),
         "rtx: ollama 0.5.7, 3 models, nomic-embed-text loaded"),
        (HelperSeen("tei", None, frozenset({"m"}), frozenset({"m"})), "rtx: tei, 1 model, m loaded"),
        (HelperSeen("ollama", "1", frozenset("abcdefgh"), frozenset("abcdefgh")),
         "rtx: ollama 1, 8 models, a, b, c, d, e and 3 more loaded"),
        (HelperSilent("box refuses port 1"), "rtx: box refuses port 1"),
    ],
)  # fmt: skip
def test_one_line_says_what_a_helper_is(seen, line):
    assert describe("rtx", seen) == line
