"""Whether two models speak one vocabulary is read from their files, where both are here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.models.store import Store
from orchestrator.models.vocabulary import TOKENIZER, foreign_tokens
from schemas.base import ModelName
from schemas.unit import ModelSpec


def model(folder: Path, name: str, vocabulary: object, **added: int) -> ModelSpec:
    place = folder / name
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "llama"}')
    if vocabulary is not None:
        tokens = [{"content": content, "id": number} for content, number in added.items()]
        (place / TOKENIZER).write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": tokens}))
    return ModelSpec(name=ModelName(name), source=f"path:{place}")


@pytest.mark.parametrize(
    ("ours", "theirs", "token"),
    [
        ({"a": 0, "b": 1, "c": 2}, {"a": 0, "b": 1}, None),
        ({"a": 0, "b": 1}, {"a": 0, "b": 2}, "b"),
        ({"a": 0}, {"a": 0, "z": 1}, "z"),
        ([["a", -1.0], ["b", -2.0]], {"a": 0, "b": 1}, None),
        ([["b", -1.0], ["a", -2.0]], {"a": 0, "b": 1}, "a"),
        (None, {"a": 0}, None),
        ("what?", {"a": 0}, None),
    ],
    ids=["fewer tokens", "another number", "a token more", "pieces", "pieces in another order", "no file", "no sense"],
)
def test_a_draft_may_have_fewer_tokens_and_no_other(tmp_path, ours, theirs, token):
    pair = model(tmp_path, "big", ours), model(tmp_path, "small", theirs)
    found = foreign_tokens(Store(tmp_path / "store"), [pair])
    assert found == ({} if token is None else {("big", "small"): token})


def test_added_tokens_count_and_a_change_of_the_files_is_seen(tmp_path):
    store = Store(tmp_path / "store")
    pair = model(tmp_path, "big", {"a": 0}, end=1), model(tmp_path, "small", {"a": 0}, end=1, think=2)
    assert foreign_tokens(store, [pair]) == {("big", "small"): "think"}
    (tmp_path / "small" / TOKENIZER).write_text(json.dumps({"model": {"vocab": {"a": 0, "end": 1}}}))
    assert foreign_tokens(store, [pair]) == {}


def test_a_model_that_is_not_here_is_left_to_the_worker(tmp_path):
    away = ModelSpec(name=ModelName("away"), source="hub:org/away")
    assert foreign_tokens(Store(tmp_path / "store"), [(model(tmp_path, "big", {"a": 0}), away)]) == {}
