"""Pure: typed reading of the fields of a JSON object; every refusal names the field."""

import math
from typing import Any

from runtime.worker.errors import RequestError


class Fields:
    """Reads one object. A field that is null counts as absent, as OpenAI's clients mean it."""

    def __init__(self, values: dict[str, Any], prefix: str = "") -> None:
        """`prefix` stands before the names in messages, such as `stream_options.`."""
        self._values = values
        self._prefix = prefix

    def get(self, name: str) -> Any:
        """Return the value as it is, or None."""
        return self._values.get(name)

    def number(self, name: str, low: float, high: float, *, default: float) -> float:
        """Return a finite number between `low` and `high`, both included."""
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(name, "must be a number")
        # Integers are compared before conversion: float() of a huge one raises.
        if not (low <= value <= high) or not math.isfinite(value):
            raise self._error(name, f"must be between {low:g} and {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Return an integer between `low` and `high`, both included, or None where it is absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if type(value) is not int:
            raise self._error(name, "must be an integer")
        if not low <= value <= high:
            raise self._error(name, f"must be between {low} and {high}")
        return value

    def boolean(self, name: str) -> bool:
        """Return true or false; absent is false."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._error(name, "must be true or false")
        return bool(value)

    def refuse(self, name: str, feature: str) -> None:
        """Refuse a field of a feature that is not there yet; null, 0, false and empty values ask for nothing."""
        if self._values.get(name):
            raise self._error(name, f"is not supported yet: it arrives with {feature}")

    def _error(self, name: str, problem: str) -> RequestError:
        return RequestError(f"{self._prefix}{name} {problem}.", param=f"{self._prefix}{name}")


def valid_text(text: str, where: str) -> str:
    """Return `text`, or refuse it where JSON escapes smuggled in half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"{where} has an unpaired surrogate at character {error.start}."
        raise RequestError(message, param=where) from error
    return text
