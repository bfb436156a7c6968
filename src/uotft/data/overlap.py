"""Test images that are also in the source: the same bytes, the same file, or the same picture.

A picture is compared by its perceptual hash (64 bits, Zauner 2010, `imagehash.phash`): a pair whose
hashes differ in at most DISTANCE bits is a candidate, and counts when the two pictures agree at
16 x 16 grey pixels too. Re-encoded and resized copies are found; cropped, turned and mirrored ones
are not. The thresholds are measured: docs/log.md, experiments/overlap.py.

A file stem counts alone only if it is an ImageNet id (n02085620_7, ILSVRC2012_val_00000001), given
once to one image. Any other equal stem, such as 0001 or img_1, may name two images, and counts only
if the pictures agree; its hash may differ by more than DISTANCE.

If more than ALIKE of the target's test images look like another of them, as handwritten digits do,
looking alike does not mean being the same picture, and only bytes and stems count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Key = str | int
Reason = Literal["bytes", "stem", "picture"]

#: What counts as the same; bits, correlations, and the standard deviation in grey levels.
DISTANCE, CORRELATION, STEM_CORRELATION, FLAT = 8, 0.95, 0.9, 2.0
ALIKE = 0.05  # of the target's test images; CIFAR-100 has 0.003, digits of 8 x 8 pixels 0.47
IMAGENET_ID = re.compile(r"n\d{8}_\d+|ILSVRC201\d_(val|test)_\d{8}")
BLOCK = 1024  # pictures of either side that are compared at once

Pairs = NDArray[np.int64]  # (n, 2): row of the target, row of the source


@dataclass(frozen=True)
class Picture:
    """What is kept of an image to compare it: about 1 kB.

    ``key`` is its path or row, ``stem`` its file name without suffix or None, ``sha256`` that of
    its bytes, ``hash`` 64 bits, ``thumbnail`` (256,) of mean 0 and length 1, or 0 if it is flat.
    """

    key: Key
    stem: str | None
    sha256: str
    hash: int
    thumbnail: NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """A target and a source image that are the same, and why; ``distance`` is in bits of 64."""

    target: Key
    source: Key
    reason: Reason
    distance: int
    correlation: float


def picture(image: Image, key: Key, sha256: str, stem: str | None = None) -> Picture:
    """Hash and thumbnail of an open image of any mode; the same whatever its size."""
    import imagehash
    from PIL.Image import Resampling

    grey = _grey(image).resize((32, 32), Resampling.LANCZOS)
    pixels = np.asarray(grey, np.float32)
    # phash reads 32 x 32 pixels; their means over 2 x 2 are the 16 x 16 thumbnail
    thumbnail = pixels.reshape(16, 2, 16, 2).mean((1, 3)).ravel()
    thumbnail -= thumbnail.mean()
    flat = pixels.std() < FLAT or not thumbnail.any()
    bits = np.packbits(imagehash.phash(grey).hash).tobytes()
    return Picture(
        key=key,
        stem=stem,
        sha256=sha256,
        hash=int.from_bytes(bits, "big"),
        thumbnail=thumbnail * 0 if flat else thumbnail / np.linalg.norm(thumbnail),
    )


def find(target: Sequence[Picture], source: Iterable[Picture]) -> Iterator[Match]:
    """Every pair that is the same image; ``source`` is read once, in blocks, and not kept.

    A flat picture, all of one grey, matches by an ImageNet id only.
    """
    hashes, thumbnails = _arrays(target)
    stems, digests = _rows(p.stem for p in target), _rows(p.sha256 for p in target)
    pictures = iter(source)
    while block := list(islice(pictures, BLOCK)):
        others, views = _arrays(block)
        twins = _joined(stems, (p.stem for p in block))
        copies = _joined(digests, (p.sha256 for p in block))
        clear = [IMAGENET_ID.fullmatch(target[t].stem or "") is not None for t, _ in twins]
        like = _correlations(thumbnails, views, twins) >= STEM_CORRELATION
        near = _near(hashes, others)
        alike = near[_correlations(thumbnails, views, near) >= CORRELATION]
        # the strongest reason is written last
        why: dict[tuple[int, int], Reason] = dict.fromkeys(map(tuple, alike.tolist()), "picture")
        why |= dict.fromkeys(map(tuple, twins[like | np.array(clear, bool)].tolist()), "stem")
        why |= {(t, s): "bytes" for t, s in copies.tolist() if thumbnails[t].any()}
        for (t, s), reason in sorted(why.items()):
            yield Match(
                target=target[t].key,
                source=block[s].key,
                reason=reason,
                distance=(target[t].hash ^ block[s].hash).bit_count(),
                correlation=round(float(thumbnails[t] @ views[s]), 6),
            )


def alike(pictures: Sequence[Picture]) -> float:
    """The share of ``pictures`` that look like another of them with other bytes."""
    found = find(pictures, pictures)
    return len({match.target for match in found if match.reason == "picture"}) / len(pictures)


def _near(target: NDArray[np.uint64], source: NDArray[np.uint64]) -> Pairs:
    """The pairs of hashes that differ in at most DISTANCE bits; BLOCK x BLOCK at once."""
    found = [
        np.argwhere(np.bitwise_count(target[i : i + BLOCK, None] ^ source) <= DISTANCE) + (i, 0)
        for i in range(0, len(target), BLOCK)
    ]
    return np.concatenate(found)


def _correlations(
    target: NDArray[np.float32], source: NDArray[np.float32], pairs: Pairs
) -> NDArray[np.float32]:
    """Correlation of the thumbnails of each pair (n,): 1 if equal, 0 if one of them is flat."""
    parts = [pairs[i : i + BLOCK].T for i in range(0, len(pairs), BLOCK)]
    values = [np.einsum("ij,ij->i", target[t], source[s]) for t, s in parts]
    return np.concatenate([np.zeros(0, np.float32), *values])


def _arrays(pictures: Sequence[Picture]) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Hashes (n,) and thumbnails (n, 256)."""
    hashes = np.array([p.hash for p in pictures], np.uint64)
    return hashes, np.stack([p.thumbnail for p in pictures])


def _rows(values: Iterable[str | None]) -> dict[str, list[int]]:
    """{value: the rows that have it}, without None."""
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if value is not None:
            rows.setdefault(value, []).append(row)
    return rows


def _joined(target: dict[str, list[int]], source: Iterable[str | None]) -> Pairs:
    """The pairs of rows that have the same value."""
    pairs = [(t, s) for s, value in enumerate(source) for t in target.get(value or "", ())]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _grey(image: Image) -> Image:
    """8 bits of grey from any mode; a JPEG is decoded at a small size, not shrunk afterwards."""
    from PIL import Image as pillow

    image.draft("L", (64, 64))
    if image.mode[0] in "IF":  # 16 and 32 bits, which convert() would cut off at 255
        pixels = np.asarray(image, np.float64)
        spread = (pixels - pixels.min()) / max(float(np.ptp(pixels)), 1e-9)
        return pillow.fromarray((255 * spread).astype(np.uint8))
    # Pillow warns when a palette with transparency becomes grey without its colours
    return (image.convert("RGBA") if image.mode == "P" else image).convert("L")
