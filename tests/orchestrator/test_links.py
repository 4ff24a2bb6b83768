"""What a test of a group's links says about what its ranks have seen."""

from __future__ import annotations

import json

import pytest

from orchestrator.link_verdict import Failed, Measured, RankOutcome, is_well, judge, read_outcome, render
from schemas.node import Node

FINE = {
    "latency_ms": 0.3,
    "latency_p99_ms": 0.9,
    "gigabytes_per_s": 4.2,
    "stress_rounds": 900,
    "stress_worst_ms": 12.0,
    "wrong": 0,
}
NODES = {
    "box": Node(reach="ssh", host="box", addresses={"lan": "10.0.0.1"}),
    "mac": Node(reach="ssh", host="mac", addresses={"lan": "10.0.0.2"}, ports="18100-18120"),
}
RING = {0: 1, 1: 0}


def measured(**changes) -> Measured:
    return Measured(**{**FINE, **changes})


def seen(first, second) -> list[RankOutcome]:
    return [RankOutcome(0, "box", first), RankOutcome(1, "mac", second)]


def test_right_sums_at_a_good_speed_are_well():
    outcomes = seen(measured(), measured())
    findings = judge(outcomes, RING, NODES)
    assert findings == ()
    text = "\n".join(render("titan: 2 ranks over ring", outcomes, findings))
    assert "4.20 GB/s, 33.6 Gbit/s" in text
    assert "works, all sums right" in text


def test_wrong_sums_fail_whatever_the_speed():
    (finding,) = judge(seen(measured(), measured(wrong=3)), RING, NODES)
    assert not is_well([finding])
    assert "rank 1 on mac got 3 wrong sums" in finding.cause


def test_a_peer_that_cannot_be_called_is_named_with_its_address_and_its_ports():
    blocked = Failed(stage="connect", address="10.0.0.2:18120", reason="no answer")
    waiting = Failed(stage="accept", address="10.0.0.2:18120", reason="nobody connected")
    (finding,) = judge(seen(blocked, waiting), RING, NODES)
    assert "rank 0 on box could not connect to rank 1 on mac at 10.0.0.2:18120: no answer" in finding.cause
    assert "open TCP 18100-18120 in the firewall of mac" in finding.mend
    assert "Local Network for the program on box" in finding.mend


def test_the_ranks_that_were_ended_are_not_the_cause():
    lost = Failed(stage="run", reason="[ring] connection to a peer was lost")
    (finding,) = judge(seen(lost, Failed(stage="ended", reason="another rank had failed")), RING, NODES)
    assert "rank 0 on box lost the group" in finding.cause


@pytest.mark.parametrize(("network", "words"), [("tb", "what the files call a direct cable"), ("lan", "this network")])
def test_a_slow_link_is_a_doubt_and_no_failure(network, words):
    nodes = {name: node.model_copy(update={"addresses": {network: "10.0.0.1"}}) for name, node in NODES.items()}
    (finding,) = judge(seen(measured(latency_ms=7.5), measured()), RING, nodes)
    assert is_well([finding])
    assert f"7.5 ms over {words}" in finding.cause
    assert "Wi-Fi" in finding.mend


def test_a_machine_that_is_slow_with_itself_is_not_taken_for_wifi():
    outcomes = [RankOutcome(rank, "box", measured(latency_ms=9.0)) for rank in range(2)]
    assert judge(outcomes, RING, NODES) == ()


def test_what_a_rank_prints_is_read_behind_what_its_libraries_print():
    assert read_outcome(0, f"noise\n{json.dumps(FINE)}\n", "") == measured()
    said = {"stage": "bind", "address": "10.0.0.1:1", "reason": "cannot assign requested address"}
    assert read_outcome(1, json.dumps(said), "") == Failed(**said)


@pytest.mark.parametrize("code", [-14, 142])
def test_an_alarm_says_that_the_collectives_did_not_connect(code):
    found = read_outcome(code, "", "")
    assert isinstance(found, Failed)
    assert found.stage == "join"


def test_a_rank_that_dies_otherwise_shows_its_last_line():
    found = read_outcome(1, "", "Traceback\nModuleNotFoundError: No module named 'mlx'\n")
    assert found == Failed(stage="start", reason="exit code 1: ModuleNotFoundError: No module named 'mlx'")


@pytest.mark.parametrize("code", [-9, 137])
def test_a_rank_that_is_killed_is_the_cause_and_not_those_that_lost_it(code):
    killed = read_outcome(code, "", "")
    assert killed == Failed(stage="killed", reason="ended by signal 9")
    (finding,) = judge(seen(Failed(stage="run", reason="lost"), killed), RING, NODES)
    assert finding.cause == "rank 1 on mac was ended by signal 9"
