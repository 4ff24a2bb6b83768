"""A GGUF file becomes a model directory that mlx-lm loads and that says the same."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

from runtime.worker import convert
from runtime.worker.gguf_tokenizer import CONTROL
from runtime.worker.gguf_weights import GROUP_SIZE, UnsupportedModelError, check_supported, mlx_name, quantization
from tests.runtime.worker.tiny import CONTEXT, END, TEMPLATE

HEADS = 6
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    path, kind = name.rsplit(".", 1)
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", path)
    return f"blk.{layer[1]}.{GGUF_NAMES[layer[2]]}.{kind}" if layer else f"{GGUF_NAMES[path]}.{kind}"


def interleaved(weight: mx.array) -> mx.array:
    """Order q and k rows as llama.cpp's converter does (`permute` in convert_hf_to_gguf.py)."""
    return (
        weight.reshape(HEADS, 2, weight.shape[0] // HEADS // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


@pytest.fixture
def metadata(tiny_model_dir: Path) -> dict[str, Any]:
    """What a GGUF of the tiny model says about it."""
    config = json.loads((tiny_model_dir / "config.json").read_text())
    tokenizer = json.loads((tiny_model_dir / "tokenizer.json").read_text())
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    end = tokens.index(END)
    return {
        "general.architecture": "llama",
        "general.file_type": mx.array(0, mx.uint32),
        "llama.block_count": mx.array(config["num_hidden_layers"], mx.uint32),
        "llama.context_length": mx.array(CONTEXT, mx.uint32),
        "llama.embedding_length": mx.array(config["hidden_size"], mx.uint32),
        "llama.feed_forward_length": mx.array(config["intermediate_size"], mx.uint32),
        "llama.attention.head_count": mx.array(HEADS, mx.uint32),
        "llama.attention.layer_norm_rms_epsilon": mx.array(config["rms_norm_eps"], mx.float32),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
        "tokenizer.ggml.token_type": mx.array([CONTROL if token == END else 1 for token in tokens], mx.int32),
        "tokenizer.ggml.eos_token_id": mx.array(end, mx.uint32),
        "tokenizer.chat_template": TEMPLATE,
    }


def write_gguf(tiny_model_dir: Path, file: Path, metadata: dict[str, Any]) -> Path:
    weights = mx.load(str(tiny_model_dir / "model.safetensors"))
    arrays = {
        gguf_name(name): interleaved(array) if re.search(r"\.[qk]_proj\.", name) else array
        for name, array in weights.items()
    }
    mx.save_gguf(str(file), arrays, metadata)
    return file


def test_a_converted_model_says_the_same_as_the_original(
    tiny_model_dir: Path, tmp_path: Path, metadata: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    gguf = write_gguf(tiny_model_dir, tmp_path / "tiny.gguf", metadata)
    out = tmp_path / "out"
    assert convert.main(["--gguf", str(gguf), "--out", str(out), "--precision", "float32"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["version"] for line in lines} == {1}
    assert lines[-1] == {"version": 1, "event": "done", "out": str(out)}
    assert {line["phase"] for line in lines[:-1]} == {"weights", "tokenizer", "write"}
    assert all(0 <= line["done"] <= line["total"] for line in lines[:-1])

    prompt = "the quick é\N{PILE OF POO} brown 2025 " + END + " fox"
    chat = [{"role": "user", "content": prompt}]
    said = []
    for directory in (tiny_model_dir, out):
        model, tokenizer = mlx_lm.load(str(directory))
        tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        generated = [r.token for r in mlx_lm.stream_generate(model, tokenizer, tokens, max_tokens=30)]
        said.append((tokens, generated, tokenizer.decode(generated)))
    assert said[0] == said[1]


def run(*arguments: object) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "runtime.worker.convert", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.returncode, json.loads(finished.stdout.splitlines()[-1])


def test_what_is_no_gguf_is_an_error_event(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no model at all")
    code, last = run("--gguf", tmp_path / "x.gguf", "--out", tmp_path / "out")
    assert (code, last["event"]) == (1, "error")
    assert "x.gguf" in last["message"]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("general.architecture", "mamba", "mamba"),
        ("general.file_type", mx.array(15, mx.uint32), "Q4_K_M"),
        ("general.file_type", mx.array(99, mx.uint32), "99"),
        ("llama.rope.scaling.type", "yarn", "yarn"),
        ("tokenizer.ggml.model", "llama", "llama"),
        ("tokenizer.ggml.pre", "qwen2", "qwen2"),
    ],
)
def test_unknown_kinds_are_refused_by_name(
    tiny_model_dir: Path, tmp_path: Path, metadata: dict[str, Any], key: str, value: Any, named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    gguf = write_gguf(tiny_model_dir, tmp_path / "tiny.gguf", {**metadata, key: value})
    assert convert.main(["--gguf", str(gguf), "--out", str(tmp_path / "out")]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == "error"
    assert named in last["message"]
    assert not list((tmp_path / "out").iterdir())


def test_missing_metadata_is_named(
    tiny_model_dir: Path, tmp_path: Path, metadata: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    del metadata["llama.attention.head_count"]
    gguf = write_gguf(tiny_model_dir, tmp_path / "tiny.gguf", metadata)
    assert convert.main(["--gguf", str(gguf), "--out", str(tmp_path / "out")]) == 1
    assert "llama.attention.head_count" in capsys.readouterr().out


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("keep")
    assert convert.main(["--gguf", "any.gguf", "--out", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_unknown_tensors_are_refused_by_name() -> None:
    for name in ("rope_freqs.weight", "blk.0.ffn_gate_exps.weight", "strange"):
        with pytest.raises(UnsupportedModelError, match=name):
            mlx_name(name)


def test_an_unnamed_quantisation_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="unknown"):
        check_supported({"general.architecture": "llama"})


def test_quantisation_is_read_from_the_widths() -> None:
    columns = 4 * GROUP_SIZE
    shapes = {}
    for path, bits in (("model.embed_tokens", 8), ("a.q_proj", 4), ("a.k_proj", 4)):
        shapes[f"{path}.weight"] = (10, columns * bits // 32)
        shapes[f"{path}.scales"] = (10, columns // GROUP_SIZE)
    shapes["model.norm.weight"] = (10,)
    assert quantization(shapes) == {
        "group_size": 32, "bits": 4, "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
    }  # fmt: skip
    assert quantization({"model.norm.weight": (10,)}) is None
