"""A watcher of a trial's stack as a real process, and what it tells."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from typing import Any, Self

from tests.e2e.trial import Trial, heed_interrupts, poll

DEADLINE_S = 120.0


class Watching:
    """`orchestrate watch --json` while the context lasts."""

    def __init__(self, trial: Trial, *arguments: str) -> None:
        self.trial = trial
        self.told: list[dict[str, Any]] = []
        self.process = trial.popen("watch", "quickstart", "--json", *arguments, preexec_fn=heed_interrupts)
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def __enter__(self) -> Self:
        self.wait_for(lambda: (report := self.report()) and report["pid"] == self.process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=DEADLINE_S)
        finally:
            self.process.kill()
            self._reading.join()
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()

    def report(self) -> dict[str, Any] | None:
        """Return what the watcher says of itself."""
        try:
            found: dict[str, Any] = json.loads((self.trial.state / "stacks/quickstart/watcher.json").read_text())
        except (OSError, ValueError):
            return None
        return found

    def events(self, kind: str) -> list[str]:
        """Return what was told so far of one kind."""
        return [line["text"] for line in list(self.told) if line.get("event") == kind]

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """Poll; a failure shows what the watcher has told."""
        try:
            return poll(what, DEADLINE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; the watcher told: {self.told}") from error

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(json.loads(line))
