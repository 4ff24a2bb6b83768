"""Pure: turn the tokenizer that a GGUF file carries as metadata into Hugging Face tokenizer files.

Only byte-level BPE is known (`tokenizer.ggml.model` = `gpt2`); the key names are those of the GGUF specification.
"""

from collections.abc import Mapping, Sequence
from typing import Any

CONTROL = 3
"""`tokenizer.ggml.token_type` of a token that is never text, such as an end of turn."""
USER_DEFINED = 4
"""`tokenizer.ggml.token_type` of a token that is matched before BPE but is ordinary text."""

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
# `tokenizer.ggml.pre` names how text is split before BPE.
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTE_LEVEL]},
}


class UnsupportedTokenizerError(ValueError):
    """A tokenizer that cannot be converted; the message names what is unknown."""


def tokenizer_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Build the content of `tokenizer.json`.

    `metadata` maps GGUF keys to plain Python values (numbers, strings, lists of them).

    Raises UnsupportedTokenizerError.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise UnsupportedTokenizerError(
            f"tokenizer model {model!r} is not supported; supported: 'gpt2' (byte-level BPE)"
        )
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _PRE_TOKENIZERS:
        raise UnsupportedTokenizerError(f"pre-tokenizer {pre!r} is not supported; supported: {sorted(_PRE_TOKENIZERS)}")
    tokens: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    kinds: Sequence[int] = metadata.get("tokenizer.ggml.token_type", [])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, kinds),
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "post_processor": _post_processor(metadata, tokens),
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(metadata: Mapping[str, Any], context_length: int) -> dict[str, Any]:
    """Build the content of `tokenizer_config.json`, the chat template included where the file has one."""
    tokens: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            config[f"{role}_token"] = tokens[index]
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def _added_tokens(tokens: Sequence[str], kinds: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": index,
            "content": tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for index, kind in enumerate(kinds)
        if kind in {CONTROL, USER_DEFINED}
    ]


def _post_processor(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any] | None:
    if not metadata.get("tokenizer.ggml.add_bos_token", False):
        return None
    index = metadata["tokenizer.ggml.bos_token_id"]
    bos = tokens[index]
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {bos: {"id": bos, "ids": [index], "tokens": [bos]}},
    }
