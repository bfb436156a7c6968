"""The machines of one training watch each other, so that a dead one is named within a minute.

Every ``BEAT_S`` seconds the first worker of each machine writes a count into torch's store, which
machine 0 or its launcher keeps, and reads those of the others. Threads do that, whatever the worker
computes. So a slow step or validation is no death, and collective operations keep torch's patience
of half an hour, in which a machine without a network would keep the others waiting.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING

from uotft.core import environment
from uotft.core.errors import Interrupted

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

BEAT_S = 2.0
SILENT_S = 30.0  # a machine that is not heard for so long is lost
FAILED_S = 3 * BEAT_S  # time for our own worker to find the mistake that another one has reported
SIOCGIFADDR = 0x8915  # Linux: include/uapi/linux/sockios.h
WORKS, LEFT, FAILED = "works", "left", "failed"

logger = logging.getLogger(__name__)


def lost_connection(error: BaseException) -> bool:
    """Whether ``error`` may be only that another worker has gone."""
    return any(word in str(error) for word in ("Connection", "gloo", "NCCL"))


def choose_interface() -> None:
    """Have gloo and NCCL use the interface that reaches machine 0, unless the user chose one.

    By itself gloo takes the address of this machine's name, which is 127.0.1.1 on Debian. Does
    nothing on one machine, and where no IPv4 address leads to machine 0.
    """
    if environment.machine() and (name := interface(own_address(environment.main_address()[0]))):
        environment.default({"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"})


def own_address(main: str) -> str:
    """The IPv4 address of this machine from which packets go to ``main``, or ""."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((main, 9))  # of UDP: sends nothing
        address: str = probe.getsockname()[0]
        return address
    return ""


def interface(address: str) -> str:
    """The interface of this machine whose IPv4 address is ``address``, or ""; Linux only."""
    if not address or sys.platform != "linux":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return ""


@dataclass
class Watch:
    """What this machine, number ``own`` of ``machines``, has heard from the others by ``store``."""

    store: TCPStore
    own: int
    machines: int
    said: dict[int, dict[str, object]] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)  # when `said` has last changed
    state: str = WORKS
    why: str = ""
    count: int = 0
    place: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # once: later the network may be down, and with it the servers that know names
        self.place = [socket.gethostname(), own_address(environment.main_address()[0])]
        self.since = {n: monotonic() for n in range(self.machines) if n != self.own}

    def exchange(self) -> None:
        """Say that this machine lives, and hear the others; raises torch's errors."""
        self.count += 1
        mine = {"place": self.place, "state": self.state, "why": self.why, "count": self.count}
        self.store.set(self._key(self.own), json.dumps(mine))
        for other in self.since:
            if self.store.check([self._key(other)]):  # `get` would wait for it
                found = json.loads(self.store.get(self._key(other)))
                if found != self.said.get(other):
                    self.said[other] = found
                    self.since[other] = monotonic()

    def lost(self) -> str:
        """What to tell the user about a machine that has failed or is not heard, or ""."""
        for other, since in self.since.items():  # machine 0 first: without it none is heard
            said, silent = self.said.get(other, {}), monotonic() - since
            if said.get("state") == FAILED and silent > FAILED_S:
                return f"{self.name(other)} has failed: {said['why']}"
            if said.get("state", WORKS) == WORKS and silent > SILENT_S:
                return (
                    f"{self.name(other)} has not been heard from for {SILENT_S:.0f} s: it has "
                    "died, or the network between it and this machine is down. The same command "
                    "on each machine goes on from the last checkpoint, and so does one without "
                    "--num-machines on a single machine"
                )
        return ""

    def name(self, machine: int) -> str:
        """The name of a machine in messages: its number, its host name and its address."""
        known = self.said.get(machine, {}).get("place")
        if not isinstance(known, list):
            known = [] if machine else [environment.main_address()[0]]
        place = ", ".join(filter(None, known))
        return f"machine {machine}{f' ({place})' if place else ''}"

    def _key(self, machine: int) -> str:
        return f"uotft/{environment.restarts()}/{machine}"


@contextmanager
def watched(stopped: Callable[[], bool], report: Callable[[str], None]) -> Iterator[None]:
    """Watch the other machines during the block, which works with torch's process group.

    If one is lost, ``report`` gets a message that names it, and this process ends with exit code
    2: its main thread may wait in a collective operation that nothing else ends. An error that is
    only a lost connection waits here for that, or until this process is ``stopped``. On one
    machine, and in all workers of a machine but its first one, does nothing.
    """
    place = environment.machine()
    if place is None or environment.local_rank():
        yield
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = environment.main_address()
    patience = timedelta(seconds=SILENT_S)
    # a connection of its own: one connection does one thing at a time
    store = TCPStore(address, port, None, False, timeout=patience, wait_for_workers=False)
    watch, over = Watch(store, *place), Event()
    watch.exchange()
    talk = Thread(target=_talk, args=(watch, over), daemon=True)
    talk.start()
    Thread(target=_listen, args=(watch, over, report), daemon=True).start()
    try:
        yield
    except Interrupted:
        watch.state = LEFT
        raise
    except BaseException as error:
        until = monotonic() + SILENT_S + FAILED_S
        while lost_connection(error) and not stopped() and monotonic() < until:
            over.wait(0.1)
        why = "one of its workers failed" if stopped() else str(error) or repr(error)
        watch.state, watch.why = FAILED, why
        raise
    else:
        watch.state = LEFT
    finally:
        over.set()
        talk.join(FAILED_S)  # the last words; then machine 0 leaves time to read them
        if watch.state == FAILED and not watch.own:
            Event().wait(2 * BEAT_S)


def _talk(watch: Watch, over: Event) -> None:
    from torch.distributed import DistError

    done = False
    with suppress(DistError):  # the store has gone for good: no machine is heard any longer
        while not done:
            done = over.wait(BEAT_S)
            watch.exchange()


def _listen(watch: Watch, over: Event, report: Callable[[str], None]) -> None:
    while not over.wait(0.5):
        if message := watch.lost():
            report(message)
            os._exit(2)
