"""Worker processes: start one or N, follow the points they report, stop them all.

The workers append to an event log: JSON lines {"at", "step", "numbers"}. They are children
of this process, one a rank. On several machines each has this process and its share of the ranks;
so has each process that another launcher started, `accelerate launch -m uotft train …`, and its
share is one worker.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from uotft.core import environment, jsonl, signals
from uotft.core.errors import Interrupted, UserError, WorkerFailed, killed
from uotft.core.signals import INTERRUPTED, POLL_S, StopRequest

MEET_S = 3600  # how long the other machines wait for the first one, which prepares meanwhile
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# gloo and NCCL would take the first address that other machines can reach
HERE_ALONE = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
STOPPED = (INTERRUPTED, -signal.SIGTERM)  # exit codes of a worker that was asked to stop
Points = list[tuple[int, dict[str, float]]]
Follow = Callable[[Callable[[Points], None]], None]
Worker = subprocess.Popen[bytes]

logger = logging.getLogger(__name__)


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

    @property
    def here(self) -> int:
        """How many workers this machine has; a process that another launcher started has one."""
        return 1 if self.launched else self.processes // self.machines

    @property
    def first(self) -> int:
        """The rank of its first worker."""
        return self.rank * self.here

    def ranks(self, meeting: Path) -> list[dict[str, str]]:
        """The environment of each worker of this machine, as torchrun sets it; {} for one alone.

        ``meeting`` is a file that is not there yet, for workers that are all on this machine.
        """
        if self.launched or self.processes == 1:
            return [{}]
        shared = {"WORLD_SIZE": str(self.processes), "LOCAL_WORLD_SIZE": str(self.here)}
        if self.machines == 1:
            shared[environment.MEETING_FILE] = str(meeting)
        else:
            shared |= {"MASTER_ADDR": self.address, "MASTER_PORT": str(self.port)}
            shared[environment.MEETING_S] = str(MEET_S)
        return [
            {"RANK": str(self.first + local), "LOCAL_RANK": str(local), **shared}
            for local in range(self.here)
        ]

    @property
    def defaults(self) -> dict[str, str]:
        """What workers find in their environment where the user has set nothing else."""
        if self.here == 1:
            return {}
        threads = {"OMP_NUM_THREADS": "1"}  # N times all cores would be slower; as torchrun
        return threads | (HERE_ALONE if self.machines == 1 else {})


def fleet(
    processes: int, machines: int = 1, rank: int = 0, address: str = "", port: int = 29500
) -> Fleet:
    """The fleet that a user's options mean; or that of the launcher that started this process."""
    if launched := environment.launched():
        number, world = launched
        if max(processes, machines) > 1:
            raise UserError(
                f"--num-processes and --num-machines: this is one of {world} processes that "
                "another launcher has started; leave them out"
            )
        return Fleet(world, rank=number, launched=True)
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


@dataclass(frozen=True)
class Crew:
    """The workers of this machine, ``first`` the rank of the first one, and their event log."""

    first: int
    workers: list[Worker]
    events: Path

    def living(self) -> list[Worker]:
        """Those that have not ended."""
        return [worker for worker in self.workers if worker.poll() is None]

    def failed(self) -> Worker | None:
        """The one that failed, if any; of several, one that was killed, which explains the others.

        A worker that loses the connection to another one waits for our SIGTERM, so that there is
        more than one only where all have found the same mistake.
        """
        found = [worker for worker in self.workers if worker.returncode]
        return max(found, key=_severity, default=None)

    def name(self, worker: Worker) -> str:
        """What messages call one worker of several."""
        rank = self.first + self.workers.index(worker)
        return f"worker {rank} of them, process {worker.pid},"


def _severity(worker: Worker) -> tuple[bool, bool]:
    code = worker.returncode
    return code not in STOPPED, code < 0


@contextmanager
def workers(
    arguments: list[str],
    fleet: Fleet,
    root: Path,
    held: Sequence[int] = (),
    events: Path | None = None,
) -> Iterator[Follow]:
    """Start the workers; the block gets ``follow(send)``, which returns when they have finished.

    They work on the project in ``root`` and inherit the file descriptors ``held``, which last as
    long as they do: locks, and what says to others that somebody is at work. What they report is
    left in ``events``.
    """
    with tempfile.TemporaryDirectory(prefix="uotft-") as folder:
        events = events or Path(folder) / "events.jsonl"
        command = [sys.executable, "-m", "uotft.runs.worker", str(events), *arguments]
        crew = Crew(fleet.first, [], events)
        try:
            with signals.passed_on(crew.workers) as asked:
                for place in fleet.ranks(Path(folder) / "meeting"):
                    process = subprocess.Popen(
                        command,
                        cwd=root,
                        start_new_session=True,  # Ctrl-C reaches it through this process alone
                        preexec_fn=signals.die_with_parent,
                        env=environment.child(place, fleet.defaults),
                        pass_fds=held,
                    )
                    crew.workers.append(process)
                yield lambda send: follow(crew, send, asked)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error
        finally:
            signals.stop(crew.workers)


def follow(crew: Crew, send: Callable[[Points], None], asked: StopRequest) -> None:
    """Send what the workers report until all have finished, or one has failed, which raises."""
    place = 0
    while True:
        living, failed = crew.living(), crew.failed()
        # read after that look: the event log has all that those wrote which have ended
        found, place = jsonl.read(crew.events, place)
        if points := [(line["step"], line["numbers"]) for line in found if "numbers" in line]:
            send(points)
        if failed or not living:
            break
        if asked:
            raise KeyboardInterrupt
        with suppress(subprocess.TimeoutExpired):
            living[0].wait(POLL_S)
    if failed is None:
        return
    code: int = failed.returncode
    # perhaps somebody else has asked the worker, which was still starting
    if code in STOPPED or asked:
        raise KeyboardInterrupt
    if code < 0 and len(crew.workers) > 1:
        logger.error(killed(crew.name(failed), -code))
        code = 128 - code
    raise WorkerFailed(code, failed.pid)
