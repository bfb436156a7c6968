"""The time of a training, measured on this machine before it starts."""

from __future__ import annotations

import socket
from dataclasses import astuple
from math import isfinite

import pytest

from support.child_processes import forget_accelerator
from uotft.core.errors import UserError
from uotft.models import weights
from uotft.runs import estimate
from uotft.runs.estimate import Speed


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "TRAIN_S", 0.05)
    monkeypatch.setattr(estimate, "FORWARD_S", 0.05)
    monkeypatch.setattr(estimate, "DECODE_S", 0.05)
    monkeypatch.setattr(estimate, "LONG_S", 0.01)


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "small_resnet", "widths": [4, 8]},
        {"name": "resnet18"},  # weights: download
        {"name": "resnet18", "weights": "a file that is not here.pth"},
    ],
)
def test_every_speed_is_a_number_and_nothing_is_fetched(
    backbone: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it touches the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(weights, "download", refuse)
    monkeypatch.setattr(weights, "read", refuse)
    try:
        found = estimate.measured(backbone, 32, 16, 1, "no")
    finally:
        forget_accelerator()
    assert all(isfinite(speed) and speed > 0 for speed in astuple(found)[:3])
    assert found.threads == 1


def test_a_process_of_its_own_measures() -> None:
    found = estimate.measure({"name": "small_resnet", "widths": [4]}, 16, 4, threads=1)
    assert found.train > 0
    with pytest.raises(UserError, match="cannot be measured: backbone.name: got 'resnet19'"):
        estimate.measure({"name": "resnet19"}, 16, 4)


def test_the_parts_add_up_and_are_said_as_a_person_does() -> None:
    speed = Speed(train=10, forward=50, decode=100, device="cpu", threads=2)
    assert estimate.seconds(speed, decoded=1000) == 10
    assert estimate.seconds(speed, evaluated=500) == 10
    start = estimate.STARTING_S
    assert estimate.seconds(speed, embedded=500) == start + 10
    assert estimate.seconds(speed, trained=300, embedded=500) == 2 * start + 40
    assert estimate.about(7790) == "about 2 h 10 min"
    assert estimate.about(40) == "about 40 s"
    assert estimate.about(20 * 60) == "about 20 min"
