"""A CSV or Parquet file that lists images -> its rows: path, class and part.

    path,label,split
    photos/1.jpg,robin,train

Paths are relative to the list's folder. Without the column split, all rows are in train. Column
names may be in upper or lower case; a CSV may use commas, semicolons or tabs, in UTF-8 or UTF-16. A
column that may give the parts, but whose values are not understood, is refused: a new cut would
train on test images.
"""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uotft.core.errors import UserError
from uotft.core.text import FEW, some
from uotft.data.files import is_image

# How people spell the parts; `part_of` ignores case, spaces, "_" and "-".
PARTS = {
    **dict.fromkeys(("train", "training", "trainset", "trainingset", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "validset", "validationset"), "val"),
    **dict.fromkeys(("dev", "devset"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "testingset", "tst"), "test"),
}
LISTS = (".csv", ".parquet")
COLUMNS = ("path", "label", "split")
# Columns that may say which rows are tests, if there is no `split`.
LIKE_SPLIT = ("set", "subset", "part", "partition", "fold", "usage", "phase", "datasplit")
INDEX = ("", "unnamed: 0", "__index_level_0__")  # a column that pandas adds
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
UNLABELLED = "unlabelled"  # the one class of a set without labels
MISSING = {"nan", "none", "null", "n/a", "na", "<na>", "?"}  # labels that mean: no label
BETWEEN = ("|", ";", ",", " ")  # separators in the label of a picture that has several

Rows = list[tuple[bytes, str, str]]  # path, class, part


class Found(NamedTuple):
    """The images of a set below ``folder``, notes for the user, and listed files that are absent.

    ``rows`` include the absent ones.
    """

    folder: Path
    rows: Rows
    notes: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def must_be_there(self) -> None:
        """Raise `UserError` if listed files are absent; it counts them and names the first."""
        if self.absent:
            first = self.folder / self.absent[0]
            alike = sorted(p.name for p in first.parent.glob("*") if p.stem == first.name)
            hint = f"; {alike[0]} is there: names need their ending" if alike else self._elsewhere()
            raise UserError(
                f"{self.folder}: {len(self.absent)} of {len(self.rows)} files that the list names "
                f"are absent, first {self.absent[0]}: No such file{hint}"
            )

    def _elsewhere(self) -> str:
        """A hint on the first absent path, if it is an address or a path of another machine."""
        path = self.absent[0].replace("\\", "/")
        if "://" in path:
            return (
                "; it is an address: fetch the files, and list their paths from the list's folder"
            )
        pieces = path.split("/")
        ends = ("/".join(pieces[at:]) for at in range(1, len(pieces)))
        near = next((end for end in ends if (self.folder / end).is_file()), "")
        return f"; {near} is there: write paths relative to the list's folder" if near else ""


def part_of(name: str) -> str | None:
    """train, val or test for a name that means this part: " Test", TRAIN, Training, val-set."""
    return PARTS.get(_bare(name))


def class_name(text: str) -> str:
    """The name of a class as it is compared: without spaces around it, in Unicode's form NFC."""
    return unicodedata.normalize("NFC", text.strip())


def differ_in_case(names: Iterable[str]) -> tuple[str, ...]:
    """A note for classes whose names differ in case only; empty if none do."""
    alike: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        alike.setdefault(name.casefold(), []).append(name)
    groups = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    return (f"classes whose names differ in case only: {some(groups)}",) if groups else ()


