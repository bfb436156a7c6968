"""Files of banks that travel: fetched, checked and shown. Needs no torch.

uotft bank show birds.safetensors
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from uotft.core import user_settings
from uotft.core.errors import UserError
from uotft.core.records import Progress
from uotft.core.text import some
from uotft.data import downloads
from uotft.data.archives import Archive
from uotft.selection import banks

HEX = re.compile(r"[0-9a-fA-F]{64}")


def fetch(url: str, sha256: str, output: Path | None, progress: Progress) -> list[str]:
    """Download a bank and check it before it gets its name; returns what `show` says.

    A broken download resumes. ``sha256`` is its digest, as its publisher states it.
    """
    if not (user_settings.is_address(url) and url.isascii()):
        raise UserError(
            f"bank fetch: got {url!r}; give an address that begins with https://, in ASCII (%C3%A4 "
            "for ä)"
        )
    if not HEX.fullmatch(sha256):
        raise UserError(
            f"--sha256: got {sha256!r}; give the 64 digits that the bank's publisher states beside "
            "its address: a bank decides what is trained on, so no other is taken. If none is "
            "stated, ask for it; the publisher gets it by `sha256sum FILE`"
        )
    path = output or Path(url.partition("?")[0].rpartition("/")[2])
    check_name(path, "--output" if output else url)
    archive = Archive(path.name, "", 0, sha256.lower(), (url,))
    if path.is_file():
        if why := archive.wrong(path, progress):
            raise UserError(f"{path} is there already, and {why}: remove it, or name another "
                            "--output")  # fmt: skip
        return show(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    downloads.fetch(downloads.sized(archive, path.parent), path.parent, progress)
    try:
        return show(path)
    except UserError:
        path.unlink()
        raise


def show(path: Path) -> list[str]:
    """Lines on a bank: what its rows are, and whether they can be used."""
    bank = banks.brought(str(path))
    rows, size = bank.means.shape
    kind = "row of a classifier" if bank.classifier else f"mean of {_article(bank.unit)}"
    lines = [
        f"{path}: {rows:,} rows of {size:,} features ({bank.means.dtype}), each the {kind}",
        f"names: {some(bank.names)}",
    ]
    if not bank.classifier:
        few, many = bank.counts.min(), bank.counts.max()
        lines.append(f"images behind a row: {few:,} to {many:,}, {bank.counts.sum():,} in all")
    if len(bank.trunk):
        lines.append(f"for heads: as many rows of {bank.trunk.shape[1]:,} features")
    lines += [f"{name}: {getattr(bank, name)}" for name in ("origin", "weights", "backbone")
              if getattr(bank, name)]  # fmt: skip
    if not (bank.weights or bank.backbone):
        lines.append("weights: not stated, so nothing says which network made it")
    bad = np.flatnonzero(~np.isfinite(bank.means).all(1) | ~bank.means.any(1))
    if len(bad):
        names = some(f"{bank.names[row]!r} (row {row})" for row in bad.tolist())
        lines.append(f"rows that are NaN, infinite or all zero: {names}; a selection refuses them")
    else:
        lines.append("every row is finite, and none is all zero")
    return lines


def check_name(path: Path, what: str = "--output") -> None:
    """A `UserError` about ``what`` if ``path`` does not end as a bank does."""
    if path.suffix not in (banks.PACKED, ".npz"):
        raise UserError(
            f"{what}: got {path}; a bank is a file that ends in {banks.PACKED} or .npz: name it so"
        )


def _article(unit: str) -> str:
    return f"{'an' if unit == 'image' else 'a'} {unit}"
