"""The records of a run -> one Markdown table, and the part of a page that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BEGIN, END = "<!-- written by make gpu -->", "<!-- end of make gpu -->"
NONE = "No run on a GPU has been recorded yet. On a machine with one, type `make gpu`."


def line(record: dict[str, Any]) -> str:
    """One line on a part, for the terminal."""
    what = f": {record['error']}" if record["error"] else ""
    return f"{record['name']}: {record['status']}, {record['seconds']:.0f} s{what}"


def markdown(found: dict[str, Any]) -> str:
    """The facts, the table of the figures, the checks, and what was left out."""
    lines = [_facts(found), "", "| what | uotft | rival | ratio | aim |", "|---|---|---|---|---|"]
    parts = found["parts"]
    lines += [_row(figure) for part in parts for figure in part["figures"]]
    checks = [check for part in parts for check in part["checks"]]
    if good := [check["name"] for check in checks if check["good"]]:
        lines += ["", f"Holds: {'; '.join(good)}."]
    if bad := [f"{check['name']} ({check['found']})" for check in checks if not check["good"]]:
        lines += ["", f"**Does not hold**: {'; '.join(bad)}."]
    rest = [f"{p['name']}: {p['error'] or p['status']}" for p in parts if p["status"] != "ok"]
    rest += [_flat(note) for part in parts for note in part["notes"]]
    if rest:
        lines += ["", f"Notes: {'; '.join(rest)}."]
    return "\n".join(lines) + "\n"


def _facts(found: dict[str, Any]) -> str:
    facts = dict(found["facts"])
    device, cores = facts.pop("device", "unknown device"), facts.pop("cores", "?")
    memory = f" of {facts.pop('memory_gib')} GiB" if "memory_gib" in facts else ""
    rest = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return (
        f"{device}{memory}, {cores} cores; {found['date']}, {found['seconds']:.0f} s; {rest}. "
        f"`{found['command']}`"
    )


def _row(figure: dict[str, Any]) -> str:
    unit = figure["unit"]
    if figure.get("error"):
        return f"| {figure['name']} | failed: {_flat(figure['error'])} | | | |"
    ours, *rivals = figure["sides"]
    medians = figure["medians"]
    name = ours.removeprefix("uotft").strip(", ")
    mine = f"{_number(medians[ours])} {unit}" + (f" ({name})" if name else "")
    rival = "; ".join(f"{r}: {_number(medians[r])} {unit}" for r in rivals if r in medians)
    ratio = "" if figure["ratio"] is None else f"{figure['ratio']:.2f}"
    return f"| {figure['name']}{_turns(figure)} | {mine} | {rival} | {ratio} | {_aim(figure)} |"


def _turns(figure: dict[str, Any]) -> str:
    return "" if figure["turns"] >= 5 else f", {figure['turns']} turns only"


def _aim(figure: dict[str, Any]) -> str:
    """The aim, and whether it is met."""
    if figure["aim"] is not None:
        met = figure["medians"][figure["sides"][0]] <= figure["aim"]
        return f"{figure['aim']:g} {figure['unit']}: {'met' if met else 'missed'}"
    if figure["aim_ratio"] is not None and figure["ratio"] is not None:
        met = figure["ratio"] >= figure["aim_ratio"]
        return f"ratio {figure['aim_ratio']:g}: {'met' if met else 'missed'}"
    return ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _flat(text: str) -> str:
    return " ".join(text.replace("|", "/").split()).rstrip(".")[:400]


def put(page: Path, found: dict[str, Any] | None) -> None:
    """Write the table where the page has its markers, or that there is none yet."""
    head, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    inside = markdown(found) if found else f"{NONE}\n"
    page.write_text(f"{head}{BEGIN}\n{inside}{END}{tail}", "utf-8")
