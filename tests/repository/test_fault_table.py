"""The table of docs/reliability.md is that of tests/faults/results.json; how the JSON is made."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fault_table
import reference
from support import fault_results
from support.repository import REPOSITORY

RESULTS = json.loads((fault_table.FAULTS / "results.json").read_text(encoding="utf-8"))
FILES = sorted(path.name for path in fault_table.FAULTS.glob("test_*.py"))


def test_the_results_have_every_fault() -> None:
    assert sorted(RESULTS) == FILES
    assert all(found["passed"] and found["commit"] and found["date"] for found in RESULTS.values())
    silent = [n for n, found in RESULTS.items() if not found["measured"] and not found["skipped"]]
    assert not silent, "nothing measured"


@pytest.mark.parametrize("name", FILES)
def test_a_docstring_says_the_fault_and_what_is_expected(name: str) -> None:
    assert all(fault_table.words(fault_table.FAULTS / name))


@pytest.mark.parametrize("doc", ["Fault 2: a\n\nExpected: b", "Fault 1: a\n\nb", "a", ""])
def test_a_docstring_of_another_shape_is_refused(tmp_path: Path, doc: str) -> None:
    path = tmp_path / "test_01_killed.py"
    path.write_text(f'"""{doc}"""\n')
    with pytest.raises(ValueError, match="begins with 'Fault 1: '"):
        fault_table.words(path)


@pytest.mark.parametrize(
    ("change", "what"), [("40 of 40 kills", "39 of 40 kills"), (" | 6 |", " | 7 |")]
)
def test_a_table_that_disagrees_with_the_results_is_seen(change: str, what: str) -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert fault_table.page(page) == page == reference.reliability()
    edited = "\n".join(
        line.replace(change, what) if line.startswith("| [1]") else line
        for line in page.split("\n")
    )
    assert edited != page == fault_table.page(edited)


@pytest.mark.parametrize(
    ("lines", "merged"),
    [
        (
            ["1 process: 20 of 20, at most 1.5 s", "2 processes: 9/9, at most 12.0 s"],
            ["1 process / 2 processes: 29 of 29, at most 12.0 s"],
        ),
        (["3 of 9 found", "4 of 9 found"], None),
        (["losses within 2.4e-07", "losses within 1.9e-06"], ["losses within 1.9e-06"]),
        (["memory +1 MiB", "memory -3 MiB", "memory +1 MiB"], ["memory -3 to +1 MiB"]),
        (["1,000 of b", "20 of b"], ["20 to 1,000 of b"]),
        (["a: b: 1", "a: c: 1"], None),
        (["in a.tar: 3 MiB", "2.0.1 and x4: 3 MiB"], ["in a.tar / 2.0.1 and x4: 3 MiB"]),
    ],
)
def test_cases_that_differ_in_numbers_are_one_line(
    lines: list[str], merged: list[str] | None
) -> None:
    found = fault_table.merged({f"test[{i}]": line for i, line in enumerate(lines)})
    assert found == (lines if merged is None else merged)


def test_files_measured_at_another_commit_are_named() -> None:
    found = {"date": "2026-01-01", "commit": "abc", "machine": "m", "passed": 2, "skipped": 1}
    results = {name: found for name in ("test_01_a.py", "test_02_b.py", "test_03_c.py")}
    results["test_02_b.py"] = found | {"date": "2026-01-02", "commit": "def"}
    first, second = fault_table.origin(results).splitlines()
    assert first == (
        "Measured on 2026-01-01 at commit abc (m; `make faults`): 4 tests passed, 2 skipped."
    )
    assert second == "Measured on 2026-01-02 at commit def (m; rows 2): 2 tests passed, 1 skipped."


def _report(test: str, *words: str) -> Any:
    properties = [("measured", one) for one in words] + [("other", 1)]
    return SimpleNamespace(nodeid=f"tests/faults/{test}", user_properties=properties)


STATS = {
    "passed": [
        _report("test_02_b.py::test_x[a::b]", "1 of 1", "2 s"),
        _report("test_02_b.py::test_y"),
    ],
    "skipped": [_report("test_02_b.py::test_z"), _report("test_01_a.py::test_z")],
    "": [_report("test_02_b.py::test_x[a::b]", "1 of 1")],
}


def test_outcomes_and_figures_are_collected_file_by_file() -> None:
    found = fault_results.collect(STATS)
    assert found == {
        "test_01_a.py": {"passed": 0, "skipped": 1, "measured": {}},
        "test_02_b.py": {"passed": 2, "skipped": 1, "measured": {"test_x[a::b]": "1 of 1; 2 s"}},
    }


def test_only_files_that_ran_are_replaced(tmp_path: Path) -> None:
    for name in ("test_01_a.py", "test_02_b.py", "test_03_c.py"):
        (tmp_path / name).touch()
    old = {"passed": 9}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"test_03_c.py": old, "test_04_gone.py": old, "test_02_b.py": old}))
    fault_results.write(path, fault_results.collect(STATS))
    found = json.loads(path.read_text())
    assert [*found] == ["test_01_a.py", "test_02_b.py", "test_03_c.py"]
    assert found["test_03_c.py"] == old
    assert found["test_02_b.py"]["passed"] == 2
    assert {*found["test_02_b.py"]} > {"date", "commit", "machine"}


@pytest.mark.parametrize(
    ("options", "args", "whole"),
    [
        ({}, ["tests/faults"], True),
        ({"keyword": "bomb"}, ["tests/faults"], False),
        ({"markexpr": "not slow"}, ["tests/faults"], False),
        ({}, ["tests/faults/test_01_killed.py::test_x"], False),
    ],
)
def test_a_part_of_a_file_is_not_kept(
    options: dict[str, str], args: list[str], whole: bool
) -> None:
    config: Any = SimpleNamespace(
        getoption=lambda name, default: options.get(name, default), args=args
    )
    assert fault_results.whole(config) is whole
