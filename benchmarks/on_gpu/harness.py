"""Runs a part in a process of its own, and takes its figures one by one.

A process of its own, because an error in a CUDA kernel ends all later work of its process, and
because a part that hangs can be killed. It is a fork, so what the parent has imported is there at
once. The parent itself never touches the GPU, which a fork could not use after that.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from on_gpu import Part

REPEATS = 5
GRACE = 10.0  # seconds that a part may take beyond its limit before it is killed

Sides = dict[str, Callable[[], float]]  # {side: a turn, which returns its figure}


@dataclass
class Bench:
    """What a part is given: the device, its time, and the way to hand over what it finds."""

    device: str
    tiny: bool
    until: float
    send: Callable[[dict[str, Any]], None]

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")

    def left(self) -> float:
        """Seconds that this part still has."""
        return self.until - time.monotonic()

    def wait(self) -> None:
        """Until the GPU has done all that it was given: before each look at a clock."""
        import torch

        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """How long ``work`` takes, the GPU's part of it included."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def note(self, text: str) -> None:
        """A line for the reader."""
        self.send({"kind": "note", "text": text})

    def check(self, name: str, good: bool, found: str) -> None:
        """Whether something holds, and what was found."""
        self.send({"kind": "check", "name": name, "good": bool(good), "found": found})

    def compare(
        self,
        name: str,
        sides: Sides,
        *,
        unit: str,
        rate: bool = False,
        aim: float | None = None,
        aim_ratio: float | None = None,
    ) -> None:
        """The figure of the first side beside its rival's, the second's, as medians of turns.

        Sides take turns; the first turn, which warms up, is not read. ``rate``: more is better.
        A rival that fails is left out with a note. Errors of the first side are recorded.
        """
        figure: dict[str, Any] = {"kind": "figure", "name": name, "unit": unit, "rate": rate}
        figure |= {"aim": aim, "aim_ratio": aim_ratio, "sides": [*sides]}
        try:
            values = self._turns(dict(sides))
        except Exception as error:  # noqa: BLE001 (the next figure is still to be measured)
            self.send(figure | {"error": short(error)})
            return
        self.send(figure | summary(values, [*sides], rate))

    def _turns(self, sides: Sides) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in sides}
        first, start = next(iter(sides)), time.monotonic()
        for name in [*sides]:
            try:
                sides[name]()
            except Exception as error:  # noqa: BLE001
                if name == first:
                    raise
                self.note(f"{name} left out: {short(error)}")
                del sides[name], found[name]
            self._free()
        one = time.monotonic() - start
        for turn in range(2 if self.tiny else REPEATS):
            if turn and self.left() < one:
                self.note(f"{first}: time for {turn} turns only")
                break
            for name in [*sides] if turn % 2 else [*reversed(sides)]:
                found[name].append(sides[name]())
        return found

    def _free(self) -> None:
        """Give memory that nothing uses back to the GPU: a rival shall find as much as we did."""
        import gc

        import torch

        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()


def summary(values: dict[str, list[float]], sides: list[str], rate: bool) -> dict[str, Any]:
    """Medians, and the ratio: how many times as fast as the rival the first side is."""
    ours, rival = values[sides[0]], values.get(sides[1]) if len(sides) > 1 else None
    ratio = None
    if rival:
        pairs = zip(ours, rival, strict=True)
        ratio = statistics.median(a / b if rate else b / a for a, b in pairs)
    medians = {name: statistics.median(found) for name, found in values.items()}
    return {"values": values, "medians": medians, "ratio": ratio, "turns": len(ours)}


def skipped(part: Part, why: str) -> dict[str, Any]:
    """The record of a part that was not run."""
    record: dict[str, Any] = {"name": part.name, "figures": [], "checks": [], "notes": []}
    return record | {"status": "not run", "error": why, "seconds": 0.0}


def run_part(part: Part, device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """Run one part in a fork; its record, whatever happens to it."""
    context = multiprocessing.get_context("fork" if _forks() else "spawn")
    ours, its = context.Pipe(duplex=False)
    start = time.monotonic()
    child = context.Process(target=_child, args=(part, device, tiny, seconds, its))
    child.start()
    its.close()
    record = skipped(part, "") | {"status": "ok"}
    done = _collect(ours, record, start + seconds + GRACE)
    if done is False:
        record |= {"status": "failed", "error": f"took longer than {seconds:.0f} s"}
    else:
        child.join(GRACE)
    if child.is_alive():
        _kill(child.pid)
        child.join()
    if done is None:
        record |= {"status": "failed", "error": f"its process ended with code {child.exitcode}"}
    bad = [f["name"] for f in record["figures"] if f.get("error")]
    bad += [c["name"] for c in record["checks"] if not c["good"]]
    if bad and not record["error"]:
        record |= {"status": "failed", "error": f"see {', '.join(bad)}"}
    record["seconds"] = round(time.monotonic() - start, 1)
    return record


@cache
def _forks() -> bool:
    """Whether a fork of this process can use the GPU: not if an import has looked for one."""
    pid = os.fork()
    if not pid:
        torch = sys.modules.get("torch")
        os._exit(int(torch is not None and torch.cuda._is_in_bad_fork()))
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _collect(pipe: Connection, record: dict[str, Any], until: float) -> bool | None:
    """Put what a part sends into its record; whether it came to its end, None if it is gone."""
    places = {"figure": "figures", "check": "checks", "note": "notes"}
    while pipe.poll(max(0.0, until - time.monotonic())):
        try:
            sent = pipe.recv()
        except EOFError:
            return None
        kind = sent.pop("kind")
        if kind == "end":
            record.update(sent)
            return True
        if kind == "facts":
            record["facts"] = sent
        else:
            record[places[kind]].append(sent["text"] if kind == "note" else sent)
    return False


def _child(part: Part, device: str, tiny: bool, seconds: float, pipe: Connection) -> None:
    """Do the work of a part, in its own process group so that its children end with it."""
    os.setpgid(0, 0)
    bench = Bench(device, tiny, time.monotonic() + seconds, pipe.send)
    end: dict[str, Any] = {"kind": "end"}
    try:
        getattr(importlib.import_module(f"on_gpu.{part.module}"), part.function)(bench)
        end["memory_gib"] = _peak(bench)
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        end |= {"status": "failed", "error": short(error)}
    pipe.send(end)
    pipe.close()


def _peak(bench: Bench) -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if bench.is_gpu else None


def _kill(pid: int | None) -> None:
    """End a part's process and what it has started."""
    if pid is None:
        return
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        return


def short(error: BaseException) -> str:
    """One line on an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
