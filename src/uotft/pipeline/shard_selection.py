"""The kept classes of shards that fit no disk: a second pass copies their pictures, and no other.

    uotft data keep --shards "https://example.org/web-{000..127}.tar" --selection selection.json \\
        --output kept

Resumes at the shard; several processes share the work, as for class means (pipeline/shard_banks).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import yaml

from uotft.core import paths, storage
from uotft.core.errors import UserError
from uotft.core.records import Progress
from uotft.core.text import plural
from uotft.data import shard_stream, shards
from uotft.data.shard_stream import Shards
from uotft.data.shards import Picture
from uotft.pipeline.shard_banks import Reading


def keep(
    every: Shards,
    selection: Path,
    reading: Reading,
    output: Path,
    progress: Progress,
    *,
    names: str = "",
) -> list[str]:
    """Write OUTPUT/NAME.tar with those pictures of each shard whose class a selection keeps.

    A shard without any gets no file. ``names`` is a file of class names, as for the bank. Returns
    lines: what was written, and how to read it as a data set.
    """
    for place in every.places:
        if "://" not in place:
            paths.must_not_replace(output / Path(place).name, [place])
    wanted = _classes(selection)
    made_of = {"classes": sorted(wanted), "label": reading.label, "lines": _lines(names, wanted)}
    _check(every.folder / "made_of.json", made_of, output)
    known: dict[str, str] = {}  # the name of each label so far
    done = shard_stream.each(every, lambda number: _record(every, number).is_file())
    for number, tar in progress(done, f"reading {plural(len(every.places), 'shard')}"):
        found, texts = reading.pictures(tar)
        if not known.keys() >= {*texts}:
            each = sorted({*texts, *known})
            known = dict(zip(each, shards.named(each, Path(names)) if names else each, strict=True))
        pairs = enumerate(zip(found, texts, strict=True))
        kept = [(i, picture) for i, (picture, text) in pairs if known[text] in wanted]
        if kept:
            members = _members(tar, kept, reading.label.partition(".")[0])
            storage.write(output / tar.name, partial(shards.write, members=members))
        storage.write_json(_record(every, number), {"images": len(kept)})
    records = (_record(every, number) for number in range(len(every.places)))
    images = sum(storage.read_json(record)["images"] for record in records)
    if not images:
        raise UserError(
            f"{output}: no picture of the classes of {selection} in "
            f"{plural(len(every.places), 'shard')}"
        )
    section = {"kind": "shards", "path": os.fspath(output), "label": reading.label}
    section |= {"names": names} if names else {}
    text = yaml.safe_dump({**section, "test": 0.0}, default_flow_style=True, sort_keys=False,
                          width=2**16)  # fmt: skip
    return [
        f"{output}: {plural(images, 'image')} of {plural(len(wanted), 'class')}, from "
        f"{plural(len(every.places), 'shard')}",
        f"as a data set: {text.strip()}",
    ]


def _classes(selection: Path) -> set[str]:
    """The names of the classes that a selection.json keeps."""
    try:
        return {entry["name"] for entry in storage.read_json(selection)["classes"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"--selection: {selection} is not a selection.json") from error


def _lines(names: str, wanted: set[str]) -> dict[str, str] | None:
    """{line number: name} of the wanted classes in a file of class names, if there is one."""
    if not names:
        return None
    try:
        lines = shards.class_lines(Path(names))
    except (OSError, ValueError) as error:
        raise UserError(f"--names: {names}: {error}") from error
    return {str(number): name for number, name in enumerate(lines) if name in wanted}


def _record(every: Shards, number: int) -> Path:
    """The file that says that a shard is done."""
    place = hashlib.sha256(every.places[number].encode()).hexdigest()
    return every.folder / f"{place[:32]}.json"


def _check(record: Path, made_of: Mapping[str, object], output: Path) -> None:
    if not record.is_file():
        storage.write_json(record, made_of)
    if storage.read_json(record) != made_of:
        raise UserError(
            f"{output} is of another selection, or other --label or --names: delete it, or name "
            "another --output"
        )


def _members(tar: Path, kept: list[tuple[int, Picture]], label: str) -> Iterator[tuple[str, bytes]]:
    """The label and the picture of each kept sample; its key is its number in the shard.

    Names of their own may be longer than a tar of ours takes, and hold dots.
    """
    with tar.open("rb") as file:
        for number, picture in kept:
            content = os.pread(file.fileno(), picture.size, picture.offset)
            yield f"{number:09}.{label}", picture.label
            yield f"{number:09}{Path(picture.name).suffix.lower()}", content
