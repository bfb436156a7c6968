"""Downloads an archive of a data set, from the first address that delivers the right bytes.

A broken download resumes where it stopped, even on another day. The file is a hidden .part until
its size and checksum are those in the data set's module. If the module has no size, `sized` asks
the server first.

Every address is redirected to the user's mirror, if there is one: https://HOST/PATH becomes
MIRROR/HOST/PATH, the layout of `wget -x`. A mirror is another address, or a folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Protocol
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener

from uotft.core import environment, user_settings
from uotft.core.errors import UserError
from uotft.core.text import indented
from uotft.data.archives import Archive, Progress, Span

CHUNK = 2**20  # bytes per read
PATIENCE = 60.0  # seconds; a slower answer, or a slower chunk, counts as a broken connection
REACH = 10.0  # seconds for a connection; for the first byte, where addresses are only tried
NO_RANGES = "the server sends only whole files (it ignores requests for a part)"
ASKED = 16  # addresses that are tried at a time
KEPT = "the folders that `uotft train` with --dry-run lists under 'kept in'"

logger = logging.getLogger(__name__)


def redirected(url: str) -> str:
    """The address that is really asked for ``url``: below the user's mirror, if there is one.

    For a folder as mirror, the path of a file in it. Raises `UserError` for broken settings.
    """
    mirror, parts = user_settings.load().mirror, urlsplit(url)
    if not mirror or not parts.netloc:
        return url
    host, query = parts.netloc.rpartition("@")[2], f"?{parts.query}" if parts.query else ""
    if user_settings.is_address(mirror):
        return f"{mirror}/{host}{parts.path}{query}"
    plain = f"{mirror}/{host}{unquote(parts.path)}"
    return plain + query if query and Path(plain + query).is_file() else plain


def check_reachable(urls: Iterable[str | Sequence[str]]) -> None:
    """Ask all addresses at once for their first byte; of a sequence, one suffices.

    Raises one `UserError` that lists those without the file, and says what else to do.
    """
    asked = [[url] if isinstance(url, str) else [*url] for url in urls]
    with ThreadPoolExecutor(max(1, min(len(asked), ASKED))) as threads:
        found = [why for why in threads.map(_unreachable, asked) if why]
    if found:
        raise UserError(
            f"not reachable: {len(found)} of {len(asked)} files to download:"
            + indented(dict.fromkeys(found), len(found))
            + f"\n{elsewhere()}"
        )


def elsewhere(place: str = KEPT) -> str:
    """What to do where nothing can be downloaded; ``place`` is where the files are looked for."""
    return (
        "check the network; or name a mirror, an address or a folder with the same files as wget "
        f"-x saves them: {environment.MIRROR}, or mirror: in {user_settings.path()}; or fetch the "
        f"files by other means and put them into {place}"
    )


def _unreachable(urls: list[str]) -> str:
    """Why none of some addresses gives its first byte, naming each; "" if one does."""
    why = []
    for url in map(redirected, urls):
        try:
            with ask(url, end=1, patience=REACH):
                return ""
        except (OSError, HTTPException, ValueError) as error:
            why.append(f"{url}: {error or type(error).__name__}")
    return "; ".join(why)


def fetch(archive: Archive, folder: Path, progress: Progress) -> Path:
    """Download an archive to ``folder``, from the first address that delivers the right bytes.

    Retries an address as long as that makes progress. If all fail, a ``UserError`` lists why.
    """
    path, part, tried = folder / archive.name, folder / f".{archive.name}.part", []
    folder.mkdir(parents=True, exist_ok=True)
    for url in map(redirected, archive.urls):
        while True:
            before = _size(part)
            try:
                _go_on(url, part, archive, progress)
                if not (why := archive.wrong(part, progress)):
                    return part.replace(path)
                part.unlink()
                tried.append(f"{url}: {why}")
            except (OSError, HTTPException, ValueError) as error:
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
    for url in map(redirected, archive.urls):
        try:
            with ask(url) as answer:
                if answer.length is not None:
                    return replace(archive, bytes=answer.length)
            tried.append(f"{url}: the server does not state the file's size")
        except (OSError, HTTPException, ValueError) as error:
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
    start, span = _size(part), archive.span
    if start >= archive.bytes:
        return
    first, end = (span.offset + start, span.offset + archive.bytes) if span else (start, 0)
    with ask(url, first, end) as answer:
        if span:
            must_be(answer, span, first, end)
        elif answer.status != 206:
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


def must_be(answer: Answer, span: Span, first: int, end: int) -> None:
    """Raise `ConnectionError` unless a response has bytes ``first`` to ``end`` of the same file."""
    if answer.status != 206:
        raise NoRanges(NO_RANGES)
    total, found = total_of(answer), answer.headers.get("Content-Range", "")
    if total != span.total or tag_of(answer) != span.tag:
        raise ConnectionError(
            f"the file on the server has changed: it has {total:,} bytes and the mark "
            f"{tag_of(answer)!r}, not {span.total:,} and {span.tag!r}"
        )
    if not found.startswith(f"bytes {first}-{end - 1}/"):
        raise ConnectionError(f"the server sent {found!r}, not bytes {first}-{end - 1}")


def total_of(answer: Answer) -> int:
    """The size of the whole file that a response is a part of; 0 if it does not say."""
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else 0


def tag_of(answer: Answer) -> str:
    """What changes with a file on a server: its ETag, or when it was changed; "" if neither."""
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


@contextmanager
def ask(url: str, start: int = 0, end: int = 0, patience: float | None = None) -> Iterator[Answer]:
    """The response of an address from byte ``start`` on, up to ``end`` if that is given.

    ``url`` may also be a path, of a file in a mirror. A web page is an error.
    """
    if not user_settings.is_address(url):
        with _Local(Path(url), start, end) as local:
            yield local
        return
    last = end - 1 if end else ""
    asked = {"Range": f"bytes={start}-{last}"} if start or end else {}
    logger.debug("asking %s from byte %d on", url, start)
    request = Request(url, headers={"User-Agent": "uotft", **asked})
    with _opened(request, patience or PATIENCE) as answer:
        if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise Unfit("got a web page (a login, warning or limit?) instead of the file")
        yield answer


class Unfit(ConnectionError):
    """A server that answers, and will not send what was asked for: a web page in its place."""


class NoRanges(Unfit):
    """A server that sends only whole files."""


class Answer(Protocol):
    """What is read of a response: its bytes, ``length`` of them, and its head."""

    @property
    def status(self) -> int: ...  # noqa: D102

    @property
    def length(self) -> int | None: ...  # noqa: D102

    @property
    def headers(self) -> Message: ...  # noqa: D102

    def read1(self, size: int, /) -> bytes: ...  # noqa: D102


class _Local:
    """A file in a mirror that is a folder, answering as a server does."""

    def __init__(self, path: Path, start: int, end: int) -> None:
        self.file = path.open("rb")
        total = os.fstat(self.file.fileno()).st_size
        stop = min(end or total, total)
        self.status, self.length = (206 if start or end else 200), max(0, stop - start)
        self.headers = Message()
        self.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
        self.headers["ETag"] = f'"{os.fstat(self.file.fileno()).st_mtime_ns:x}-{total:x}"'
        self.file.seek(start)
        self.left = self.length

    def __enter__(self) -> _Local:
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()

    def read1(self, size: int, /) -> bytes:
        """The next bytes, at most ``size``."""
        found = self.file.read(min(size, self.left))
        self.left -= len(found)
        return found


class _Soon(HTTPConnection):
    """A connection that must be there within REACH seconds; later waits are as long as given."""

    def connect(self) -> None:
        patience, self.timeout = self.timeout, min(self.timeout or REACH, REACH)
        super().connect()
        self.sock.settimeout(patience)


class _SoonSecure(_Soon, HTTPSConnection):
    """The same, encrypted."""


class _Http(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_Soon, req)


class _Https(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_SoonSecure, req)


def _opened(request: Request, patience: float) -> HTTPResponse:
    """The response with its headers, within ``patience`` seconds.

    It runs in a thread because the opener's own timeout restarts with each byte.
    """
    found: SimpleQueue[HTTPResponse | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            found.put(build_opener(_Http, _Https).open(request, timeout=patience))
        except Exception as error:  # noqa: BLE001  raised again in the waiting thread
            found.put(error)

    Thread(target=ask, daemon=True).start()  # daemon: a hanging one does not block the exit
    try:
        answer = found.get(timeout=patience)
    except Empty as error:
        raise TimeoutError(f"no answer in {patience:.0f} s") from error
    if isinstance(answer, HTTPError):
        answer.close()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _newer(answer: Answer, part: Path) -> bool:
    """Whether, according to the server, the file changed after ``part`` of it was fetched."""
    try:
        changed = parsedate_to_datetime(answer.headers["Last-Modified"])
    except (TypeError, ValueError):
        return False
    return changed.timestamp() > part.stat().st_mtime


def _block(answer: Answer, size: int) -> bytes:
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
