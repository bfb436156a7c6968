"""Worker processes: start them, hand them work, follow what they report, stop them.

Workers are child processes, one a rank. A worker starts to import torch, which takes seconds, while
this process still prepares the work. It then reads the work from a socket, its channel, and answers
there when it is done. Meanwhile it appends what it measures to an event log, JSON lines of
{"at", "step", "numbers"}.

On several machines, a process like this one runs on each and starts that machine's ranks. Under
another launcher (`accelerate launch -m uotft train …`) every launched process is like this one and
starts one worker.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from uotft.core import environment, jsonl, signals
from uotft.core.errors import Interrupted, UserError, WorkerFailed, killed
from uotft.core.signals import INTERRUPTED, POLL_S, StopRequest
from uotft.runs import channel

MEET_S = 3600  # the other machines wait so long for the first one, which prepares the work
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# otherwise gloo and NCCL take the first address that other machines can reach
HERE_ALONE = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
STOPPED = (INTERRUPTED, -signal.SIGTERM)  # exit codes of a worker that was asked to stop
Points = list[tuple[int, dict[str, float]]]
Follow = Callable[[Callable[[Points], None]], None]
Worker = subprocess.Popen[bytes]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fleet:
    """How many processes share one training, and on which machines.

    ``processes`` counts all ``machines`` together; each machine has the same number. ``rank`` is
    the number of this machine. Machine 0, at ``address`` and ``port``, sends the run to MLflow.
    With ``launched`` true, another launcher started ``processes`` processes, and ``rank`` is the
    number of this one. ``scheduler`` names one whose workers train (`uotft.runs.scheduler`).
    """

    processes: int = 1
    machines: int = 1
    rank: int = 0
    address: str = ""
    port: int = 29500
    launched: bool = False
    scheduler: str = ""

    @property
    def here(self) -> int:
        """How many workers this process starts: one under another launcher."""
        return 1 if self.launched else self.processes // self.machines

    @property
    def first(self) -> int:
        """The rank of the first worker that this process starts."""
        return self.rank * self.here

    def ranks(self, meeting: Path) -> list[dict[str, str]]:
        """The environment variables of each worker, as torchrun sets them; {} for a single one.

        ``meeting`` is the path of a file that does not exist yet. Workers that are all on this
        machine find each other by it.
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
        """Environment variables of the workers, unless the user has set them."""
        if self.here == 1:
            return {}
        threads = {"OMP_NUM_THREADS": "1"}  # as torchrun: N workers on all cores each are slower
        return threads | (HERE_ALONE if self.machines == 1 else {})


def fleet(
    processes: int, machines: int = 1, rank: int = 0, address: str = "", port: int = 29500
) -> Fleet:
    """The fleet that a user's options describe, or the one of the launcher of this process.

    Raises `UserError` if the options contradict each other or the launcher.
    """
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


