"""I/O: what sentence-transformers and transformers make of checkpoints, on torch; run by a Python that has them.

Reads a list of tasks as JSON from stdin and writes what each gives to stdout. Nothing of ours is imported.
"""

import json
import sys
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer


def vectors(task: dict[str, Any]) -> list[list[float]]:
    """Return the texts' vectors as the model's own modules make them."""
    return SentenceTransformer(task["directory"], device="cpu").encode(task["texts"]).tolist()


def scores(task: dict[str, Any]) -> list[float]:
    """Return a cross-encoder's score of each text for the query."""
    pairs = [(task["query"], text) for text in task["texts"]]
    model = CrossEncoder(task["directory"], device="cpu", num_labels=1)
    return model.predict(pairs, activation_fn=torch.nn.Sigmoid()).tolist()


def yes(task: dict[str, Any]) -> list[float]:
    """Return the probability of "yes" against "no" after each prompt, as the card of Qwen3-Reranker computes it."""
    tokenizer = AutoTokenizer.from_pretrained(task["directory"])
    model = AutoModelForCausalLM.from_pretrained(task["directory"], dtype=torch.float32).eval()
    found = []
    for prompt in task["prompts"]:
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt", add_special_tokens=False)).logits[0, -1]
        pair = torch.stack([logits[tokenizer.convert_tokens_to_ids(word)] for word in ("no", "yes")])
        found.append(torch.softmax(pair, 0)[1].item())
    return found


DO = {"vectors": vectors, "scores": scores, "yes": yes}

if __name__ == "__main__":
    json.dump([DO[task["do"]](task) for task in json.load(sys.stdin)], sys.stdout)
