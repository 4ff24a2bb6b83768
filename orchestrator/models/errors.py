"""Pure: how installing a model fails, by what can be done about it."""

from __future__ import annotations


class StoreError(Exception):
    """A model cannot be installed; the message says what, where and what to do. Nothing is half-installed."""


class DownloadError(StoreError):
    """The index or hub could not be reached or refused; running it again may help."""


class DamagedDownloadError(StoreError):
    """What arrived is not whole; it is fetched once more before anybody sees this."""


class WrongDigestError(DamagedDownloadError):
    """What arrived is not what the model file pins; `expected` and `found` are `sha256:` and 64 hex digits."""

    def __init__(self, what: str, expected: str, found: str) -> None:
        super().__init__(
            f"{what} is not what the model file pins: expected {expected}, found {found}; "
            "correct `digest` if the new content is wanted, else check the index or hub that it comes from"
        )
        self.expected = expected
        self.found = found


class ConversionError(StoreError):
    """The file arrived and cannot be converted."""


class DiskFullError(StoreError):
    """There is no room at `path`; `need_bytes` is None where nobody knows how much it would have taken."""

    def __init__(self, path: str, need_bytes: int | None, free_bytes: int) -> None:
        need = "more" if need_bytes is None else f"{need_bytes:,} bytes"
        super().__init__(f"no room in {path}: need {need}, free {free_bytes:,} bytes; make room, then run apply again")
        self.path = path
        self.need_bytes = need_bytes
        self.free_bytes = free_bytes


class InstallCancelledError(StoreError):
    """The caller cancelled; what was fetched so far is kept for the next time."""
