"""Pure: what came of the canary of a sharded group: the answers by which it is judged before anybody is sent to it."""

from __future__ import annotations

from typing import Literal

from schemas.base import Reported

CANARY_FAILED = "canary failed: "
"""What the line of a verdict begins with where something differed; it is looked for in the log of rank 0."""


class Verdict(Reported):
    """What came of a group's canary."""

    outcome: Literal["passed", "limited", "failed", "off"]
    """`limited`: no answers of one process were there to compare with. `off`: the stack wants none."""
    prompts: int = 0
    longest: int = 0
    """Tokens of the longest prompt."""
    asked_tokens: int | None = None
    """Tokens of the longest prompt that the stack asked for; none where nobody noted it, or none was asked."""
    words: tuple[str, ...] = ()
    """What differed, or what could not be checked."""

    def line(self) -> str:
        """Return it as one line."""
        match self.outcome:
            case "off":
                return "no canary"
            case "failed":
                return CANARY_FAILED + "; ".join(self.words)
            case "limited" | "passed":
                checked = f"canary {self.outcome}, {self.prompts} prompts of up to {self.longest} tokens"
                return f"{checked}: {'; '.join(self.words)}" if self.words else checked
