"""Sections -> one self-contained HTML page, which loads nothing from the network.

The markup and the style sheet are in templates/report.html. Jinja escapes every text it inserts,
so a class named ``<script>`` stays a name. `uotft compare` writes the page to reports/index.html.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import ClassVar

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """Rows of text; the first is the header."""

    rows: Rows
    kind: ClassVar = "table"


@dataclass(frozen=True)
class Picture:
    """A PNG. One with a ``name`` is also written to reports/pictures/NAME-TARGET.png."""

    png: bytes
    name: str = ""
    kind: ClassVar = "picture"

    @property
    def uri(self) -> str:
        """The picture as a data: address, so that the page loads no other file."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar = "text"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: tuple[str, ...]
    kind: ClassVar = "items"


@dataclass(frozen=True)
class Lead:
    """A paragraph that stands out."""

    text: str
    kind: ClassVar = "lead"


Part = Table | Picture | Text | Items | Lead


@dataclass(frozen=True)
class Section:
    """A heading and the parts below it. The heading is also the alt text of its pictures."""

    heading: str
    parts: list[Part]


def render(title: str, sections: list[Section]) -> str:
    """The HTML of a page; it opens with a table of contents that links to every section."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("uotft.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html").render(title=title, sections=sections)
