"""Whatever a model keeps of its tokens, an answer is the same beside others as alone."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from llguidance import LLMatcher

from runtime.worker.compute import Compute
from runtime.worker.encode.modules import ModelFilesError
from runtime.worker.model import load
from runtime.worker.prompt_cache import PromptCache
from runtime.worker.request import Sampling
from runtime.worker.steps import Commands, Insert
from tests.runtime.worker.driving import Passes, Run, asking, prompt
from tests.runtime.worker.tiny import LFM2, write_model

SIZES = (32, 1, 2, 1, 64, 3)
"""Tokens of each prompt that the rounds read, in turn."""
KINDS: dict[str, dict[str, object]] = {
    "llama": {},
    # Windows of 16 tokens: caches that turn round.
    "gemma3_text": {"sliding_window": 16, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    # Convolutions: a state instead of keys and values.
    "lfm2": LFM2,
    # Both in every layer: lists of caches.
    "falcon_h1": {
        "attention_bias": False,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_head": 8,
        "mamba_d_ssm": 96,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "mamba_n_heads": 12,
        "mamba_proj_bias": False,
        "mamba_rms_norm": False,
        "mlp_bias": False,
        "projectors_bias": False,
    },
}


@pytest.mark.parametrize("looks_ahead", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_beside_others_is_the_answer_alone(tmp_path: Path, kind: str, looks_ahead: bool) -> None:
    model = load(write_model(tmp_path / "model", kind, **KINDS[kind]), None, lambda _: None)
    sampled = Sampling(temperature=1, seed=3, repetition_penalty=1.3)
    arriving = [
        [asking(1, prompt(model, 60), 25)],
        [asking(2, prompt(model, 7, 2), 9), Insert(3, prompt(model, 33, 3), 12, sampled, logprobs=2)],
        [],
        [Insert(each, prompt(model, 20, 4), each, Sampling(temperature=1, seed=each), shares=4) for each in (4, 5)],
        [asking(6, prompt(model, 65, 6), 3), asking(7, prompt(model, 500, 7), 3)],
    ]
    run = Run(Compute(model, kept=PromptCache(1 << 26), looks_ahead=looks_ahead))
    rounds = 0
    while rounds < len(arriving) or run.open:
        inserts = arriving[rounds] if rounds < len(arriving) else []
        # One leaves while it reads its prompt.
        run.step(*inserts, removes=(7,) if rounds == len(arriving) else (), size=SIZES[rounds % len(SIZES)])
        rounds += 1
    for insert in (each for inserts in arriving for each in inserts if each.id != 7):
        alone = Run(Compute(model, looks_ahead=False)).finish(replace(insert, shares=None))
        assert run.answers[insert.id] == alone[0], insert.id
    assert run.compute.gauges.kv_bytes == 0


def test_a_short_prompt_beside_a_long_one_is_read_whole_behind_a_single_token(tmp_path: Path) -> None:
    kind = "gemma3_text"
    model = load(write_model(tmp_path / "model", kind, **KINDS[kind]), None, lambda _: None)
    run = Run(Compute(model))
    run.step(asking(1, prompt(model, 60, 16)), size=59)
    short = asking(2, prompt(model, 7, 2), 2)
    run.step(short, size=1)
    run.step(size=2)
    while run.open:
        run.step()
    assert run.answers[2] == Run(Compute(model)).finish(short)[0]


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_an_answer_ends_where_its_grammar_does_also_when_the_next_step_is_begun(
    tiny_model_dir: Path, looks_ahead: bool
) -> None:
    model = load(tiny_model_dir, None, lambda _: None)
    run = Run(Compute(model, looks_ahead=looks_ahead))
    grammar = LLMatcher.grammar_from_regex("[ab]{3,6}")
    bound = [
        Insert(each, prompt(model, 10 * each, each), 30, Sampling(temperature=1, seed=each), constraint=grammar)
        for each in (1, 2, 3)
    ]
    *answers, free = run.finish(*bound, asking(4, prompt(model, 9), 20))
    assert len(free) == 20
    for *text, end in answers:
        assert end in model.end_tokens
        assert re.fullmatch(b"[ab]{3,6}", b"".join(map(model.token_bytes, text)))


@pytest.mark.parametrize("waits", [False, True])
def test_nobody_looks_ahead_where_one_rank_does_not(tiny_model_dir: Path, waits: bool) -> None:
    model = load(tiny_model_dir, None, lambda _: None)
    passes = Passes(model.module)
    kept = PromptCache(0, agree=lambda sizes: [*sizes[:-1], 1024 if waits else sizes[-1]])
    Compute(replace(model, module=passes), kept=kept, looks_ahead=True).step(Commands([asking(1, prompt(model, 9))]))
    assert passes.shapes == ([(1, 9)] if waits else [(1, 9), (1, 1)])


def test_a_model_whose_caches_no_two_requests_can_share_is_refused_before_it_is_in_memory(tmp_path: Path) -> None:
    text = {
        "model_type": "llama4_text",
        "attention_bias": False,
        "attention_chunk_size": 16,
        "head_dim": 8,
        "hidden_size": 48,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 96,
        "intermediate_size_mlp": 96,
        "max_position_embeddings": 512,
        "num_attention_heads": 6,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 2,
        "num_key_value_heads": 6,
        "num_local_experts": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "use_qk_norm": False,
        "vocab_size": 400,
    }
    shares: list[float] = []
    with pytest.raises(ModelFilesError, match=r"keeps a ChunkedKVCache.*one request at a time.*another family"):
        load(write_model(tmp_path / "model", "llama4", text_config=text), None, shares.append)
    assert not shares
