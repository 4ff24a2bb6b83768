"""What is known of a prompt is not computed again, and never changes an answer."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.worker.batch import Batch
from runtime.worker.compute import Compute
from runtime.worker.model import LoadedModel, load
from runtime.worker.prompt_cache import PromptCache, _Trie
from runtime.worker.request import Sampling
from runtime.worker.steps import Commands, Insert
from tests.runtime.worker.driving import Run, asking, prompt
from tests.runtime.worker.tiny import LFM2, write_model

GREEDY = Sampling(temperature=0)
SIZE = 1 << 26
KINDS: dict[str, dict[str, object]] = {
    "llama": {},
    # Windows of 16 tokens: caches that turn round and cannot be shortened any more.
    "gemma3_text": {"sliding_window": 16, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    # Convolutions: a state that knows only its last tokens.
    "lfm2": LFM2,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Return what loads a tiny model of a kind, once."""
    known: dict[str, LoadedModel] = {}

    def get(kind: str) -> LoadedModel:
        if kind not in known:
            place = write_model(tmp_path_factory.mktemp(kind) / "model", kind, **KINDS[kind])
            known[kind] = load(place, None, lambda _: None)
        return known[kind]

    return get


def running(model: LoadedModel, limit_bytes: int = SIZE, limit: int = 4) -> Run:
    return Run(Compute(model, kept=PromptCache(limit_bytes)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_turn_computes_only_what_is_new(models: Callable[[str], LoadedModel], kind: str) -> None:
    model = models(kind)
    run, bare = running(model), running(model, 0)
    first = prompt(model, 80)
    (answer,) = run.finish(asking(1, first))
    second = [*first, *answer, *prompt(model, 9, seed=2)]
    assert run.finish(asking(2, second)) == bare.finish(asking(2, second))
    # Nothing is computed behind the last token that was allowed.
    assert run.known == {1: 0, 2: len(first) + len(answer) - 1}
    assert bare.known == {2: 0}
    gauges = run.compute.gauges
    assert (gauges.lookups, gauges.hits, gauges.cached_tokens) == (2, 1, 85)


def test_a_prompt_that_was_answered_before_costs_its_last_token(models: Callable[[str], LoadedModel]) -> None:
    model = models("llama")
    run = running(model)
    first = prompt(model, 50)
    assert run.finish(asking(1, first)) == run.finish(asking(2, first))
    assert run.known[2] == 49
    assert run.finish(asking(3, first[:20]))[0] == running(model, 0).finish(asking(3, first[:20]))[0]
    assert run.known[3] == 19


def test_a_short_beginning_of_a_long_entry_is_found_without_the_bytes_of_the_rest(
    models: Callable[[str], LoadedModel],
) -> None:
    model = models("llama")
    run = running(model)
    tokens = prompt(model, 900)
    run.finish(asking(1, tokens))
    kept = run.compute.gauges.kept_bytes
    cache = run.compute.kept if isinstance(run.compute, Compute) else PromptCache(0)
    caches, known = cache.find([*tokens[:5], 7])
    assert caches is not None
    assert known == 5
    assert sum(layer.nbytes for layer in caches) * 3 < kept == run.compute.gauges.kept_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_known_up_to_its_last_turn_also_where_caches_cannot_be_shortened(
    models: Callable[[str], LoadedModel], kind: str
) -> None:
    model = models(kind)
    (end,) = model.end_tokens
    run, bare = running(model), running(model, 0)
    turn = [*prompt(model, 63), end]
    run.finish(asking(1, [*turn, *prompt(model, 5, seed=4)]))
    # The answer was rewritten on its way, as templates do that leave out the reasoning.
    second = [*turn, *prompt(model, 30, seed=3)]
    assert run.finish(asking(2, second)) == bare.finish(asking(2, second))
    assert run.known[2] == 64


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_history_of_requests_changes_a_greedy_answer(
    models: Callable[[str], LoadedModel], kind: str, data: st.DataObject
) -> None:
    """Prompts that begin alike, in batches, removed in any state, with a cache that is too small for all of them."""
    model = models(kind)
    run, bare = running(model, data.draw(st.sampled_from([SIZE, 60_000, 20_000]))), running(model, 0)
    (turn,) = model.end_tokens
    trunks = [[*prompt(model, 40, seed), turn, *prompt(model, 50, seed)] for seed in (1, 2)]
    job_id = 0
    seen: dict[int, Insert] = {}
    for _ in range(data.draw(st.integers(2, 6))):
        inserts = []
        for _ in range(data.draw(st.integers(1, 3))):
            job_id += 1
            told = [[*insert.tokens, *run.answers.get(each, [])] for each, insert in seen.items()]
            trunk = data.draw(st.sampled_from([*trunks, *told]))
            end = prompt(model, data.draw(st.integers(0, 5)), job_id)
            tokens = trunk[: data.draw(st.integers(1, len(trunk)))] + end
            inserts.append(asking(job_id, tokens, data.draw(st.integers(1, 5))))
        seen |= {insert.id: insert for insert in inserts}
        run.step(*inserts)
        for _ in range(data.draw(st.integers(0, 4))):
            run.step()
        leaving = data.draw(st.sampled_from([(), (job_id,)]))
        run.step(removes=tuple(each for each in leaving if each in run.open))
    while run.open:
        run.step()
    for each, insert in seen.items():
        answer = run.answers.get(each, [])
        (expected,) = bare.finish(insert)
        assert answer == expected[: len(answer)]
        assert run.known[each] < len(insert.tokens)


def test_what_is_kept_stays_within_its_bytes_with_the_running_requests_counted(
    models: Callable[[str], LoadedModel],
) -> None:
    model = models("llama")
    limit = 400_000
    run = running(model, limit)
    for job_id in range(1, 12):
        run.finish(asking(job_id, prompt(model, 100, job_id)))
        gauges = run.compute.gauges
        assert 0 < gauges.kept_bytes <= limit
    assert gauges.kept < 11
    # One long request takes it all: nothing is kept beside it.
    run.step(asking(20, prompt(model, 900, 20), 200))
    for _ in range(900 // Commands().prefill_tokens + 80):
        run.step()
    gauges = run.compute.gauges
    assert gauges.kv_bytes > limit
    assert (gauges.kept, gauges.kept_bytes) == (0, 0)


def test_choices_share_one_computation_of_their_prompt(models: Callable[[str], LoadedModel]) -> None:
    for kind, limit_bytes in [("llama", 0), ("lfm2", 0), ("llama", SIZE), ("gemma3_text", SIZE)]:
        model = models(kind)
        run, bare = running(model, limit_bytes), running(model, 0)
        tokens = prompt(model, 100)
        wanted = [Insert(job_id, tokens, 6, Sampling(temperature=1, seed=job_id), shares=1) for job_id in range(1, 5)]
        alone = [bare.finish(Insert(each.id, tokens, 6, each.sampling))[0] for each in wanted]
        assert run.finish(*wanted) == alone
        assert run.known == {1: 0, 2: 99, 3: 99, 4: 99}
        assert len({tuple(answer) for answer in alone}) > 1


def test_choices_that_find_no_place_at_once_take_the_prompt_from_the_cache(
    models: Callable[[str], LoadedModel],
) -> None:
    model = models("lfm2")
    run = running(model)
    tokens = prompt(model, 100)
    first, late = (Insert(job_id, tokens, 6, GREEDY, shares=1) for job_id in (1, 2))
    answers = [*run.finish(first), *run.finish(late)]
    assert answers[0] == answers[1]
    assert run.known == {1: 0, 2: 99}


def test_who_waits_for_a_prompt_reads_it_when_the_first_one_leaves(models: Callable[[str], LoadedModel]) -> None:
    model = models("llama")
    run = running(model, 0)
    tokens = prompt(model, 100)
    run.step(*(Insert(job_id, tokens, 6, GREEDY, shares=1) for job_id in (1, 2, 3)))
    run.step(removes=(1, 3))
    while run.open:
        run.step()
    assert run.answers == {2: running(model, 0).finish(asking(9, tokens))[0]}


@given(
    entries=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=8),
    removed=st.integers(0, 3),
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=7),
)
def test_the_nearest_entries_are_those_that_begin_alike(
    entries: list[list[int]], removed: int, tokens: list[int]
) -> None:
    trie = _Trie()
    for entry in entries:
        trie.add("m", entry, "value")
    kept = {tuple(entry) for entry in entries}
    for entry in sorted(kept)[:removed]:
        trie.pop("m", list(entry))
        kept.remove(entry)
    found = trie.search("m", tokens)
    if tuple(tokens) in kept:
        assert found.exact == tokens
        return
    assert found.exact is None
    begins = [entry for entry in kept if tuple(tokens[: len(entry)]) == entry]
    assert tuple(found.shorter or ()) == max(begins, key=len, default=())
    common = max((common_of(entry, tokens) for entry in kept), default=0)
    assert found.common_prefix == common
    if common:
        assert tuple(found.longer) in kept
        assert common_of(found.longer, tokens) == common


def common_of(first: Sequence[int], second: Sequence[int]) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_read_of_a_prompt_that_is_cancelled_is_known(models: Callable[[str], LoadedModel], kind: str) -> None:
    model = models(kind)
    run = running(model)
    tokens = prompt(model, 5 * Commands().prefill_tokens)
    run.step(asking(1, tokens))
    run.step()
    run.step(removes=(1,))
    assert run.finish(asking(2, tokens)) == running(model, 0).finish(asking(2, tokens))
    assert 0 < run.known[2] < len(tokens) - 1


def test_the_warm_up_is_neither_looked_up_nor_kept(models: Callable[[str], LoadedModel]) -> None:
    model = models("llama")
    compute = Compute(model, kept=PromptCache(SIZE))
    Batch(model, 4, compute).warm_up()
    assert (compute.gauges.lookups, compute.gauges.kept) == (0, 0)


def test_beside_a_rank_that_cannot_shorten_what_it_keeps_none_does(models: Callable[[str], LoadedModel]) -> None:
    model = models("llama")
    (end,) = model.end_tokens
    # Sizes are agreed on as the largest on any rank; 1 is what the other says where this one says 0.
    kept = PromptCache(SIZE, agree=lambda sizes: [max(1, size) for size in sizes])
    run = Run(Compute(model, kept=kept))
    turn = [*prompt(model, 63), end]
    run.finish(asking(1, [*turn, *prompt(model, 5, seed=4)]))
    run.finish(asking(2, [*turn, *prompt(model, 30, seed=3)]))
    run.finish(asking(3, turn[:30]))
    assert run.known == {1: 0, 2: 64, 3: 0}


def test_after_a_failure_nothing_is_known(models: Callable[[str], LoadedModel]) -> None:
    model = models("llama")
    run = running(model)
    run.finish(asking(1, prompt(model, 50)))
    run.compute.recover()
    assert run.compute.gauges.kept_bytes == 0
    run.finish(asking(2, prompt(model, 50)))
    assert run.known[2] == 0
