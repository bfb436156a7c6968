"""The table of docs/reliability.md, from the tests' docstrings and tests/faults/results.json.

`make faults` writes the JSON (tests/faults/conftest.py), `make docs` the table. A row has the first
two paragraphs of the docstring of its file (the fault, what is expected) and what the tests of the
file measured.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

FAULTS = Path(__file__).parents[1] / "tests" / "faults"
MARKERS = "<!-- faults: made by `make docs`; do not edit -->", "<!-- end -->"
FAULT = re.compile(r"Fault (\d+): (.+)", re.DOTALL)
EXPECTED = re.compile(r"Expected: (.+)", re.DOTALL)
#: "10 of 10" and "10/10", or one number.
NUMBER = re.compile(
    r"(?<![\w.^/-])(?:(\d+)(?: of |/)(\d+)|[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?)(?![\w.,]*\w)"
)
#: Before a number of which only the largest one matters.
LIMIT = re.compile(r"\b(at most|within) $")


def page(text: str) -> str:
    """``text`` with the table of today between its markers."""
    start, end = (text.index(marker) for marker in MARKERS)
    results = json.loads((FAULTS / "results.json").read_text(encoding="utf-8"))
    parts = [text[:start] + MARKERS[0], origin(results), table(results), text[end:]]
    return "\n".join(parts)


def origin(results: dict[str, Any]) -> str:
    """When, at which commit and on what the figures were measured; the faults that differ."""
    runs: dict[tuple[str, str, str], list[str]] = {}
    for name, found in results.items():
        runs.setdefault((found["date"], found["commit"], found["machine"]), []).append(name)
    lines = []
    for (date, commit, machine), names in sorted(runs.items(), key=lambda run: -len(run[1])):
        passed, skipped = (sum(results[n][key] for n in names) for key in ("passed", "skipped"))
        rows = f"rows {', '.join(str(_number(n)) for n in names)}" if lines else "`make faults`"
        lines.append(f"Measured on {date} at commit {commit} ({machine}; {rows}): "
                     f"{passed} tests passed, {skipped} skipped.")  # fmt: skip
    return "\n".join(lines) + "\n"


def table(results: dict[str, Any]) -> str:
    """A row a fault: what goes wrong, what is expected, what was measured, how many tests."""
    rows = ["| | fault | expected | measured | tests |", "|---|---|---|---|---|"]
    for path in sorted(FAULTS.glob("test_*.py")):
        fault, expected = words(path)
        found = results.get(path.name, {"measured": {}, "passed": 0, "skipped": 0})
        tests = f"{found['passed']}" + f", {found['skipped']} skipped" * bool(found["skipped"])
        cells = fault, expected, "<br>".join(merged(found["measured"])), tests
        shown = " | ".join(cell.replace("``", "`").replace("|", r"\|") for cell in cells)
        rows.append(f"| [{_number(path.name)}](../tests/faults/{path.name}) | {shown} |")
    return "\n".join(rows) + "\n"


def words(path: Path) -> tuple[str, str]:
    """The fault and what is expected: the first two paragraphs of the docstring of ``path``."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first, second = ([" ".join(part.split()) for part in doc.split("\n\n")] + ["", ""])[:2]
    fault, expected = FAULT.fullmatch(first), EXPECTED.fullmatch(second)
    if not fault or not expected or int(fault[1]) != _number(path.name):
        number = _number(path.name)
        raise ValueError(f"{path}: its docstring begins with 'Fault {number}: ', then 'Expected: '")
    return fault[2].rstrip("."), expected[1].rstrip(".")


def _number(name: str) -> int:
    return int(name.split("_")[1])


def merged(measured: dict[str, str]) -> list[str]:
    """What tests measured: one line for all cases whose words differ in numbers alone.

    Words before a colon name the case. Of "3 of 3" and "4 of 4" remains the sum, of other numbers
    the smallest and the largest, after "at most" the largest. "2 of 3" is never merged.
    """
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for line in measured.values():
        case, colon, rest = line.rpartition(": ") if line.count(": ") == 1 else ("", "", line)
        apart = [line] * any(pair[1] != pair[2] for pair in NUMBER.finditer(rest))
        groups.setdefault((colon, NUMBER.sub("#", rest), *apart), []).append((case, rest))
    return [_line(*zip(*group, strict=True)) for group in groups.values()]


def _line(cases: tuple[str, ...], rests: tuple[str, ...]) -> str:
    """One line of several that differ in their numbers."""
    columns = iter(zip(*(NUMBER.finditer(rest) for rest in rests), strict=True))
    text, end = "", 0
    for column in columns:
        text += rests[0][end : column[0].start()]
        text += _together(column, most=bool(LIMIT.search(text)))
        end = column[0].end()
    named = " / ".join(dict.fromkeys(case for case in cases if case))
    return (f"{named}: " if named else "") + text + rests[0][end:]


def _together(column: tuple[re.Match[str], ...], most: bool) -> str:
    """The sum of pairs; of numbers the only one, the largest one, or the smallest and largest."""
    if column[0][1]:
        first, second = (sum(int(pair[part]) for pair in column) for part in (1, 2))
        return f"{first} of {second}"
    ordered = sorted((one[0] for one in column), key=lambda one: float(one.replace(",", "")))
    low, high = ordered[0], ordered[-1]
    return high if most or low == high else f"{low} to {high}"
