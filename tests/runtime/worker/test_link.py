"""The call that goes ahead of a test of links: it says which peer cannot be reached."""

from __future__ import annotations

import threading

import pytest

from runtime.worker.link import DialError, dial
from tests.ports import free_port


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


def test_ranks_that_call_each_other_go_on():
    first, second = free_address(), free_address()
    peer = threading.Thread(target=dial, args=(second, 1, first))
    peer.start()
    dial(first, 1, second)
    peer.join(120)
    assert not peer.is_alive()


def test_a_peer_that_refuses_is_named():
    address = free_address()
    with pytest.raises(DialError) as caught:
        dial(free_address(), 1, address, within_s=0.2)
    assert (caught.value.stage, caught.value.address, caught.value.reason) == ("connect", address, "connection refused")


def test_an_address_of_another_machine_cannot_be_listened_on():
    with pytest.raises(DialError) as caught:
        dial("192.0.2.1:18100", 1, None, within_s=0.2)
    assert caught.value.stage == "bind"
