"""An archive of a data set, from whichever of its addresses gives the right bytes.

A download goes on where it broke off, now or another day, and the file gets its name when size and
checksum are those that the data set's file states: until then it is a hidden .part. Where nobody
states a size, the addresses are asked for it before anything is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from uotft.core.errors import UserError
from uotft.data.archives import Archive, Progress

CHUNK = 2**20  # bytes that are asked for at a time
PATIENCE = 60.0  # seconds; a slower answer, or a chunk that takes longer, counts as broken off


def fetch(archive: Archive, folder: Path, progress: Progress) -> Path:
    """Download an archive into ``folder``, from the first address that gives the right bytes."""
    path, part, tried = folder / archive.name, folder / f".{archive.name}.part", []
    folder.mkdir(parents=True, exist_ok=True)
    for url in archive.urls:
        while True:
            before = _size(part)
            try:
                _go_on(url, part, archive, progress)
                if not (why := archive.wrong(part, progress)):
                    return part.replace(path)
                part.unlink()
                tried.append(f"{url}: {why}")
            except (OSError, HTTPException) as error:
                tried.append(f"{url}: {error or type(error).__name__}")
            if not _size(part) >= before + CHUNK and not (before and not _size(part)):
                break  # next to nothing came, and no wrong half from an earlier day was thrown away
    raise _failed(archive, folder, tried)


def sized(archive: Archive, folder: Path) -> Archive:
    """The archive with the size that the first address which answers says; nothing is fetched."""
    tried = []
    for url in archive.urls:
        try:
            with _answer(url) as answer:
                if answer.length is not None:
                    return replace(archive, bytes=answer.length)
            tried.append(f"{url}: it does not say how large the file is")
        except (OSError, HTTPException) as error:
            tried.append(f"{url}: {error or type(error).__name__}")
    raise _failed(archive, folder, tried)


def _failed(archive: Archive, folder: Path, tried: list[str]) -> UserError:
    return UserError(
        f"{archive.name} could not be downloaded:\n  "
        + "\n  ".join(tried)
        + f"\nfetch it by other means, put it into {folder}, and give the same command again"
    )


def _go_on(url: str, part: Path, archive: Archive, progress: Progress) -> None:
    """Ask for what is missing of ``part``; a server that sends all of it again is heard too."""
    start = _size(part)
    if start >= archive.bytes:
        return
    with _answer(url, start) as answer:
        if answer.status != 206:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ConnectionError(f"another part came than the one from byte {start}")
        elif not (archive.sha256 or archive.md5) and _newer(answer, part):
            part.unlink()  # no checksum would tell that its two halves are of two files
            raise ConnectionError("the file there changed after its first part came")
        if answer.length is not None and start + answer.length != archive.bytes:
            raise ConnectionError(f"{start + answer.length:,} bytes offered, not {archive.bytes:,}")
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for at in progress(range(start, archive.bytes, CHUNK), f"downloading {archive.name}"):
                size = min(CHUNK, archive.bytes - at)
                file.write(block := _block(answer, size))
                if len(block) < size:
                    raise ConnectionError(f"broke off after {at + len(block):,} bytes")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _answer(url: str, start: int = 0) -> Iterator[HTTPResponse]:
    """What an address sends from byte ``start``; a web page is no answer."""
    asked = {"User-Agent": "uotft", **({"Range": f"bytes={start}-"} if start else {})}
    with _opened(Request(url, headers=asked)) as answer:
        if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise ConnectionError("a web page came, not the file: a login, a warning or a limit")
        yield answer


def _opened(request: Request) -> HTTPResponse:
    """The head of an answer; urlopen's own patience starts anew with every byte that comes."""
    found: SimpleQueue[HTTPResponse | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            found.put(urlopen(request, timeout=PATIENCE))
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            found.put(error)

    Thread(target=ask, daemon=True).start()  # one that hangs is left behind
    try:
        answer = found.get(timeout=PATIENCE)
    except Empty as error:
        raise TimeoutError(f"no answer in {PATIENCE:.0f} s") from error
    if isinstance(answer, HTTPError):
        answer.close()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _newer(answer: HTTPResponse, part: Path) -> bool:
    """Whether the file at an address was changed after ``part`` of it came, as far as it says."""
    try:
        changed = parsedate_to_datetime(answer.headers["Last-Modified"])
    except (TypeError, ValueError):
        return False
    return changed.timestamp() > part.stat().st_mtime


def _block(answer: HTTPResponse, size: int) -> bytes:
    """The next ``size`` bytes, fewer at the end; an error if they take more than PATIENCE."""
    until, pieces, left = monotonic() + PATIENCE, list[bytes](), size
    while left and (piece := answer.read1(left)):
        pieces.append(piece)
        left -= len(piece)
        if left and monotonic() > until:
            raise TimeoutError(f"slower than {size:,} bytes in {PATIENCE:.0f} s")
    return b"".join(pieces)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