def read(path: Path, *, labelled: bool = True) -> Found:
    """The rows of a list, each picture once. Raises `UserError`, which names the row.

    If not ``labelled``, the list needs no labels, and all rows are of one class.
    """
    header, cells = _table(path)
    columns, notes = _columns(path, header, cells, ("path", "label") if labelled else ("path",))
    rows: Rows = []
    seen: dict[str, tuple[str, str, int]] = {}
    again, changed, absent, partless = 0, dict[str, str](), list[str](), 0
    for number, row in enumerate(cells, start=1):
        image, given, split = (_text(path, number, row, columns.get(c)) for c in COLUMNS)
        given = given if labelled else UNLABELLED
        label, part = class_name(given), part_of(split) if split.strip() else "train"
        image = image.strip()
        if not image or not label or {"\0", "\n"} & {*image, *label}:
            got = dict(zip(header, row, strict=False))
            raise UserError(f"{path}: row {number}: needs a path and a label, got {got}")
        if part is None:
            raise UserError(
                f"{path}: row {number}: split: got {split!r}; known are train, val, test and their "
                "usual spellings"
            )
        partless += "split" in columns and not split.strip()
        image, is_there = _file(path.parent, image)
        place = os.path.normpath(os.path.join(path.parent, image))
        if place in seen:
            _must_agree(path, f"row {number}: {image}", (label, part), seen[place])
            again += 1
            continue
        seen[place] = (label, part, number)
        if label != given:
            changed[given] = label
        if not is_there:
            absent.append(image)
        rows.append((os.fsencode(image), label, part))
    if not rows:
        raise UserError(f"{path}: it lists no image")
    notes += _rows_notes(again, partless, changed)
    notes += _label_notes(Counter(label for _, label, _ in rows))
    notes += differ_in_case(label for _, label, _ in rows)
    return Found(path.parent, rows, tuple(notes), tuple(absent))


def _must_agree(
    path: Path, where: str, here: tuple[str, str], before: tuple[str, str, int]
) -> None:
    """Refuse a picture that two rows give another label or another part."""
    for mine, other in zip(here, before[:2], strict=True):
        if mine != other:
            raise UserError(f"{path}: {where} is {mine} here, but {other} in row {before[2]}")


def _rows_notes(again: int, partless: int, changed: dict[str, str]) -> list[str]:
    notes = []
    if again:
        notes.append(f"rows of the list that repeat an earlier one: {again}; one of each is kept")
    if partless:
        notes.append(f"rows of the list with an empty split: {partless}; they are in train")
    if changed:
        given, label = next(iter(changed.items()))
        notes.append(
            f"labels with spaces around them or another form of Unicode: {len(changed)}; "
            f"{given!r} is the class {label!r}"
        )
    return notes


def _label_notes(labels: Counter[str]) -> list[str]:
    """Notes on labels, {label: number of rows}, that look like none, or like several in one."""
    notes = []
    if none := [label for label in labels if label.casefold() in MISSING]:
        count = sum(labels[label] for label in none)
        notes.append(
            f"rows of the list with the label {' or '.join(map(repr, none))}: {count}; it is read "
            "as a class: remove the rows if it means that there is no label"
        )
    if several := sorted({label for mark in BETWEEN for label in _several(labels, mark)}):
        notes.append(
            f"labels that look like several in one: {len(several)} of {len(labels)}, such as "
            f"{several[0]!r}; each is read as one class, since a picture has one class here"
        )
    return notes


def _several(labels: Iterable[str], mark: str) -> list[str]:
    """The labels that ``mark`` splits into other known labels.

    If few different pieces make up many labels, all labels that ``mark`` splits.
    """
    known, found = set(labels), dict[str, list[str]]()
    for label in known:
        pieces = [piece.strip(" []'\"") for piece in label.split(mark)]
        if len(pieces) > 1 and all(pieces):
            found[label] = pieces
    if 2 * len({piece for pieces in found.values() for piece in pieces}) < len(found):
        return list(found)
    return [label for label, pieces in found.items() if known.issuperset(pieces)]


def _file(folder: Path, image: str) -> tuple[str, bool]:
    """(path, whether it is a file); backslashes become slashes if only that gives a file."""
    if os.path.isfile(os.path.join(folder, image)):
        return image, True
    turned = image.replace("\\", "/")
    if turned != image and os.path.isfile(os.path.join(folder, turned)):
        return turned, True
    return image, False


def _text(path: Path, number: int, row: Sequence[Any], column: int | None) -> str:
    """A cell as text, empty where there is none."""
    cell = row[column] if column is not None and column < len(row) else None
    if cell is None or cell != cell:  # NaN, which pandas writes for an empty cell
        return ""
    if not isinstance(cell, str | int | float):
        raise UserError(
            f"{path}: row {number}: got a cell of type {type(cell).__name__}; path, label and "
            "split must be text"
        )
    return str(cell)


# ---- columns


def _bare(name: str) -> str:
    """A name without case, spaces, "_" and "-"."""
    return re.sub(r"[\s_-]", "", name).casefold()


