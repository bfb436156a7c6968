"""What is made ahead of its reader, in a thread of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from uotft.models.inputs import ahead, beside


def test_on_a_cpu_nothing_stands_between() -> None:
    def make(key: int) -> int:
        return key * key

    assert beside(make, "cpu", lambda value: []) is make
    assert list(ahead(make, range(4))) == [0, 1, 4, 9]


def test_on_a_gpu_a_batch_is_made_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete when it is handed over, and its memory not used again before the reader is done."""
    events: list[object] = []

    class Stream:
        def __init__(self, device: object = None) -> None:
            pass

        def wait_stream(self, other: object) -> None:
            events.append(("waits for", other))

        def synchronize(self) -> None:
            events.append("complete")

    class OnDevice:
        def record_stream(self, stream: object) -> None:
            events.append(("used on", stream))

    @contextmanager
    def current(stream: object) -> Iterator[None]:
        events.append("begins")
        yield
        events.append("ends")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the reader's")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", current)
    batch = OnDevice()
    made = beside(
        lambda key: events.append(("make", key)) or batch, "cuda:1", lambda value: [value]
    )
    assert events == [("waits for", "the reader's")]
    assert made(5) is batch
    assert events[1:] == ["begins", ("make", 5), ("used on", "the reader's"), "ends", "complete"]
