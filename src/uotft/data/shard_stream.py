"""Shards that fit no disk: fetched one after the other, used, and dropped.

Any number of processes on any number of machines may go through the same list in the same folder: a
lock file says which shard is whose. The caller keeps what it makes of a shard, and says by it which
shards are done. So a process that was killed has lost the shards under way, and no other.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

from uotft.core import locks
from uotft.core.disk import gib
from uotft.core.errors import Interrupted, UserError
from uotft.data import archives, downloads, shards
from uotft.data.archives import Archive

AHEAD = 4  # shards that are fetched while one is used
POLL_S = 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shards:
    """Tar files at ``places``, addresses or paths, in an order that stays.

    Those at addresses lie in ``folder`` while they are used, with ``room`` bytes for one process.
    ``sums`` is {file name: SHA-256}, as far as it is known.
    """

    places: tuple[str, ...]
    folder: Path
    room: int
    sums: dict[str, str]

    def name(self, number: int) -> str:
        """The file name of a shard."""
        place = self.places[number]
        return shards.file_name(place) if "://" in place else Path(place).name


def listed(patterns: str, folder: Path, room: int, sums: str = "") -> Shards:
    """The shards that a pattern means, such as https://example.org/web-{000..127}.tar.

    Paths may hold ``*``, too. ``sums`` is a list of SHA-256. Raises `UserError` for an address of
    another file, for a path without a file, and for two shards of one name.
    """
    found: list[str] = []
    for place in shards.expand(patterns):
        at = Path(place).expanduser().absolute()
        here = [] if "://" in place else sorted(at.parent.glob(at.name))
        if "://" not in place and not here:
            raise UserError(f"--shards: {place}: no such file")
        found += [place] if "://" in place else [str(path) for path in here]
    known = archives.read_sums(Path(sums)) if sums else {}
    made = Shards(tuple(found), folder, room, known)
    try:
        names = [made.name(number) for number in range(len(found))]
    except ValueError as error:
        raise UserError(f"--shards: {error}") from error
    if len({*names}) < len(names):
        raise UserError(f"--shards: {patterns}: two shards have one file name")
    if sums and (unknown := [name for name in names if name not in known]):
        raise UserError(f"--sums: {sums}: no checksum of {unknown[0]}, one of the shards")
    return made


@dataclass(frozen=True)
class _Claim:
    """A shard that is this process's, until ``held`` is closed."""

    number: int
    held: ExitStack
    path: Future[Path] | Path
    bytes: int = 0


def each(every: Shards, is_done: Callable[[int], bool]) -> Iterator[tuple[int, Path]]:
    """(number, path of the tar) of every shard that no process has done, or is at.

    The caller has kept what it made of a shard when it asks for the next. Ends when all are done,
    by this process or another. Raises `UserError` if a shard cannot be fetched, or needs more than
    the room.
    """
    every.folder.mkdir(parents=True, exist_ok=True)
    stop = Event()
    with ThreadPoolExecutor(AHEAD) as threads:
        ahead = _Ahead(every, is_done, partial(threads.submit, partial(_fetch, every, stop)))
        try:
            while ahead.claim():
                if not ahead.claimed:
                    sleep(POLL_S)  # others are at those that are left
                    continue
                first = ahead.claimed[0]
                with first.held:
                    here = first.path.result() if isinstance(first.path, Future) else first.path
                    yield first.number, here
                    if isinstance(first.path, Future):
                        here.unlink(missing_ok=True)
                ahead.claimed.popleft()
        finally:
            stop.set()
            threads.shutdown(wait=True, cancel_futures=True)
            for claim in ahead.claimed:
                claim.held.close()


class _Ahead:
    """The shards that this process has claimed: the one in use, and those that are fetched."""

    def __init__(
        self,
        every: Shards,
        is_done: Callable[[int], bool],
        fetch: Callable[[Archive], Future[Path]],
    ) -> None:
        self.every, self.is_done, self.fetch = every, is_done, fetch
        self.left, self.claimed = [*range(len(every.places))], deque[_Claim]()
        self.sized: dict[int, Archive] = {}  # also those for which there was no room yet

    def claim(self) -> bool:
        """Claim shards in their order, as many as there is room for; whether any are left."""
        for number in [*self.left]:
            if self.is_done(number):
                self._drop(number)
                self.left.remove(number)
            elif len(self.claimed) > AHEAD or not self._claim(number):
                break
        return bool(self.left or self.claimed)

    def _claim(self, number: int) -> bool:
        """Claim a shard, unless it is another's; False if there is no room for it."""
        every, name = self.every, self.every.name(number)
        with ExitStack() as held:
            try:
                lock = every.folder / f".{name}.lock"
                held.enter_context(locks.exclusive(lock, f"{name}: another process is at it"))
            except locks.Busy:
                return True
            if self.is_done(number):  # in the meantime
                return True
            path: Future[Path] | Path = Path(every.places[number])
            size = 0
            if "://" in every.places[number]:
                archive = self._archive(number)
                size = archive.bytes
                if sum(claim.bytes for claim in self.claimed) + size > every.room:
                    return False
                path = self.fetch(archive)
            self.left.remove(number)
            self.claimed.append(_Claim(number, held.pop_all(), path, size))
        return True

    def _archive(self, number: int) -> Archive:
        """The tar file of a shard, with its size."""
        if number in self.sized:
            return self.sized[number]
        every, name = self.every, self.every.name(number)
        here = every.folder / name
        size = here.stat().st_size if here.is_file() else 0
        archive = Archive(name, "", size, every.sums.get(name, ""), (every.places[number],))
        archive = archive if size else downloads.sized(archive, every.folder)
        if archive.bytes > every.room:
            raise UserError(
                f"--room: got {gib(every.room)}, but {name} alone has {gib(archive.bytes)}"
            )
        self.sized[number] = archive
        return archive

    def _drop(self, number: int) -> None:
        """Remove what a process that was killed has left of a shard that is done."""
        if "://" in self.every.places[number]:
            (self.every.folder / self.every.name(number)).unlink(missing_ok=True)


def _fetch(every: Shards, stop: Event, archive: Archive) -> Path:
    """The shard on this machine's disk; one that a killed process had fetched is taken."""

    def until_stopped(items: Any, label: str) -> Iterator[Any]:
        for item in items:
            if stop.is_set():
                raise Interrupted(f"{label} was interrupted")
            yield item

    here = every.folder / archive.name
    if here.is_file() and not archive.wrong(here, until_stopped):
        return here
    return downloads.fetch(archive, every.folder, until_stopped)
