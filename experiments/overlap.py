"""How well `uotft.data.overlap` tells copies from others, on a folder with train/ and test/.

    python experiments/overlap.py FOLDER      # under a minute for CIFAR-100

Prints the share of re-encoded and resized copies of 1,000 test images that is found, by the hash
alone and confirmed by correlation; then how many pairs of different files, test against train, pass
for the same picture under several thresholds. Real data sets hold real copies: `uotft data overlap`
lists those pairs.
"""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from uotft.core.progress import track
from uotft.data import overlap


def read(path: Path) -> overlap.Picture:
    """One file as the command reads it."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        return overlap.picture(image, str(path), hashlib.sha256(content).hexdigest())


def copy(path: Path, scale: float, quality: int) -> overlap.Picture:
    """A JPEG copy of another size."""
    file = io.BytesIO()
    with Image.open(path) as image:
        size = [max(1, round(side * scale)) for side in image.size]
        image.convert("RGB").resize(size).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return overlap.picture(image, "", "")


def main(folder: Path) -> None:
    """Print both tables."""
    tested, source = (
        sorted(path for path in (folder / part).rglob("*") if path.is_file())
        for part in ("test", "train")
    )
    chosen = [tested[i] for i in np.linspace(0, len(tested) - 1, 1000).astype(int)]
    originals = [read(path) for path in chosen]
    print("copies found, %: hash alone, hash and correlation")
    changes = [(1, q) for q in (30, 50, 70, 80, 95)] + [(s, 90) for s in (0.5, 0.75, 1.5, 2, 4)]
    for scale, quality in [*changes, (0.5, 30)]:
        copies = [copy(path, scale, quality) for path in chosen]
        near = [
            (a.hash ^ b.hash).bit_count() <= overlap.DISTANCE
            for a, b in zip(originals, copies, strict=True)
        ]
        alike = [
            a.thumbnail @ b.thumbnail >= overlap.CORRELATION
            for a, b in zip(originals, copies, strict=True)
        ]
        both = np.mean(np.logical_and(near, alike))
        print(f"x{scale:<5} quality {quality:<3} {100 * np.mean(near):6.1f} {100 * both:6.1f}")

    targets = [read(path) for path in track(tested, "test")]
    overlap.CORRELATION = -1.0  # every pair with near hashes
    overlap.DISTANCE = 12
    pictures = (read(path) for path in track(source, "train"))
    pairs = [(m.distance, m.correlation) for m in overlap.find(targets, pictures)]
    found = np.array(pairs).reshape(-1, 2)
    print(f"pairs of {len(tested)} test and {len(source)} training files that pass")
    for distance in (4, 6, 8, 10, 12):
        passed = found[found[:, 0] <= distance, 1]
        counts = "  ".join(f"r>={r}: {np.sum(passed >= r)}" for r in (0.8, 0.9, 0.93, 0.95, 0.97))
        print(f"distance<={distance:<3} hash alone: {len(passed)}  {counts}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
