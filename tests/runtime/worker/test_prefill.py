"""A round reads as much of the prompts as fits into its time, and less while others stream."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.worker.prefill import ALONE_S, CPU, GROWTH, SHARED_S, TAIL, Bounds, Portions, portion
from runtime.worker.request import Sampling
from runtime.worker.steps import Commands, Insert, Step, Token


def insert(job_id: int, length: int) -> Insert:
    return Insert(job_id, [1] * length, 5, Sampling())


def gives(*tokens: int, entered: dict[int, int] | None = None, ended: int | None = None) -> Step:
    """Return a step that gave tokens to these requests."""
    return Step([Token(each, 1, "stop" if each == ended else None) for each in tokens], [], entered or {})


class Machine:
    """Computes rounds that take a time in proportion to what they read."""

    def __init__(self, token_s: float, step_s: float = 0.0, bounds: Bounds = CPU) -> None:
        self.portions = Portions(bounds)
        self._token_s, self._step_s = token_s, step_s
        self._left: dict[int, int] = {}
        self.streaming: set[int] = set()
        self.sizes: list[int] = []

    def round(self, *inserts: Insert, known: int = 0, removes: tuple[int, ...] = ()) -> int:
        """Compute a round; return how many tokens of each prompt it read at most."""
        size = self.portions.begin(Commands(inserts, removes))
        for each in removes:
            self._left.pop(each, None)
            self.streaming.discard(each)
        given = tuple(self.streaming)
        self._left |= {each.id: len(each.tokens) - known - 1 for each in inserts}
        reads = max((min(size, left) for left in self._left.values()), default=0) * len(self._left)
        self._left = {each: left - size for each, left in self._left.items()}
        done = {each for each, left in self._left.items() if left <= 0}
        self.streaming |= done
        self._left = {each: left for each, left in self._left.items() if each not in done}
        seconds = reads * self._token_s + self._step_s * bool(given)
        self.portions.end(seconds, gives(*given, entered={each.id: known for each in inserts}))
        self.sizes.append(size)
        return size


@pytest.mark.parametrize(
    ("left", "size", "reads"),
    [(1, 1, 1), (5, 256, 5), (TAIL, 256, TAIL), (TAIL + 1, 256, TAIL), (200, 256, 199), (200, 64, 64), (20, 8, 8)],
)
def test_the_end_of_a_prompt_is_read_with_its_last_token_only_where_it_is_short(
    left: int, size: int, reads: int
) -> None:
    assert portion(left, size) == reads


def test_a_first_token_is_no_sign_of_others_that_stream() -> None:
    portions = Portions()
    portions.begin(Commands([insert(1, 32)]))
    portions.end(0.032, gives(1, entered={1: 0}))
    portions.begin(Commands(removes=(1,)))
    portions.end(9.0, gives())
    assert portions.begin(Commands([insert(2, 9000)])) == 128


def test_the_first_round_reads_the_least_and_the_next_ones_grow_by_what_was_measured() -> None:
    machine = Machine(token_s=0.0001)
    assert [machine.round(insert(1, 5000)), machine.round(), machine.round(), machine.round()] == [32, 128, 256, 256]
    machine = Machine(token_s=0.0001, bounds=Bounds(32, 4096))
    assert [machine.round(insert(1, 50000)), machine.round(), machine.round()] == [32, 32 * GROWTH, 32 * GROWTH**2]


def test_a_slow_model_reads_what_fits_into_the_time_and_never_less_than_the_least() -> None:
    machine = Machine(token_s=ALONE_S / 70)
    assert [machine.round(insert(1, 5000)), machine.round(), machine.round()] == [32, 64, 64]
    machine = Machine(token_s=1.0)
    assert [machine.round(insert(1, 5000)), machine.round()] == [32, 32]


def test_several_prompts_share_the_time() -> None:
    machine = Machine(token_s=ALONE_S / 300)
    machine.round(insert(1, 5000))
    assert machine.round() == 128
    assert machine.round(insert(2, 5000), insert(3, 5000), insert(4, 5000)) == 64


def test_choices_of_one_prompt_read_it_once() -> None:
    machine = Machine(token_s=ALONE_S / 300)
    machine.round(insert(1, 5000))
    machine.round(removes=(1,))
    commands = Commands([replace(insert(each, 5000), shares=2) for each in (2, 3, 4, 5)])
    assert machine.portions.begin(commands) == 128


def test_less_is_read_while_somebody_streams_and_more_when_nobody_does_any_more() -> None:
    machine = Machine(token_s=SHARED_S / 70)
    machine.round(insert(1, 33))
    assert machine.round(insert(2, 9000)) == 64
    assert machine.round() == 64
    assert machine.round(removes=(1,)) == 256
    machine.round(insert(3, 10))
    assert machine.round() == 64


def test_reading_may_take_as_long_as_the_token_that_streams_get() -> None:
    machine = Machine(token_s=0.01, step_s=4.0)
    machine.round(insert(1, 33))
    for _ in range(3):
        machine.round()
    assert [machine.round(insert(2, 9000)), machine.round()] == [128, 256]


def test_a_few_tokens_tell_nothing_of_many() -> None:
    portions = Portions()
    portions.begin(Commands([insert(1, 33)]))
    portions.end(0.032, gives(entered={1: 0}))
    portions.begin(Commands([insert(2, 1000)]))
    portions.end(50.0, gives(entered={2: 995}))
    assert portions.begin(Commands([insert(3, 1000)])) == 128


def test_who_was_refused_or_forgotten_reads_nothing() -> None:
    portions = Portions()
    portions.begin(Commands([insert(1, 33)]))
    portions.end(0.032, gives(entered={1: 0}))
    portions.begin(Commands([insert(2, 9000)]))
    portions.end(5.0, Step([], [2]))
    assert portions.begin(Commands([insert(3, 9000)])) == 128
    portions.end(0.128, gives(entered={3: 0}))
    portions.clear()
    assert portions.begin(Commands([insert(4, 9000)])) == 256


def test_a_round_that_only_takes_requests_in_tells_nothing_of_their_tokens() -> None:
    portions = Portions()
    assert portions.begin(Commands([insert(1, 9000)])) == 32
    portions.end(0.00001, Step([], [], {1: 0}, has_computed=False))
    assert portions.begin(Commands()) == 32
    portions.end(ALONE_S / 2, gives())
    assert portions.begin(Commands()) == 64


def test_a_round_that_is_quicker_than_generating_was_tells_nothing_of_prompts() -> None:
    portions = Portions()
    portions.begin(Commands([insert(1, 33)]))
    portions.end(ALONE_S, gives(entered={1: 0}))
    portions.begin(Commands())
    portions.end(10.0, gives(1))
    portions.begin(Commands([insert(2, 9000)]))
    portions.end(5.0, gives(1, entered={2: 0}))
    assert portions.begin(Commands(removes=(1,))) == 32


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 20, 100])
def test_the_least_is_that_of_all_prompts_together(count: int) -> None:
    machine = Machine(token_s=ALONE_S, bounds=Bounds(256, 2048))
    inserts = [insert(each, 5000) for each in range(count)]
    assert {machine.round(*inserts) * count, machine.round() * count} <= set(range(129, 257))


def test_what_few_of_several_prompts_take_is_learned_as_well() -> None:
    machine = Machine(token_s=0.0001)
    sizes = [machine.round(*(insert(each, 5000) for each in range(3))), machine.round(), machine.round()]
    assert sizes == [8, 32, 128]


ROUNDS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 3000), max_size=3),
        st.floats(0, 100),
        st.sets(st.integers(0, 20), max_size=3),
    ),
    max_size=40,
)


@given(rounds=ROUNDS, bounds=st.sampled_from([CPU, Bounds(256, 2048), Bounds(16, 16)]))
def test_every_portion_is_a_power_of_two_within_the_bounds(
    rounds: list[tuple[list[int], float, set[int]]], bounds: Bounds
) -> None:
    portions, count = Portions(bounds), 0
    for lengths, seconds, removes in rounds:
        inserts = [insert(count + at, length) for at, length in enumerate(lengths)]
        size = portions.begin(Commands(inserts, tuple(removes)))
        assert 1 <= size <= bounds.most
        assert size & (size - 1) == 0
        known = {each.id: (each.id * 7) % len(each.tokens) for each in inserts}
        portions.end(seconds, gives(*range(count), entered=known, ended=count // 2))
        count += len(inserts)
