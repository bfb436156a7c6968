"""The stage overlap: test images that are also in the source, from folders or prepared data."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import Progress
from uotft.data import overlap as image_overlap
from uotft.data.files import is_image, suffixes
from uotft.data.pixel_cache import content_of, picture_of
from uotft.pipeline import readers
from uotft.pipeline.workspace import Workspace


def overlap(
    source: str,
    target: str,
    output: Path | None = None,
    *,
    progress: Progress,
    workspace: Callable[[], Workspace] = Workspace.find,
) -> dict[str, Any]:
    """Compare the target's test images with the source's training images; may write a JSON file.

    Each side is a folder or a prepared data set; only the latter needs the ``workspace``. In the
    result, ``matches`` are the pairs that count, ``doubtful`` those that do not because the
    target's own pictures look alike.
    """
    sides = {
        "source": _side(source, "train", workspace, progress),
        "target": _side(target, "test", workspace, progress),
    }
    tested = list(sides["target"].pictures())
    if not tested:
        raise UserError(f"{target}: none of its images can be read: {sides['target'].unreadable}")
    found = [asdict(match) for match in image_overlap.find(tested, sides["source"].pictures())]
    alike = (
        image_overlap.alike(tested) if any(match["reason"] == "picture" for match in found) else 0.0
    )
    doubtful = [m for m in found if m["reason"] == "picture" and alike > image_overlap.ALIKE]
    matches = [match for match in found if match not in doubtful]
    result = {
        **{name: side.facts() for name, side in sides.items()},
        "thresholds": {
            "distance": image_overlap.DISTANCE,
            "correlation": image_overlap.CORRELATION,
            "stem_correlation": image_overlap.STEM_CORRELATION,
            "flat": image_overlap.FLAT,
            "alike": image_overlap.ALIKE,
        },
        "alike": alike,
        "counts": {
            **{why: 0 for why in ("bytes", "stem", "picture")},
            **Counter(match["reason"] for match in matches),
            "target_images": len({match["target"] for match in matches}),
            "source_images": len({match["source"] for match in matches}),
        },
        "matches": matches,
        "doubtful": doubtful,
    }
    if output is not None:
        storage.write_json(output, result)
    return result


def overlap_lines(result: dict[str, Any], first: int = 10) -> Iterator[str]:
    """The result for people: counts for each reason, and the first matches."""
    counts, matches = result["counts"], result["matches"]
    for side in ("source", "target"):
        facts, lost = result[side], result[side]["unreadable"]
        yield f"{side}: {facts['images']} images of {facts['name']} ({facts['part']})"
        if lost:
            more = ", ..." if len(lost) > first else ""
            yield f"{side}: {len(lost)} files cannot be read: {', '.join(lost[:first])}{more}"
    reasons = ", ".join(f"{why} {counts[why]}" for why in ("bytes", "stem", "picture"))
    found = counts["target_images"]
    yield f"{found} test images are in the source, {len(matches)} pairs: {reasons}"
    if result["doubtful"]:
        yield (
            f"not counted: {len(result['doubtful'])} pairs that look alike, because "
            f"{100 * result['alike']:.0f} % of the test images look like another test image too"
        )
    for match in matches[:first]:
        why = f"{match['reason']:<8} {match['distance']:>2} bits {match['correlation']:6.3f}"
        yield f"  {why}  {match['target']}  =  {match['source']}"
    if len(matches) > first:
        yield f"  ... and {len(matches) - first} more; --output FILE.json writes all"


def _side(
    name: str, part: str, workspace: Callable[[], Workspace], progress: Progress
) -> _Folder | _Prepared:
    """The folder of this name, or else the prepared data set."""
    if Path(name).is_dir():
        return _Folder(name, part, progress)
    try:
        ws = workspace()
        config.dataset_settings(ws.params, name)
    except UserError as error:
        raise UserError(f"{name!r} is neither a folder nor a prepared data set: {error}") from error
    return _Prepared(ws, name, part, progress)


SMALL = 64  # pixels a side at least, of a JPEG that is decoded smaller than it is


class _Prepared:
    """One part of data/NAME.npz; the key of an image is its row, its bytes are its pixels."""

    def __init__(self, ws: Workspace, name: str, part: str, progress: Progress) -> None:
        self.path, self.name, self.part, self.progress = ws.data(name), name, part, progress
        self.images = readers.images(ws, name)
        self.rows, self.unreadable = self.images.rows(part), list[str]()

    def pictures(self) -> Iterator[image_overlap.Picture]:
        """Every image of the part."""
        from PIL import Image

        for row in self.progress(self.rows.tolist(), f"{self.name}: {self.part}"):
            if self.images.files is None:
                pixels = self.images.images[row]
                digest = hashlib.sha256(pixels.tobytes()).hexdigest()
                yield image_overlap.picture(Image.fromarray(pixels), row, digest)
                continue
            files, path = self.images.files, self.images.files.path(row)
            content = content_of(files, row)
            digest = files.sha256[row].tobytes().hex()  # which content_of has checked
            image = picture_of(content, path, "L", SMALL, files.background, files.white)
            yield image_overlap.picture(image, row, digest, path.stem)

    def facts(self) -> dict[str, Any]:
        """What was compared."""
        return {
            "name": self.name,
            "part": self.part,
            "images": len(self.rows),
            "unreadable": [],
            "sha256": storage.fingerprint(self.path),
        }


class _Folder:
    """The image files below a folder, or below its sub-folder ``part`` if it has one.

    The key of an image is its path from the folder. ``sha256`` is that of all paths and contents.
    """

    def __init__(self, name: str, part: str, progress: Progress) -> None:
        self.name, self.part, self.progress = name, part, progress
        self.root = Path(name)
        within = self.root / part if (self.root / part).is_dir() else self.root
        self.files = sorted(
            str(path.relative_to(self.root))
            for path in within.rglob("*")
            if is_image(path.name) and path.is_file()
        )
        if not self.files:
            raise UserError(
                f"{within}: no image in this folder or below; looked for files that end in "
                f"{', '.join(sorted(suffixes()))}"
            )
        self.unreadable: list[str] = []
        self.digest = hashlib.sha256()

    def pictures(self) -> Iterator[image_overlap.Picture]:
        """Every image that can be read; the others are listed in ``unreadable``."""
        for name in self.progress(self.files, f"{self.name}: {self.part}"):
            shown = os.fsencode(name).decode(errors="replace")  # JSON holds Unicode only
            try:
                content = (self.root / name).read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                image = picture_of(content, Path(shown), "L", SMALL)
            except (OSError, UserError):
                self.unreadable.append(shown)
                continue
            self.digest.update(f"{shown}\0{digest}\n".encode())
            yield image_overlap.picture(image, shown, digest, Path(shown).stem)

    def facts(self) -> dict[str, Any]:
        """What was compared."""
        return {
            "name": self.name,
            "part": self.part,
            "images": len(self.files) - len(self.unreadable),
            "unreadable": self.unreadable,
            "sha256": self.digest.hexdigest(),
        }
