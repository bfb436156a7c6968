"""Lines that one process writes and another one reads, when writers are killed in the middle."""

from __future__ import annotations

from pathlib import Path

from uotft.core import jsonl


def values(path: Path, start: int = 0) -> tuple[list[object], int]:
    found, place = jsonl.read(path, start)
    assert all(line.pop("at") > 0 for line in found)
    return [line["value"] for line in found], place


def test_what_comes_later_is_read_from_where_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert values(path) == ([], 0)
    jsonl.append(path, {"value": 1})
    found, place = values(path)
    assert found == [1]
    jsonl.append(path, {"value": float("nan")})
    jsonl.append(path, {"value": "ü"})
    found, _ = values(path, place)
    assert str(found) == "[nan, 'ü']"


def test_a_line_that_a_kill_has_cut_is_none_and_harms_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    jsonl.append(path, {"value": 1})
    jsonl.append(path, {"value": 2})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert values(path) == ([1], first), "it may be still being written"
        jsonl.append(path, {"value": 3})
        expected = [1, 2, 3] if cut == len(whole) - 1 else [1, 3]
        assert values(path)[0] == expected
