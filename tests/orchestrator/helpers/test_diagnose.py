"""The usual mistakes, told apart."""

from __future__ import annotations

import pytest

from orchestrator.helpers.diagnose import Evidence, diagnose
from orchestrator.helpers.silence import of_error
from orchestrator.observed import HelperSeen, HelperSilent
from schemas.stack import Helper

OLLAMA = HelperSeen("ollama", "0.5.7")
HELPER = Helper.model_validate({"url": "http://10.0.0.9:11434", "api": "ollama", "models": {"m": {}}})


def findings(kind, *, evidence=None, helper=HELPER, is_macos=False):
    return diagnose("rtx", helper, HelperSilent("why", kind), evidence or Evidence(), is_macos=is_macos)


@pytest.mark.parametrize(
    ("kind", "evidence", "cause", "mend"),
    [
        ("refused", Evidence(is_open_on_its_loopback=True), "listens on 127.0.0.1:11434 only", "OLLAMA_HOST=0.0.0.0"),
        ("refused", Evidence(elsewhere={8080: OLLAMA}), "ollama 0.5.7 answers at 10.0.0.9:8080", "helpers.rtx.url"),
        ("refused", Evidence(is_open_on_its_loopback=False), "nothing listens on port 11434", "start the server"),
        ("refused", Evidence(), "nothing that can be reached listens", "curl http://127.0.0.1:11434/"),
        ("no answer", Evidence(is_host_up=True), "is up, but drops", "sudo ufw allow 11434/tcp"),
        ("no answer", Evidence(is_open_on_its_loopback=True), "is up, but drops", "New-NetFirewallRule"),
        ("no answer", Evidence(is_host_up=False), "nothing at 10.0.0.9 answers", "check that it is on"),
        ("no route", Evidence(is_host_up=True), "its firewall rejects port 11434", "firewall-cmd"),
        ("no route", Evidence(is_host_up=False), "no route to 10.0.0.9", "in a network"),
        ("unknown host", Evidence(), "no address is known", "helpers.rtx.url"),
        ("tls", Evidence(), "why", "http://"),
        ("key", Evidence(), "why", "helpers.rtx.key"),
        ("loading", Evidence(), "why", "wait"),
        ("broken", Evidence(), "why", "see the log"),
    ],
)
def test_each_mistake_has_its_cause_and_its_mend(kind, evidence, cause, mend):
    (found,) = findings(kind, evidence=evidence)
    assert cause in found.cause
    assert mend in found.mend


def test_lan_privacy_is_named_on_macos_only_while_the_host_is_silent():
    (found,) = findings("no route", is_macos=True)
    assert "Local Network" in found.mend
    (found,) = findings("no route", evidence=Evidence(is_host_up=True), is_macos=True)
    assert "firewall" in found.cause


def test_a_stranger_at_the_port_is_told_with_the_engine_next_to_it():
    stranger, other = findings("stranger", evidence=Evidence(elsewhere={8000: HelperSeen("vllm")}))
    assert stranger.cause == "another program has port 11434 of 10.0.0.9"
    assert other.cause == "vllm answers at 10.0.0.9:8000 (another kind than declared)"


def test_the_declared_kind_comes_before_others():
    found = findings("refused", evidence=Evidence(elsewhere={8000: HelperSeen("vllm"), 8080: OLLAMA}))
    assert [finding.cause.split()[0] for finding in found] == ["ollama", "vllm"]


def test_a_helper_that_serves_as_declared_has_no_finding():
    assert (
        diagnose("rtx", HELPER, HelperSeen("ollama", None, frozenset({"m:latest"})), Evidence(), is_macos=False) == ()
    )


def test_a_mismatch_is_a_finding():
    (found,) = diagnose("rtx", HELPER, HelperSeen("vllm", None, frozenset({"m"})), Evidence(), is_macos=False)
    assert found.cause == "helpers.rtx.api says ollama, but vllm answers at http://10.0.0.9:11434"
    assert found.mend == "write `api: openai` or correct the URL"


@pytest.mark.parametrize(
    ("number", "kind"), [(111, "refused"), (113, "no route"), (65, "no route"), (110, "no answer"), (None, "broken")]
)
def test_errors_of_the_system_are_sorted(number, kind):
    assert of_error("http://a:1", number, "said", is_macos=False).kind == kind


def test_macos_names_its_privacy_settings():
    assert "privacy" in of_error("http://a:1", 65, "", is_macos=True).reason
    assert "privacy" not in of_error("http://a:1", 65, "", is_macos=False).reason
