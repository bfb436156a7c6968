"""How machines of one training watch each other: who is lost, who is only slow, who has left."""

from __future__ import annotations

import os
import socket
import sys
import time

import pytest

from uotft.core import environment
from uotft.runs import machines
from uotft.runs.machines import Watch

PLACE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def first_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine 0 of 3, with two processes each, which soon lose patience."""
    for name, value in {**PLACE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machines, "SILENT_S", 0.3)
    monkeypatch.setattr(machines, "FAILED_S", 0.1)


class Store(dict):
    """torch's store, as far as a watch needs it."""

    set = dict.__setitem__

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:
        return self[key].encode()


@pytest.fixture
def three() -> list[Watch]:
    store = Store()
    return [Watch(store, own, 3) for own in range(3)]


def test_machines_are_counted_by_their_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.machine() == (0, 3)
    monkeypatch.setenv("RANK", "5")
    assert environment.machine() == (2, 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "6")
    assert environment.machine() is None, "one machine"
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert environment.machine() is None, "a launcher that says nothing about machines"


def test_a_silent_machine_is_lost_and_a_slow_one_is_not(three: list[Watch]) -> None:
    for watch in three * 2:
        watch.exchange()
    assert [watch.lost() for watch in three] == [""] * 3
    until = time.monotonic() + 0.5
    while time.monotonic() < until:  # machine 1 does nothing but say that it lives
        for watch in three[:2]:
            watch.exchange()
        time.sleep(0.02)
    said = three[0].lost()
    name = socket.gethostname()
    assert said.startswith(f"machine 2 ({name}, 127.0.0.1) has not been heard from for 0 s")
    assert "goes on from the last checkpoint" in said
    assert three[1].lost().startswith("machine 2 (")


def test_without_machine_0_nobody_is_heard(three: list[Watch]) -> None:
    time.sleep(0.4)
    assert three[2].lost().startswith("machine 0 (127.0.0.1) has not been heard")


def test_a_machine_that_has_left_is_not_missed(three: list[Watch]) -> None:
    three[1].state = machines.LEFT
    for watch in (*three[1:], three[0]):
        watch.exchange()
    three[0].since[2] = time.monotonic() + 60
    time.sleep(0.4)
    assert three[0].lost() == ""


def test_a_machine_that_failed_says_why(three: list[Watch]) -> None:
    three[1].state, three[1].why = machines.FAILED, "the disk is full"
    three[1].exchange()
    three[0].exchange()
    assert three[0].lost() == "", "first our own worker may find the same mistake"
    time.sleep(0.2)
    assert three[0].lost().endswith(") has failed: the disk is full")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its interfaces")
def test_the_interface_is_the_one_that_reaches_machine_0(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "unset")
        monkeypatch.delenv(name)
    assert machines.interface("192.0.2.1") == "", "no interface has it"
    assert machines.own_address("no host of this name") == ""
    machines.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "chosen")
    machines.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "chosen"
