"""What ranks say to each other, how long a round may take, and which arguments make a group."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from runtime.worker import arguments
from runtime.worker.group import wire
from runtime.worker.group.control import new_keys
from runtime.worker.group.pace import CEILING_S, FIRST_STEP_S, FLOOR_S, RECENT, WARM_UP_S, Pace
from runtime.worker.request import Sampling
from runtime.worker.steps import Commands, Insert, Step, Token
from schemas.messages import WorkerMemory, WorkerVersions

SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=40, min_p=0.1, seed=(1 << 63) - 1, frequency_penalty=1.5)
MEMORY = WorkerMemory(
    active_bytes=1, peak_bytes=2, cache_bytes=3, model_bytes=4, kv_bytes=5, rss_bytes=None, rss_peak_bytes=6
)
IDENTITY = wire.Identity(
    versions=WorkerVersions(orchestrate="1", python="3.11.7", mlx="0.32.4", mlx_lm="0.32.2"),
    code="c0de",
    files={"config.json": "aa", "model.safetensors": "bb"},
)
SHAPE = wire.Shape(
    size=3, backend="ring", strategy="pipeline", split=(3, 2, 1), max_batch=8, max_context=None, prompt_cache_bytes=1
)
HELLO = wire.Hello(rank=0, launch="l", shape=SHAPE, identity=IDENTITY)


@pytest.mark.parametrize(
    "message",
    [
        HELLO,
        wire.Welcome(),
        wire.Loaded(),
        wire.round_of(7, Commands([Insert(1, [5, 6, 7], 9, SAMPLING)], [2, 3])),
        wire.Probe(number=8, numbers=1023, sums=5),
        wire.Done(number=7, digest="00ff"),
        wire.Done(number=8, digest=wire.RIGHT, seconds=0.001),
        wire.Heartbeat(phase="loading", progress=0.5, round=0, memory=MEMORY),
        wire.Failed(code=76, message="no memory"),
        wire.Leaving(),
        wire.Shutdown(code=70, message="rank 1 was lost"),
    ],
    ids=lambda message: message.kind,
)
def test_a_message_arrives_as_it_was_sent(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\x80\x04", b"[]", b'{"kind": "reboot"}', b'{"kind": "welcome", "x": 1}',
        b'{"kind": "done", "number": "7"}',
        b'{"kind": "round", "number": 1, "removes": [], "inserts": [{"id": 1}]}',
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(text: bytes) -> None:
    with pytest.raises(ValidationError):
        wire.decode(text)


def test_a_round_asks_for_the_commands_that_it_was_made_of() -> None:
    rich = Insert(1, [5, 6, 7], 9, SAMPLING, logprobs=2, shares=1, constraint="{}")
    commands = Commands((rich, Insert(2, [1], 1, Sampling(logit_bias=((3, -1.5),)))), (3,))
    assert wire.commands_of(wire.round_of(1, commands)) == commands


def test_the_digest_of_a_round_tells_tokens_ends_and_refusals_apart() -> None:
    steps = [
        Step([], []),
        Step([Token(1, 5, None)], []),
        Step([Token(1, 6, None)], []),
        Step([Token(2, 5, None)], []),
        Step([Token(1, 5, "stop")], []),
        Step([Token(1, 5, None)], [3]),
        Step([Token(1, 5, None)], [], {1: 0}),
        Step([Token(1, 5, None)], [], {1: 2}),
        Step([Token(1, 5, None), Token(2, 5, None)], []),
    ]
    assert len({wire.digest(step) for step in steps}) == len(steps)
    assert wire.digest(Step([Token(1, 5, None, ValueError())], [])) == wire.digest(steps[1])
    assert wire.digest(replace(steps[1], has_computed=False)) == wire.digest(steps[1])


def hello(**identity: object) -> wire.Hello:
    """Return the hello of rank 1 with another identity."""
    return HELLO.model_copy(update={"rank": 1, "identity": IDENTITY.model_copy(update=identity)})


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (hello(), []),
        (hello(versions=IDENTITY.versions.model_copy(update={"python": "3.13.1", "orchestrate": "unknown"})), []),
        (hello(versions=IDENTITY.versions.model_copy(update={"mlx": "1.0"})), ["mlx is 1.0, that of rank 0 is 0.32.4"]),
        (hello(code="ff"), ["its orchestrate has other sources"]),
        (hello(files={"config.json": "aa"}), ["it has no model.safetensors"]),
        (hello(files={**IDENTITY.files, "x.jinja": "cc"}), ["it has a x.jinja that rank 0 has not"]),
        (hello(files={**IDENTITY.files, "config.json": "cc"}), ["its config.json has other contents"]),
        (HELLO.model_copy(update={"launch": "m", "protocol": 99}), ["it speaks protocol 99", "another launch"]),
        (HELLO.model_copy(update={"shape": SHAPE.model_copy(update={"split": None})}), ["its split is None"]),
    ],
)  # fmt: skip
def test_what_differs_is_named(theirs: wire.Hello, words: list[str]) -> None:
    found = wire.differences(HELLO, theirs)
    assert len(found) == len(words)
    for difference, expected in zip(found, words, strict=True):
        assert expected in difference


def insert(job_id: int, length: int) -> Insert:
    return Insert(job_id, [1] * length, 5, Sampling())


def doing(*inserts: Insert, removes: Sequence[int] = ()) -> Commands:
    return Commands(inserts, removes, prefill_tokens=100)


def gives(tokens: int, known: dict[int, int] | None = None) -> Step:
    """Return what a round gave: tokens, and who entered with how much of its prompt known."""
    return Step([Token(0, 1, None)] * tokens, [], known or {})


def warm(token_s: float) -> Pace:
    """Return a pace after the first token, which took two rounds."""
    pace = Pace()
    assert pace.begin(Commands([insert(0, 1)])) == WARM_UP_S
    pace.end(0.0, gives(0, known={0: 0}))
    assert pace.begin(Commands()) == WARM_UP_S
    pace.end(token_s, gives(1))
    return pace


def test_rounds_that_generate_have_the_floor_or_ten_times_the_slowest() -> None:
    pace = warm(0.1)
    for duration_s in (0.1, 4.0, 0.1):
        pace.begin(doing())
        pace.end(duration_s, gives(1))
    assert pace.begin(doing()) == 40.0
    for _ in range(RECENT):
        pace.end(0.1, gives(1))
    assert pace.begin(doing()) == FLOOR_S


def test_a_slow_first_token_gives_the_next_ones_some_time() -> None:
    assert warm(100.0).begin(doing()) == 10 * FIRST_STEP_S


def test_reading_prompts_has_time_in_proportion_to_its_tokens() -> None:
    pace = warm(0.1)
    assert pace.begin(doing(insert(1, 250), insert(2, 30))) == pytest.approx(10 * (0.1 + 0.1 * 130))
    pace.end(26.0, gives(0, known={1: 0, 2: 0}))  # 0.2 s a token
    assert pace.begin(doing()) == pytest.approx(10 * (0.1 + 0.2 * 100))
    pace.end(10.0, gives(0))
    assert pace.begin(doing()) == pytest.approx(10 * (0.1 + 0.18 * 50))
    pace.end(5.0, gives(0))
    assert pace.begin(doing()) == FLOOR_S


def test_a_request_that_left_is_not_read_any_more_and_no_round_has_for_ever() -> None:
    pace = warm(60.0)
    assert pace.begin(doing(insert(1, 1000))) == CEILING_S
    pace.end(1.0, gives(0, known={1: 0}))
    assert pace.begin(doing(removes=[1])) == 10 * FIRST_STEP_S


def test_what_is_known_of_a_prompt_is_no_work_and_does_not_make_reading_look_fast() -> None:
    pace = warm(0.1)
    pace.begin(doing(insert(1, 100_000)))
    pace.end(5.0, gives(0, known={1: 99_950}))  # 50 tokens, 0.1 s each
    pace.begin(doing(insert(2, 100)))
    pace.end(10.0, gives(0, known={2: 0}))
    assert pace.begin(doing(insert(3, 100))) == pytest.approx(10 * (0.1 + 0.1 * 100))


def test_who_waits_for_the_prompt_of_another_reads_nothing() -> None:
    pace = warm(0.1)
    first, second = (replace(insert(job_id, 200), shares=1) for job_id in (1, 2))
    assert pace.begin(doing(first, second)) == pytest.approx(10 * (0.1 + 0.1 * 100))
    pace.end(20.0, gives(0, known={1: 0}))
    pace.begin(doing())
    pace.end(20.0, gives(0))
    pace.begin(doing())
    pace.end(0.3, gives(0, known={2: 199}))
    assert pace.begin(doing()) == FLOOR_S


KEYS = new_keys(2)


def settings(monkeypatch: pytest.MonkeyPatch, place: Path, *more: str, **variables: str) -> arguments.Settings:
    """Parse the arguments of a rank that would be fine without `more` and `variables`."""
    hosts = place / "hosts.json"
    hosts.write_text(json.dumps([["127.0.0.1:1"], ["127.0.0.1:2"]]))
    environment = {
        "MLX_RANK": "1",
        "MLX_HOSTFILE": str(hosts),
        arguments.SECRET_VARIABLE: KEYS[1][1],
        arguments.PEERS_VARIABLE: " ".join(public for public, _ in KEYS),
        **variables,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    group = ["--size", "2", "--rank", "1", "--backend", "ring", "--strategy", "pipeline", "--launch", "l"]
    return arguments.parse(["--model-dir", "m", "--name", "n", *group, "--control", "127.0.0.1:9", *more])


def test_a_rank_above_0_needs_no_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group = settings(monkeypatch, tmp_path, "--split", "12,10").group
    assert group is not None
    assert (group.rank, group.size, group.split, group.peers) == (1, 2, (12, 10), tuple(public for public, _ in KEYS))
    assert KEYS[1][1] not in repr(group)


@pytest.mark.parametrize(
    ("more", "variables", "words"),
    [
        (["--rank", "2"], {}, "--rank 2 is not below --size 2"),
        (["--rank", "0"], {"MLX_RANK": "0", arguments.SECRET_VARIABLE: KEYS[0][1]}, "--port is missing"),
        (["--control", "0.0.0.0:9"], {}, "is every address"),
        (["--control", "[::]:9"], {}, "is every address"),
        (["--control", "host:9"], {}, "must be IP:PORT"),
        (["--control", "127.0.0.1:99999"], {}, "must have a port"),
        (["--port", "70000"], {}, "argument --port: must be between 0 and 65535"),
        (["--split", "1,2,3"], {}, "--split has 3 shares for 2 ranks"),
        (["--split", "1,0"], {}, "at least 1"),
        (["--split", "1,2", "--strategy", "tensor"], {}, "--split goes with --strategy pipeline only"),
        (["--launch", ""], {}, "needs --launch"),
        ([], {"MLX_RANK": "0"}, "MLX_RANK is 0, --rank is 1"),
        ([], {"MLX_HOSTFILE": "/nowhere"}, "MLX_HOSTFILE names no file: /nowhere"),
        ([], {"MLX_HOSTFILE": ""}, "--backend ring needs MLX_HOSTFILE to be set"),
        (["--backend", "jaccl"], {}, "--backend jaccl needs MLX_IBV_DEVICES to be set"),
        ([], {arguments.SECRET_VARIABLE: KEYS[0][1]}, "does not belong to key 1"),
        ([], {arguments.SECRET_VARIABLE: "secret"}, "is no CURVE key"),
        ([], {arguments.PEERS_VARIABLE: KEYS[0][0]}, "must hold 2 different public keys; it has 1"),
    ],
)
def test_arguments_that_make_no_group_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    variables: dict[str, str],
    words: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        settings(monkeypatch, tmp_path, *more, **variables)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert words in told
    assert KEYS[0][1] not in told
    assert KEYS[1][1] not in told
