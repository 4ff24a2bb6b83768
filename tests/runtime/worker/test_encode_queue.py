"""Which rows are computed together: everything once, nobody last for ever, little padding."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.worker.encode.queue import Pick, RowQueue, bucket

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=40)


@given(st.integers(1, 200_000))
def test_a_bucket_holds_its_length_with_a_third_of_padding_at_most(length: int) -> None:
    size = bucket(length)
    assert length <= size
    assert size == 16 or size < length * 1.5


@given(st.lists(LENGTHS, min_size=1, max_size=6), st.integers(1, 16), st.integers(16, 4000))
def test_every_row_is_computed_once_in_batches_that_fit(jobs: list[list[int]], max_rows: int, max_tokens: int) -> None:
    queue = RowQueue(max_rows, max_tokens)
    for number, lengths in enumerate(jobs):
        queue.add(number, lengths)
    seen: list[Pick] = []
    while queue:
        picks = queue.pop()
        sizes = [bucket(jobs[pick.job_id][pick.index]) for pick in picks]
        assert len(set(sizes)) == 1
        assert len(picks) <= max_rows
        assert len(picks) == 1 or sum(sizes) <= max_tokens
        seen += picks
    assert len(seen) == len(set(seen)) == sum(len(lengths) for lengths in jobs)


@given(LENGTHS)
def test_a_short_request_waits_for_one_batch_of_a_long_one(lengths: list[int]) -> None:
    queue = RowQueue(4, 4000)
    queue.add(1, [100] * 500)
    queue.add(2, lengths)
    queue.pop()
    assert 2 in {pick.job_id for pick in queue.pop()}


def test_a_request_that_left_is_not_computed() -> None:
    queue = RowQueue(4, 4000)
    queue.add(1, [10] * 9)
    queue.add(2, [10])
    queue.remove(1)
    queue.remove(7)
    assert queue.pop() == [Pick(2, 0)]
    assert not queue