@dataclass
class Crew:
    """The workers of this machine, for one training at a time. Make one with `crew`.

    ``changes`` are environment variables of the workers; ``crews`` share this machine. If ``asked``
    is given, another thread counts the requests to stop in it; otherwise `work` listens for signals
    itself. ``busy`` are the workers that have not finished their work. A crew without workers of
    its own has ``elsewhere``, which trains a cell on another machine; see `uotft.runs.job.train`.
    """

    fleet: Fleet
    root: Path
    changes: Mapping[str, str] = field(default_factory=dict)
    asked: StopRequest | None = None
    crews: int = 1
    workers: list[Worker] = field(default_factory=list)
    busy: list[Worker] = field(default_factory=list)
    elsewhere: Callable[..., str] | None = None
    _channels: dict[int, socket.socket] = field(default_factory=dict)

    def start(self, meeting: Path | None = None) -> None:
        """Start the workers unless they run; they import what they need and wait for work.

        A single worker can be started early, and takes one piece of work after the other. Several
        form a process group for one training by the file ``meeting``, so only `work` starts them.
        """
        if self.workers and all(worker.poll() is None for worker in self.workers):
            return
        if not self._reusable and meeting is None:
            return
        self.dismiss()
        defaults = self.fleet.defaults | environment.allocator(self.crews * self.fleet.here)
        for place in self.fleet.ranks(meeting or Path()):
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-m", "uotft.runs.worker", channel.OPTION]
                worker = subprocess.Popen(
                    [*command, str(theirs.fileno())],
                    cwd=self.root,
                    start_new_session=True,  # the terminal sends Ctrl-C to this process alone
                    env=environment.child({**place, **self.changes}, defaults),
                    pass_fds=[theirs.fileno()],
                )
            self.workers.append(worker)
            self._channels[worker.pid] = ours

    @contextmanager
    def work(
        self, arguments: list[str], held: Sequence[int] = (), events: Path | None = None
    ) -> Iterator[Follow]:
        """Hand work to the workers; the block gets ``follow(send)``, which returns when it is done.

        The workers keep the file descriptors ``held`` open while they work: locks, and files by
        which others see that the run is alive. So these outlive this process if it is killed. The
        workers report to the event log ``events``. If the block ends before the work is done, the
        workers are stopped.
        """
        with tempfile.TemporaryDirectory(prefix="uotft-") as folder:
            log = events or Path(folder) / "events.jsonl"
            try:
                with ExitStack() as stack:
                    asked = self.asked
                    if asked is None:
                        asked = stack.enter_context(signals.passed_on(self.workers))
                    self.start(Path(folder) / "meeting")
                    self._hand(arguments, held, log)
                    yield partial(follow, self, log, asked)
            except KeyboardInterrupt as error:
                raise Interrupted("interrupted") from error
            finally:
                if self.busy or not self._reusable:
                    signals.stop(self.workers)

    def dismiss(self) -> None:
        """Stop the workers; idle ones exit at once."""
        for ours in self._channels.values():
            ours.close()
        self._channels.clear()
        signals.stop(self.workers)
        self.workers.clear()
        self.busy.clear()

    @property
    def _reusable(self) -> bool:
        return self.fleet.processes == 1

    def _hand(self, arguments: list[str], held: Sequence[int], log: Path) -> None:
        self.busy[:] = self.workers
        for ours in self._channels.values():
            with suppress(OSError):  # the worker has exited, and `follow` says why
                channel.send(ours, [str(log), *arguments], held)

    def living(self) -> list[Worker]:
        """The workers that are still at work."""
        for worker in [*self.busy]:
            ours = self._channels.get(worker.pid)
            if worker.poll() is None and ours is not None and channel.has_answer(ours):
                self.busy.remove(worker)
        return [worker for worker in self.busy if worker.poll() is None]

    def wait(self) -> None:
        """Wait until a busy worker answers or exits, at most ``POLL_S`` seconds."""
        ends = [self._channels[worker.pid] for worker in self.busy if worker.pid in self._channels]
        channel.wait(ends, POLL_S)

    def failed(self) -> Worker | None:
        """The worker that failed, or None; of several, one that was killed, as that is the cause.

        A worker that only lost its connection to a failed one waits for our SIGTERM. So several
        fail by themselves only if all found the same mistake.
        """
        found = [worker for worker in self.busy if worker.returncode]
        return max(found, key=_severity, default=None)

    def name(self, worker: Worker) -> str:
        """The name of one worker of several in messages."""
        rank = self.fleet.first + self.workers.index(worker)
        return f"worker {rank} of them, process {worker.pid},"


def _severity(worker: Worker) -> tuple[bool, bool]:
    code = worker.returncode
    return code not in STOPPED, code < 0


@contextmanager
def crew(
    fleet: Fleet,
    root: Path,
    changes: Mapping[str, str] | None = None,
    asked: StopRequest | None = None,
    crews: int = 1,
) -> Iterator[Crew]:
    """The workers of ``fleet`` on this machine for the project in ``root``, during the block."""
    made = Crew(fleet, root, changes or {}, asked, crews)
    try:
        yield made
    finally:
        made.dismiss()


def follow(crew: Crew, events: Path, asked: StopRequest, send: Callable[[Points], None]) -> None:
    """Send the points that workers report, until all are done.

    Raises `WorkerFailed` if one fails, and KeyboardInterrupt if they were asked to stop.
    """
    place, why = 0, ""
    while True:
        living, failed = crew.living(), crew.failed()
        # read after `living`, so that the last points of workers that are done are included
        found, place = jsonl.read(events, place)
        if points := [(line["step"], line["numbers"]) for line in found if "numbers" in line]:
            send(points)
        why = next((n["tags"]["failure"] for n in found if "failure" in n.get("tags", {})), why)
        if failed or not living:
            break
        if asked:
            raise KeyboardInterrupt
        crew.wait()
    if failed is None:
        return
    code: int = failed.returncode
    # the worker may have been signalled directly, before it could listen
    if code in STOPPED or asked:
        raise KeyboardInterrupt
    if code < 0 and len(crew.workers) > 1:
        logger.error(killed(crew.name(failed), -code))
        code = 128 - code
    raise WorkerFailed(code, failed.pid, why)
