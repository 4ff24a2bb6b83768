"""What a watcher rests on, and for how long."""

from __future__ import annotations

from orchestrator.installed import REMEMBERED_S, Installed, InstalledMemory
from schemas.base import ModelName, NodeName

ONE, TWO = NodeName("one"), NodeName("two")
FOUND = Installed(frozenset({(ModelName("small"), "mlx")}), is_provisioned=True)


def test_what_a_node_had_is_recalled_for_the_same_question_only():
    memory = InstalledMemory()
    assert memory.recall(ONE, ("small",), 0.0) is None
    memory.note(ONE, ("small",), 10.0, FOUND)
    assert memory.recall(ONE, ("small",), 11.0) == FOUND
    assert memory.recall(TWO, ("small",), 11.0) is None
    assert memory.recall(ONE, ("small", "large"), 11.0) is None


def test_nothing_is_rested_on_for_ever_or_once_something_is_to_be_changed():
    memory = InstalledMemory()
    memory.note(ONE, ("small",), 10.0, FOUND)
    assert memory.recall(ONE, ("small",), 10.0 + REMEMBERED_S - 1) == FOUND
    assert memory.recall(ONE, ("small",), 10.0 + REMEMBERED_S) is None
    memory.forget()
    assert memory.recall(ONE, ("small",), 11.0) is None
