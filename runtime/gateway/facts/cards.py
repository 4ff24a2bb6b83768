"""Pure: what `/v1/models` says of a name, beside OpenAI's own keys. What nobody knows is left out.

`max_model_len` is vLLM's word for the context length and `context_length` that of most others; clients look for either.
`capabilities` are those that the name is known to have and `lacks` those that it is known not to have: of what is in
neither, nobody said anything.
"""

from __future__ import annotations

from runtime.gateway.facts.known import CAPABILITIES, Facts


def told(facts: Facts) -> dict[str, object]:
    """Return the keys that are added to a row of the models list."""
    row: dict[str, object] = {
        "context_length": facts.context_length,
        "max_model_len": facts.context_length,
        "trained_context_length": facts.trained_context_length,
        "max_output": facts.max_output,
        "capabilities": [name for name in CAPABILITIES if name in facts.can],
        "lacks": [name for name in CAPABILITIES if name in facts.cannot],
        "dimensions": facts.dimensions if "embedding" in facts.can else None,
        "architecture": facts.architecture,
        "parameters": facts.parameter_count,
        "quantisation": facts.quantisation,
        "format": facts.format,
        "size_bytes": facts.size_bytes,
        "loaded": facts.is_loaded,
        "memory_bytes": facts.size_loaded,
        "expires_at": facts.expires_at,
    }
    return {key: value for key, value in row.items() if value is not None}
