"""What a model's own files say: pooling, lengths, prompts, kinds; and what is refused by name."""

from typing import Any

import pytest

from runtime.worker.encode.modules import ModelFilesError, module_files
from runtime.worker.encode.recipe import Lengths, Recipe, check_chat, read_recipe
from schemas.model import ModelKind

BERT = {"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 512}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "max_position_embeddings": 32768}
MODULES = [
    {"type": "sentence_transformers.models.Transformer", "path": ""},
    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
]
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def read(
    config: dict[str, Any],
    kind: ModelKind = "embedding",
    ends_texts: bool = False,
    projector: bool = False,
    **files: Any,
) -> Recipe:
    named = {f"{name}.json": content for name, content in files.items() if name != "pooling"}
    if "pooling" in files:
        named["1_Pooling/config.json"] = files["pooling"]
    return read_recipe({"config.json": config, **named}, kind, ends_texts=ends_texts, has_projector=projector)


def test_a_sentence_encoder_is_read_as_its_files_say() -> None:
    modules = [*MODULES, {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    recipe = read(
        BERT,
        modules=modules,
        pooling=MEAN,
        sentence_bert_config={"max_seq_length": 256, "do_lower_case": True},
        config_sentence_transformers=prompts,
        tokenizer_config={"model_max_length": 512},
    )
    assert (recipe.family, recipe.method, recipe.pooling) == ("bert", "vector", ("mean",))
    assert recipe.is_normalised
    assert recipe.is_lowercased
    assert recipe.max_length == 256
    assert recipe.default_prompt == "query"
    assert recipe.query_prompt() == "query: "
    assert recipe.document_prompt() == ""
    assert not recipe.guesses


def test_only_the_modules_that_are_named_are_read() -> None:
    assert module_files({"modules.json": MODULES}) == ("1_Pooling/config.json",)
    with pytest.raises(ModelFilesError, match="outside"):
        module_files({"modules.json": [{"type": "Pooling", "path": "../../etc"}]})


def test_robertas_table_has_two_places_less_than_it_seems() -> None:
    config = {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "pad_token_id": 1}
    recipe = read({**config, "max_position_embeddings": 514}, tokenizer_config={"model_max_length": 10**30})
    assert recipe.max_length == 512


@pytest.mark.parametrize("config", [{"max_position_embeddings": 512}, {**BERT, "model_type": None}])
def test_an_old_configuration_without_a_type_is_berts(config: dict[str, Any]) -> None:
    assert read(config).family == "bert"


def test_pooling_by_name_is_read_too() -> None:
    assert read(BERT, modules=MODULES, pooling={"pooling_mode": "lasttoken"}).pooling == ("last",)


def test_what_no_file_says_is_told() -> None:
    assert read(BERT).pooling == ("mean",)
    assert "modules.json" in read(BERT).guesses[0]
    assert read(QWEN3, ends_texts=True).pooling == ("last",)
    assert "Qwen3-Reranker" in read(QWEN3, "reranking").guesses[0]


@pytest.mark.parametrize(
    ("config", "cuts"),
    [
        (BERT, None),
        ({**BERT, "is_matryoshka": True}, Lengths()),
        ({**BERT, "matryoshka_dimensions": [32, 64]}, Lengths(listed=frozenset({32, 64}))),
        (QWEN3, Lengths(least=32)),
    ],
)
def test_only_models_that_promise_it_may_be_cut(config: dict[str, Any], cuts: Lengths | None) -> None:
    assert read(config, ends_texts=True).cuts == cuts


def test_lengths_allow_what_was_trained() -> None:
    assert Lengths(least=32).allow(32)
    assert not Lengths(least=32).allow(31)
    assert not Lengths(listed=frozenset({64})).allow(32)


CLASSIFIER = {**BERT, "architectures": ["BertForSequenceClassification"]}
JINA = {**QWEN3, "architectures": ["JinaForRanking"], "auto_map": {"AutoModel": "modeling.JinaForRanking"}}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 2048}


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (CLASSIFIER, "embedding", "BertForSequenceClassification is a reranking model"),
        (JINA, "embedding", "JinaForRanking is a reranking model"),
        (QWEN3, "embedding", "Qwen3ForCausalLM is a chat model .* `kind: chat`"),
        (LLAMA, "reranking", "LlamaForCausalLM is a chat model"),
    ],
)
def test_a_model_of_another_kind_says_which(config: dict[str, Any], kind: ModelKind, message: str) -> None:
    with pytest.raises(ModelFilesError, match=message):
        read(config, kind)


@pytest.mark.parametrize(("config", "kind"), [(BERT, "embedding"), (CLASSIFIER, "reranking"), (JINA, "reranking")])
def test_a_chat_worker_names_the_kind_of_what_it_cannot_load(config: dict[str, Any], kind: str) -> None:
    with pytest.raises(ModelFilesError, match=f"kind: {kind}"):
        check_chat(config)
    check_chat(LLAMA)
    check_chat({"model_type": "something_new"})


def test_rerankers_are_told_apart() -> None:
    assert read(CLASSIFIER, "reranking").method == "classifier"
    assert read(JINA, "reranking").method == "listwise"
    assert read(QWEN3, "reranking", projector=True).method == "listwise"
    assert read(QWEN3, "reranking").method == "yes-no"
    named = read(QWEN3, "reranking", modules=[{"type": "x.LogitScore", "path": "1_LogitScore"}])
    assert (named.method, named.guesses) == ("yes-no", ())
    assert read(QWEN3, "reranking", ends_texts=True).method == "vector"
    assert read(BERT, "reranking").method == "vector"


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        ({**BERT, "model_type": "nomic_bert"}, {}, "nomic_bert"),
        ({**BERT, "position_embedding_type": "alibi"}, {}, "position_embedding_type"),
        ({**BERT, "auto_map": {"AutoModel": "modeling_bert.JinaBertModel"}}, {}, "auto_map"),
        ({**QWEN3, "is_causal": False}, {"modules": MODULES, "pooling": MEAN}, "both sides"),
        ({"model_type": "bert"}, {}, "max_position_embeddings"),
        (BERT, {"modules": {"a": 1}}, "modules.json"),
        (BERT, {"modules": [*MODULES, {"type": "x.WordWeights", "path": "3"}], "pooling": MEAN}, "WordWeights"),
        (BERT, {"modules": MODULES[:1]}, "no pooling"),
        (BERT, {"modules": MODULES}, "1_Pooling/config.json names no pooling mode"),
        (BERT, {"modules": MODULES, "pooling": {"pooling_mode": "median"}}, "median"),
        (BERT, {"modules": MODULES, "pooling": {**MEAN, "include_prompt": False}}, "include_prompt"),
        (BERT, {"config_sentence_transformers": {"prompts": [1]}}, "prompts"),
        (BERT, {"config_sentence_transformers": {"default_prompt_name": "query"}}, "default_prompt_name"),
        (BERT, {"sentence_bert_config": []}, "sentence_bert_config.json"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_its_place(
    config: dict[str, Any], files: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelFilesError, match=message):
        read(config, **files)
