"""Download an archive of a data set from the first of its addresses that gives the right bytes.

A broken download goes on where it stopped, also on another day. The file is a hidden .part until
its size and checksum are those that the data set's module states. Where no size is stated, the
server is asked for it before anything is fetched.
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

CHUNK = 2**20  # bytes that are read at a time
PATIENCE = 60.0  # seconds; a slower answer, or a chunk that takes longer, counts as broken off

logger = logging.getLogger(__name__)


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
            logger.debug("%s", tried[-1])
            if not _size(part) >= before + CHUNK and not (before and not _size(part)):
                break  # less than a chunk came, and no wrong part of an earlier day was removed
    raise _failed(archive, folder, tried)


def sized(archive: Archive, folder: Path) -> Archive:
    """The archive with its size, from the first address that states one; fetches nothing."""
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
    """Fetch what is missing of ``part``; also from a server that sends all of it again."""
    start = _size(part)
    if start >= archive.bytes:
        return
    with _answer(url, start) as answer:
        if answer.status != 206:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ConnectionError(f"another part came than the one from byte {start}")
        elif not (archive.sha256 or archive.md5) and _newer(answer, part):
            part.unlink()  # without a checksum, nothing would show that the halves do not fit
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
    """The answer of an address from byte ``start`` on; a web page is an error."""
    headers = {"User-Agent": "uotft", **({"Range": f"bytes={start}-"} if start else {})}
    logger.debug("asking %s from byte %d on", url, start)
    with _opened(Request(url, headers=headers)) as answer:
        if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise ConnectionError("a web page came, not the file: a login, a warning or a limit")
        yield answer


def _opened(request: Request) -> HTTPResponse:
    """The answer with its headers, within PATIENCE; urlopen's timeout restarts with every byte."""
    found: SimpleQueue[HTTPResponse | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            found.put(urlopen(request, timeout=PATIENCE))
        except Exception as error:  # noqa: BLE001  raised again in the waiting thread
            found.put(error)

    Thread(target=ask, daemon=True).start()  # a daemon may hang at the end
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
    """Whether the server says that the file changed after ``part`` of it was fetched."""
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
