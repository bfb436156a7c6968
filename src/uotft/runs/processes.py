"""Worker processes: start one or N, follow the points they report, stop them all.

The workers append to a journal, a file of JSON lines {"at", "step", "numbers"}. On several machines
each has this process and its share of the workers; so has each process that another launcher
started, `accelerate launch -m uotft train …`, and its share is one worker.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from types import FrameType

from uotft.core import jsonl
from uotft.core.errors import Interrupted, UserError, WorkerFailed

POLL_S = 0.2
GRACE_S = 20  # between asking the workers to stop, which save first, and killing them
INTERRUPTED = 130  # a worker's exit code after it has saved on SIGTERM
MEET_S = 3600  # how long the other machines wait for the first one, which prepares meanwhile
MARK = "UOTFT_WATCHER"
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # what a launcher tells each process that it starts
Points = list[tuple[int, dict[str, float]]]
Follow = Callable[[Callable[[Points], None]], None]


@dataclass(frozen=True)
class Fleet:
    """The ``processes`` of a training, over all ``machines``, which have as many each.

    ``rank`` is this machine's number; number 0, at ``address`` and ``port``, tracks the training.
    ``launched``: another launcher has started ``processes`` of us, and ``rank`` is our number.
    """

    processes: int = 1
    machines: int = 1
    rank: int = 0
    address: str = ""
    port: int = 29500
    launched: bool = False

    def command(self, worker: list[str]) -> list[str]:
        """The words that start this machine's share of the workers."""
        if self.launched or self.processes == 1:
            return worker
        here = ["--standalone"]
        if self.machines > 1:
            here = ["--nnodes", str(self.machines), "--node-rank", str(self.rank)]
            here += ["--master-addr", self.address, "--master-port", str(self.port)]
            here += ["--rdzv-conf", f"timeout={MEET_S}"]
        share = str(self.processes // self.machines)
        return ["-m", "uotft.runs.launcher", *here, "--nproc-per-node", share, *worker]


def fleet(
    processes: int, machines: int = 1, rank: int = 0, address: str = "", port: int = 29500
) -> Fleet:
    """The fleet that a user's words mean; or that of the launcher that started this process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and "RANK" in os.environ:
        if max(processes, machines) > 1:
            raise UserError(
                f"--num-processes and --num-machines: this is one of {world} processes that "
                "another launcher has started; leave them out"
            )
        return Fleet(world, rank=int(os.environ["RANK"]), launched=True)
    if processes % machines:
        raise UserError(
            f"--num-processes: got {processes}, the number over all machines, which {machines} "
            f"machines cannot share: choose a multiple of {machines}"
        )
    if rank >= machines:
        raise UserError(f"--machine-rank: got {rank}; with --num-machines {machines} the last "
                        f"machine is {machines - 1}")  # fmt: skip
    if (machines > 1) != bool(address):
        raise UserError("--num-machines above 1 and --main-process-ip, the address of machine 0, "
                        "go together")  # fmt: skip
    return Fleet(processes, machines, rank, address, port)


@contextmanager
def workers(
    words: list[str], fleet: Fleet, held: Sequence[int] = (), journal: Path | None = None
) -> Iterator[Follow]:
    """Start the workers; the block gets ``follow(send)``, which returns when they have finished.

    They inherit the file descriptors ``held``, which last as long as they do: locks, and what says
    to others that somebody is at work. What they report is left in ``journal``.
    """
    with tempfile.TemporaryDirectory(prefix="uotft-") as folder:
        journal = journal or Path(folder) / "journal.jsonl"
        command = fleet.command(["-m", "uotft.runs.worker", str(journal), *words])
        # a session of its own: Ctrl-C reaches the workers through this process alone
        worker = subprocess.Popen(
            [sys.executable, *command],
            start_new_session=True,
            preexec_fn=die_with_parent,
            env=os.environ | mark(),
            pass_fds=held,
        )
        asked: list[int] = []
        try:
            with _stopped_by_signals(worker, asked):
                yield lambda send: _follow(worker, journal, send, asked)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error
        finally:
            stop(worker, asked)


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the process that started this one is gone; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def mark() -> dict[str, str]:
    """A variable by which all that this process starts, and that starts in turn, is found."""
    return {MARK: str(os.getpid())}


def _left() -> list[int]:
    """The living processes with our mark; Linux only."""
    found, ours = [], f"{MARK}={os.getpid()}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            if ours in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _follow(
    worker: subprocess.Popen[bytes],
    journal: Path,
    send: Callable[[Points], None],
    asked: list[int],
) -> None:
    code, place = None, 0
    while code is None:
        if asked:
            raise KeyboardInterrupt
        try:
            code = worker.wait(POLL_S)
        except subprocess.TimeoutExpired:
            code = None
        found, place = jsonl.read(journal, place)
        if points := [(line["step"], line["numbers"]) for line in found if "numbers" in line]:
            send(points)
    # perhaps somebody else has asked the worker, which was still starting
    if code in (INTERRUPTED, -signal.SIGTERM) or (code and asked):
        raise KeyboardInterrupt
    if code:
        raise WorkerFailed(code, worker.pid)


def stop(worker: subprocess.Popen[bytes], asked: Sequence[int] = ()) -> None:
    """End a process and its children; one that was ``asked`` by a signal is only waited for."""
    signal.alarm(0)  # of a command that was asked to end: from here on the waiting ends itself
    if worker.poll() is None:
        if not asked:
            os.killpg(worker.pid, signal.SIGTERM)
        try:
            worker.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    # a launcher that was killed has left its workers, whom the kernel has sent SIGTERM
    patience = monotonic() + GRACE_S
    while left := _left():
        if monotonic() > patience:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        sleep(POLL_S)


@contextmanager
def _stopped_by_signals(worker: subprocess.Popen[bytes], asked: list[int]) -> Iterator[None]:
    """Ctrl-C and SIGTERM are passed on to the workers, and listed; the second one interrupts here.

    An exception from a signal handler comes anywhere: it was lost in destructors of MLflow's
    database. So it is ``_follow`` that interrupts after the first one.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt
        if worker.returncode is None:
            os.killpg(worker.pid, signal.SIGTERM)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
