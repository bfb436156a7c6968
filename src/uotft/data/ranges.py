"""Small pieces of one large file on a server, asked for over one connection that stays open."""

from __future__ import annotations

from email.message import Message
from http.client import HTTPResponse

import requests

from uotft.data.archives import Span
from uotft.data.downloads import (
    NO_RANGES,
    PATIENCE,
    REACH,
    NoRanges,
    ask,
    must_be,
    redirected,
    tag_of,
    total_of,
)  # fmt: skip


class Ranges:
    """A file at an address, of which small pieces are read over one connection that stays open.

    ``url`` is the address really asked, ``span`` says which file it is. Raises `NoRanges` if the
    server sends only whole files, and another `OSError` if it sends nothing.
    """

    def __init__(self, url: str) -> None:
        self.url = redirected(url)
        with ask(self.url, end=1) as answer:
            if answer.status != 206:
                raise NoRanges(NO_RANGES)
            self.span = Span(0, total_of(answer), tag_of(answer))
            self._asked = answer.geturl() if isinstance(answer, HTTPResponse) else ""
        self._session = requests.Session()

    def __enter__(self) -> Ranges:
        return self

    def __exit__(self, *args: object) -> None:
        self._session.close()

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on; a broken connection is opened once again."""
        try:
            return self._read(start, size)
        except OSError:
            return self._read(start, size)

    def _read(self, start: int, size: int) -> bytes:
        if not self._asked:
            with ask(self.url, start, start + size) as local:
                return local.read1(size)
        asked = {"User-Agent": "uotft", "Range": f"bytes={start}-{start + size - 1}"}
        with self._session.get(
            self._asked, headers=asked, timeout=(REACH, PATIENCE), stream=True
        ) as answer:
            answer.raise_for_status()
            must_be(_Head(answer), self.span, start, start + size)
            found: bytes = answer.content
        if len(found) != size:
            raise ConnectionError(f"got {len(found)} bytes from {start} on, not {size}")
        return found


class _Head:
    """The head of a response of `requests`, as an `Answer`."""

    length = None

    def __init__(self, answer: requests.Response) -> None:
        self.status, self.headers = answer.status_code, Message()
        for name, value in answer.headers.items():
            self.headers[name] = value

    def read1(self, size: int, /) -> bytes:
        raise NotImplementedError
