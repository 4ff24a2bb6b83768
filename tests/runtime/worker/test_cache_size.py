"""What a prompt cache may take where nobody says it."""

from typing import Any

import pytest

from runtime.worker.cache_size import MOST_BYTES, default_bytes

SMALL: dict[str, Any] = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
}
SMALL_BYTES = 2 * 2 * 30 * 192 * 4096 * 8


@pytest.mark.parametrize(
    ("config", "max_context", "ranks", "expected"),
    [
        (SMALL, None, 1, SMALL_BYTES),
        ({"text_config": SMALL}, None, 1, SMALL_BYTES),
        (SMALL, None, 3, SMALL_BYTES // 3),
        (SMALL, 1024, 1, SMALL_BYTES // 4),
        (SMALL | {"max_position_embeddings": 2048}, 1 << 20, 1, SMALL_BYTES // 2),
        (SMALL | {"num_key_value_heads": None}, None, 1, MOST_BYTES),
        (SMALL | {"num_hidden_layers": 80}, None, 1, MOST_BYTES),
        ({}, None, 2, MOST_BYTES // 2),
        ({"num_hidden_layers": "30", "hidden_size": 576, "num_attention_heads": 0}, None, 1, MOST_BYTES),
    ],
)
def test_a_model_gets_what_a_plan_counts_for_it_and_1_gib_at_most(
    config: dict[str, Any], max_context: int | None, ranks: int, expected: int
) -> None:
    assert default_bytes(config, 8, max_context, ranks) == expected
