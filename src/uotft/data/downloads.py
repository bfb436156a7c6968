"""Downloads an archive of a data set, from the first address that delivers the right bytes.

A broken download resumes where it stopped, even on another day. The file is a hidden .part until
its size and checksum are those in the data set's module. If the module has no size, `sized` asks
the server first.
"""

from __future__ import annotations

import logging
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

CHUNK = 2**20  # bytes per read
PATIENCE = 60.0  # seconds; a slower answer, or a slower chunk, counts as a broken connection

logger = logging.getLogger(__name__)


def fetch(archive: Archive, folder: Path, progress: Progress) -> Path:
    """Download an archive to ``folder``, from the first address that delivers the right bytes.

    Retries an address as long as that makes progress. If all fail, a ``UserError`` lists why.
    """
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
            logger.debug("%s", tried[-1])
            if not _size(part) >= before + CHUNK and not (before and not _size(part)):
                break  # no progress: less than a chunk came, and no wrong old .part was removed
    raise _failed(archive, folder, tried)


def sized(archive: Archive, folder: Path) -> Archive:
    """The archive with its size, from the first address that states one; downloads nothing.

    If none does, a ``UserError`` lists why.
    """
    tried = []
    for url in archive.urls:
        try:
            with _answer(url) as answer:
                if answer.length is not None:
                    return replace(archive, bytes=answer.length)
            tried.append(f"{url}: the server does not state the file's size")
        except (OSError, HTTPException) as error:
            tried.append(f"{url}: {error or type(error).__name__}")
    raise _failed(archive, folder, tried)


def _failed(archive: Archive, folder: Path, tried: list[str]) -> UserError:
    return UserError(
        f"{archive.name} could not be downloaded:\n  "
        + "\n  ".join(tried)
        + f"\ndownload it by other means, put it into {folder}, and run the same command again"
    )


def _go_on(url: str, part: Path, archive: Archive, progress: Progress) -> None:
    """Download the missing bytes of ``part``; or all, if the server cannot resume."""
    start = _size(part)
    if start >= archive.bytes:
        return
    with _answer(url, start) as answer:
        if answer.status != 206:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ConnectionError(f"the server sent another range than from byte {start} on")
        elif not (archive.sha256 or archive.md5) and _newer(answer, part):
            part.unlink()  # without a checksum, a mix of two versions would go unnoticed
            raise ConnectionError("the file on the server changed since its first part was fetched")
        if answer.length is not None and start + answer.length != archive.bytes:
            offered = start + answer.length
            raise ConnectionError(f"the server offers {offered:,} bytes, not {archive.bytes:,}")
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for at in progress(range(start, archive.bytes, CHUNK), f"downloading {archive.name}"):
                size = min(CHUNK, archive.bytes - at)
                file.write(block := _block(answer, size))
                if len(block) < size:
                    raise ConnectionError(f"connection lost after {at + len(block):,} bytes")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _answer(url: str, start: int = 0) -> Iterator[HTTPResponse]:
    """The response of an address from byte ``start`` on; a web page is an error."""
    headers = {"User-Agent": "uotft", **({"Range": f"bytes={start}-"} if start else {})}
    logger.debug("asking %s from byte %d on", url, start)
    with _opened(Request(url, headers=headers)) as answer:
        if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise ConnectionError("got a web page (a login, warning or limit?) instead of the file")
        yield answer


def _opened(request: Request) -> HTTPResponse:
    """The response with its headers, within PATIENCE seconds.

    It runs in a thread because urlopen's own timeout restarts with each byte.
    """
    found: SimpleQueue[HTTPResponse | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            found.put(urlopen(request, timeout=PATIENCE))
        except Exception as error:  # noqa: BLE001  raised again in the waiting thread
            found.put(error)

    Thread(target=ask, daemon=True).start()  # daemon: a hanging one does not block the exit
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
    """Whether, according to the server, the file changed after ``part`` of it was fetched."""
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
