"""Paths: those in params.yaml, all by one rule, and those of databases, as addresses."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from uotft.core.errors import UserError

WORDS = ("", "download", "none", "package")  # that stand where a path might


def located(root: Path, text: str) -> Path:
    """Where the path ``text`` of params.yaml leads: a relative one starts at the project ``root``.

    ``~`` is the user's home; an error where the user has none. A ``root`` that is not there yet can
    have neighbours: ROOT/../downloads is then no path for the system, and .. is taken out.
    """
    try:
        path = root / Path(text).expanduser()
        return path if root.exists() else Path(os.path.normpath(path))
    except RuntimeError as error:
        raise UserError(f"{text}: this user has no home: write the whole path") from error


def with_files(settings: Any, root: Path) -> Any:
    """The settings of a section with the paths of its ``FILES`` made whole."""
    named = {name: getattr(settings, name) for name in getattr(settings, "FILES", ())}
    whole = {n: str(located(root, text)) for n, text in named.items() if text not in WORDS}
    return settings.model_copy(update=whole)


def must_not_replace(output: Path, inputs: Iterable[str | Path]) -> None:
    """Raise `UserError` if ``output`` is one of the files that it is made from."""
    for path in inputs:
        if str(path) and output.resolve() == Path(path).resolve():
            raise UserError(f"--output {output}: would replace {path}, which is read: name another")


def sqlite(path: Path) -> str:
    """The address of an SQLite database for SQLAlchemy, which ends a path at ? and decodes %.

    A path with one of these names the driver, too: MLflow would make the folder of a plain
    ``sqlite:///`` address without decoding it.
    """
    text = str(path).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{text}" if text == str(path) else f"sqlite+pysqlite:///{text}"


def of_sqlite(address: str) -> Path | None:
    """The file of an SQLite database; None for another address."""
    scheme, slashes, text = address.partition(":///")
    if not slashes or scheme.partition("+")[0] != "sqlite":
        return None
    return Path(unquote(text.partition("?")[0]))
