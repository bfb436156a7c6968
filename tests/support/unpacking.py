"""Bytes of an archive -> what `uotft.data.archives` makes of them."""

from __future__ import annotations

from pathlib import Path

from uotft.data import archives


def quiet(items, label):  # noqa: ANN001, ANN201
    return items


def unpack(content: bytes, name: str, folder: Path, files: int = 100) -> Path:
    path = folder / name
    path.write_bytes(content)
    archives.unpack([(path, "", files)], folder / "cache" / "made", quiet)
    return folder / "cache" / "made"
