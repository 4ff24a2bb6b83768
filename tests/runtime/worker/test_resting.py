"""What an idle worker does by itself, such as measuring its links, delays a request by no more than itself."""

import asyncio
import threading
from pathlib import Path
from typing import Any

from runtime.worker.alone import computing_alone
from runtime.worker.engine import Engine
from runtime.worker.model import load
from runtime.worker.settings import Settings
from runtime.worker.steps import Commands, Gauges, Step, Steps
from tests.runtime.worker.test_engine import DEADLINE_S, request


class Measuring:
    """Steps for which there is always something to measure; each measurement lasts until it is let go."""

    def __init__(self, own: Steps) -> None:
        self.own = own
        self.begun = 0
        self.begun_at_steps: list[int] = []
        """How many measurements had begun, at each step."""
        self.is_over = False
        self.go_on = threading.Semaphore(0)

    def step(self, commands: Commands) -> Step:
        self.begun_at_steps.append(self.begun)
        return self.own.step(commands)

    def rest(self) -> float:
        if self.is_over:
            return DEADLINE_S
        self.begun += 1
        self.go_on.acquire()
        return 0.0

    def recover(self) -> None:
        self.own.recover()

    @property
    def gauges(self) -> Gauges:
        return self.own.gauges

    def close(self) -> None:
        self.own.close()


async def test_a_request_waits_for_the_measurement_under_way_and_for_no_other(tiny_model_dir: Path) -> None:
    settings = Settings(str(tiny_model_dir), "tiny", "127.0.0.1", 0, None, drain_s=0)
    made: list[Measuring] = []

    def make(*arguments: Any) -> Measuring:
        made.append(Measuring(computing_alone(settings)(*arguments)))
        return made[-1]

    engine = Engine(settings, lambda: None, load, make)
    engine.start()
    async with asyncio.timeout(DEADLINE_S):
        while not made or not made[0].begun or engine.gate.phase != "ready":
            await asyncio.sleep(0.005)
        (steps,) = made
        warm_up = len(steps.begun_at_steps)
        async with engine.answering(request) as (_, answer):
            assert len(steps.begun_at_steps) == warm_up  # it waits
            steps.go_on.release()
            while (await answer.read())[-1].finish is None:
                pass
        assert set(steps.begun_at_steps[warm_up:]) == {1}
    steps.is_over = True
    steps.go_on.release()
    await engine.drain()