def _named(header: Sequence[str]) -> dict[str, int]:
    """{known column: its index}."""
    return {c: i for i, name in enumerate(header) if (c := name.strip().casefold()) in COLUMNS}


def _columns(
    path: Path, header: Sequence[str], cells: Sequence[Sequence[Any]], needed: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
    """({known column: its index}, notes). Raises `UserError` if one is missing or uncertain."""
    plain = [name.strip().casefold() for name in header]
    found, notes = _named(header), list[str]()
    columns_text = ", ".join(map(repr, header))
    if twice := [c for c in found if plain.count(c) > 1]:
        raise UserError(f"{path}: two columns are called {twice[0]}: {columns_text}")
    if "row" in plain and "path" not in found:
        raise UserError(
            f"{path}: it lists rows of another set and no files; `uotft data subset` with a "
            "folder as --output writes shards, which can be read again"
        )
    if missing := [c for c in needed if c not in found]:
        hint = "; the first line must name the columns" if any(map(is_image, header)) else ""
        raise UserError(
            f"{path}: no column {' and no column '.join(missing)}; a list needs the columns "
            "path (relative to the list's folder, with its ending) and label, and may have split; "
            f"got {columns_text}{hint}"
        )
    others = [i for i, name in enumerate(plain) if name not in COLUMNS and name not in INDEX]
    if "split" not in found:
        guess = _guessed_split(path, header, cells, others)
        if guess is not None:
            found["split"] = guess
            notes.append(f"the column {header[guess]!r} of the list gives the parts")
            others.remove(guess)
    if others:
        unused = ", ".join(repr(header[i]) for i in others[: 2 * FEW])
        notes.append(f"columns of the list that are not used: {unused}")
    return found, notes


def _guessed_split(
    path: Path, header: Sequence[str], cells: Sequence[Sequence[Any]], others: Sequence[int]
) -> int | None:
    """The index of the only column whose values are all parts; None if none looks like that.

    Raises `UserError` for two such columns, and for a column named like parts with other values.
    """
    full, named = list[int](), list[tuple[int, list[str]]]()
    for i in others:
        found = [row[i] for row in cells if i < len(row)]
        values = {str(cell).strip() for cell in found if cell is not None and cell == cell} - {""}
        bare = _bare(header[i])
        if values and all(map(part_of, values)):
            full.append(i)
        elif bare in LIKE_SPLIT or part_of(bare) or part_of(bare.removeprefix("is")):
            named.append((i, sorted(values)))
    if len(full) == 1 and not named:
        return full[0]
    if not full and not named:
        return None
    i, examples = named[0] if named else (full[1], [])
    got = f" with {', '.join(map(repr, examples[:FEW]))}" if examples else ""
    raise UserError(
        f"{path}: the column {header[i]!r}{got} may say which rows are tests: write a column split "
        "with train, val and test, or remove this one"
    )


# ---- files


def _table(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    """(names of the columns, the cells of each row)."""
    from pyarrow import ArrowException, parquet

    try:
        if path.suffix.lower() == ".csv":
            return _csv(path)
        table = parquet.read_table(path)
        columns = [column.to_pylist() for column in table.columns]
        return list(table.column_names), list(zip(*columns, strict=True))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: the list cannot be read ({error}); save it as CSV in UTF-8"
        ) from error
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: the list cannot be read ({error})") from error


def _csv(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    """(header, rows) of a CSV with commas, semicolons or tabs, in UTF-8 or UTF-16."""
    content = path.read_bytes()
    encoding = next((e for mark, e in MARKS.items() if content.startswith(mark)), "utf-8")
    text = content.decode(encoding)
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    heads = {d: next(iter(csv.reader([first], delimiter=d)), []) for d in ",;\t"}
    # the separator that gives the most known columns; of equal ones, the most columns
    delimiter = max(heads, key=lambda d: (len(_named(heads[d])), len(heads[d])))
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    header, rows = [], list[Sequence[Any]]()
    try:
        header = next(reader, [])
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
            if len(row) > len(header) and any(row[len(header) :]):
                raise UserError(
                    f"{path}: row {len(rows)} has {len(row)} cells, the header {len(header)}: "
                    f"write names that hold {delimiter!r} in quotes"
                )
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from error
    return header, rows
