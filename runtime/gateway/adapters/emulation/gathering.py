"""Pure: an answer that is put together before the client gets any of it: what is asked, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runtime.gateway.adapters.emulation import choices
from runtime.gateway.adapters.emulation.forms import Form, Unfit, asked_again, shaped

if TYPE_CHECKING:
    from runtime.gateway.attempt import Ask


@dataclass(frozen=True, slots=True)
class Gathering:
    """One request as those that the endpoint gets, each for one answer."""

    plain: tuple[Ask, ...]
    """In OpenAI's words. Their bodies have no bytes: those are written when one is sent, since there may be sixteen of
    a long conversation, for each of several engines."""
    make: Callable[[Ask], Ask]
    """Puts one in the words of the endpoint's engine; raises `ApiError`."""
    prompts: int = 1
    """To how many prompts they are."""
    form: Form | None = None
    """What each answer has to be."""
    is_one_call: bool = False
    """Whether calls behind the first one are cut off."""

    def written(self, place: int) -> Ask:
        """Return one of the requests as the endpoint gets it; raises `ApiError`."""
        return self._written(self.plain[place])

    def read(self, place: int, raw: bytes) -> bytes | Unfit:
        """Return the answer to one of the requests as clients may have it, or what is wrong with it.

        Raises `BadAnswerError` and `forms.BadSchemaError`.
        """
        document, choice = choices.choice_of(raw)
        if self.is_one_call:
            choice = choices.with_first_call(choice)
        if self.form is not None:
            found = shaped(self.form, choice, f"{self.plain[place].request_id}/{place}")
            if isinstance(found, Unfit):
                return found
            choice = found
        return choices.with_choice(document, choice)

    def again(self, place: int, unfit: Unfit) -> Ask:
        """Return the request that asks a model for what it did not give."""
        asked = self.plain[place]
        messages = asked_again(asked.body.document["messages"], unfit)
        return self._written(unwritten(asked, {**asked.body.document, "messages": messages}))

    def joined(self, answers: Sequence[bytes]) -> bytes:
        """Return the one answer; raises `BadAnswerError`."""
        return answers[0] if len(answers) == 1 else choices.joined(answers, self.prompts)

    def _written(self, plain: Ask) -> Ask:
        made = self.make(plain)
        return made if made.body.raw else rewritten(made, made.body.document)


def unwritten(ask: Ask, document: Mapping[str, Any]) -> Ask:
    """Return a request with another document, its bytes left to be written."""
    return replace(ask, body=replace(ask.body, raw=b"", document={**document, "model": ask.body.model}))


def rewritten(ask: Ask, document: Mapping[str, Any]) -> Ask:
    """Return a request with another document, its bytes written anew; the model is the endpoint's."""
    made = {**document, "model": ask.body.model}
    raw = json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return replace(ask, body=replace(ask.body, raw=raw, document=made))
