"""The stage overlap: test images that are also in the source, from folders or prepared data."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import Progress
from uotft.data import folders, overlap as image_overlap
from uotft.data.files import suffixes
from uotft.data.pixel_cache import content_of, picture_of
from uotft.data.walk import walk
from uotft.pipeline import readers
from uotft.pipeline.workspace import Workspace

logger = logging.getLogger(__name__)


def within(
    name: str,
    output: Path | None = None,
    *,
    progress: Progress,
    workspace: Callable[[], Workspace] = Workspace.find,
) -> dict[str, Any]:
    """Compare the test images of one set, or folder with parts, with its train and val images.

    The result is that of `overlap`, with the set on both sides.
    """
    sides = {
        "source": _side(name, ("train", "val"), workspace, progress),
        "target": _side(name, ("test",), workspace, progress),
    }
    if WHOLE in (side.part for side in sides.values()):
        raise UserError(
            f"{name}: the folder has no train/ and test/ to compare; prepare it as a data set, or "
            "name two folders as --source and --target"
        )
    return _compared(sides, output)


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
    result, ``matches`` are the pairs that count; ``doubtful`` are those that do not, because the
    target's own pictures look alike.
    """
    sides = {
        "source": _side(source, ("train",), workspace, progress),
        "target": _side(target, ("test",), workspace, progress),
    }
    return _compared(sides, output)


def _compared(sides: dict[str, _Folder | _Prepared], output: Path | None) -> dict[str, Any]:
    """The pairs of equal images, and what was compared."""
    tested = list(sides["target"].pictures())
    if not tested:
        side = sides["target"]
        lost = side.unreadable or f"there are none in {side.part}"
        raise UserError(f"{side.name}: none of its images can be read: {lost}")
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
    """The result as text: counts for each reason, and the ``first`` matches."""
    counts, matches = result["counts"], result["matches"]
    for side in ("source", "target"):
        facts, lost = result[side], result[side]["unreadable"]
        yield f"{side}: {facts['images']} images of {facts['name']} ({facts['part']})"
        if lost:
            more = ", ..." if len(lost) > first else ""
            yield f"{side}: {len(lost)} files cannot be read: {', '.join(lost[:first])}{more}"
    reasons = ", ".join(f"{why} {counts[why]}" for why in ("bytes", "stem", "picture"))
    found, inside = counts["target_images"], result["source"]["name"] == result["target"]["name"]
    other = result["source"]["part"] if inside else "the source"
    yield f"{found} test images are in {other}, {len(matches)} pairs: {reasons}"
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
    name: str, parts: tuple[str, ...], workspace: Callable[[], Workspace], progress: Progress
) -> _Folder | _Prepared:
    """The prepared data set of this name, else the folder; `UserError` if neither exists.

    A data set is often called as the folder beside params.yaml that its images come from: ./NAME is
    the folder.
    """
    try:
        ws = workspace()
        config.dataset_settings(ws.params, name)
    except UserError as error:
        if Path(name).is_dir():
            return _Folder(name, parts, progress)
        raise UserError(f"{name!r} is neither a folder nor a prepared data set: {error}") from error
    return _Prepared(ws, name, parts, progress)


def _found(folder: Path, parts: tuple[str, ...]) -> tuple[list[str], str]:
    """The images of some parts of a folder, as paths below it, and what they are.

    Parts are those that `prepare` reads; or, where it finds no classes, folders of their names; or,
    where there are none, the whole folder. Warns of what is left out.
    """
    try:
        scan = folders.scan(folder)
    except UserError:
        scan = folders.Scan([])
    names = [os.fsdecode(path) for path, _, part in scan.rows if part in parts]
    if names and len({part for *_, part in scan.rows}) > 1:
        _warn(folder, scan.notes)
        return sorted(names), " and ".join(parts)
    inside, names = sorted(folder.iterdir()), []
    places = [p for p in inside if folders.part_of(p.name) in parts and p.is_dir()]
    for place in places or [folder]:
        tree = walk(place)
        _warn(place, tree.notes())
        names += [str((place / os.fsdecode(n)).relative_to(folder)) for n in tree.images()]
    return sorted(names), " and ".join(parts) if places else WHOLE


def _warn(place: Path, notes: Iterable[str]) -> None:
    for note in notes:
        logger.warning("%s: %s", place, note)


WHOLE = "all of the folder"  # in place of a part, where a folder has none
SMALL = 64  # least side in pixels to which a JPEG may be scaled down while decoding


class _Prepared:
    """Some parts of data/NAME.npz; the key of an image is its row, its bytes are its pixels."""

    def __init__(
        self, ws: Workspace, name: str, parts: tuple[str, ...], progress: Progress
    ) -> None:
        self.path, self.name, self.progress = ws.data(name), name, progress
        self.part, self.images = " and ".join(parts), readers.images(ws, name)
        self.rows, self.unreadable = np.flatnonzero(np.isin(self.images.splits, parts)), list[str]()

    def pictures(self) -> Iterator[image_overlap.Picture]:
        """Every image of the parts."""
        from PIL import Image

        for row in self.progress(self.rows.tolist(), f"{self.name}: {self.part}"):
            if self.images.files is None:
                pixels = self.images.images[row]
                digest = hashlib.sha256(pixels.tobytes()).hexdigest()
                yield image_overlap.picture(Image.fromarray(pixels), row, digest)
                continue
            files, path = self.images.files, self.images.files.path(row)
            content = content_of(files, row)
            digest = files.sha256[row].tobytes().hex()  # content_of has checked it
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
    """The image files of some ``parts`` of a folder, or of all of it.

    The key of an image is its path from the folder. ``sha256`` is that of all paths and contents.
    """

    def __init__(self, name: str, parts: tuple[str, ...], progress: Progress) -> None:
        self.name, self.progress, self.root = name, progress, Path(name)
        self.files, self.part = _found(self.root, parts)
        if not self.files:
            raise UserError(
                f"{self.root}: no image in this folder or below; looked for files that end in "
                f"{', '.join(sorted(suffixes()))}"
            )
        self.unreadable: list[str] = []
        self.digest = hashlib.sha256()

    def pictures(self) -> Iterator[image_overlap.Picture]:
        """Every image that can be read; the others are listed in ``unreadable``."""
        for name in self.progress(self.files, f"{self.name}: {self.part}"):
            key = os.fsencode(name).decode(errors="replace")  # JSON holds Unicode only
            try:
                content = (self.root / name).read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                image = picture_of(content, Path(key), "L", SMALL)
            except (OSError, UserError):
                self.unreadable.append(key)
                continue
            self.digest.update(f"{key}\0{digest}\n".encode())
            yield image_overlap.picture(image, key, digest, Path(key).stem)

    def facts(self) -> dict[str, Any]:
        """What was compared."""
        return {
            "name": self.name,
            "part": self.part,
            "images": len(self.files) - len(self.unreadable),
            "unreadable": self.unreadable,
            "sha256": self.digest.hexdigest(),
        }
