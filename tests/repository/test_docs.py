"""The pages: their links lead somewhere, and none is longer than a reader's patience."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from support.repository import REPOSITORY, files
from uotft.cli.app import app

PAGES = sorted(name for name in files() if name.endswith(".md"))
DOCS = [name for name in PAGES if name.startswith("docs/")]
LONG = {"docs/log.md", "docs/commands.md", "docs/parameters.md"}  # history; generated
LINK = re.compile(r"\]\(([^)\s]+)\)")


def _without_code(text: str) -> str:
    return re.sub(r"(?s)```.*?```|``.*?``|`[^`\n]*`", "", text)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading in re.findall(r"(?m)^#{1,6} +(.+?) *$", text):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = sum(1 for one in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", one))
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = REPOSITORY / name
    broken = []
    for link in LINK.findall(_without_code(page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in _anchors(there):
            broken.append(f"{link}: no such heading")
    assert not broken


def test_every_page_is_reached_from_the_index() -> None:
    linked = set()
    for name in (
        "docs/index.md",
        "docs/experiments/index.md",
        "docs/experiments/cifar100-flowers102.md",
    ):
        page = REPOSITORY / name
        linked |= {
            (page.parent / link.partition("#")[0]).resolve()
            for link in LINK.findall(page.read_text(encoding="utf-8"))
        }
    pages = [name for name in DOCS if "/decisions/" not in name and name != "docs/index.md"]
    assert not [name for name in pages if (REPOSITORY / name).resolve() not in linked]


def _lines(name: str) -> int:
    return len((REPOSITORY / name).read_text(encoding="utf-8").splitlines())


def test_the_readme_has_110_lines_at_most() -> None:
    assert _lines("README.md") <= 110


@pytest.mark.parametrize("name", [name for name in DOCS if name not in LONG])
def test_a_page_has_150_lines_at_most(name: str) -> None:
    assert _lines(name) <= 150


def _constants() -> str:
    """Every text in the source, with one line for each."""
    found = []
    for name in files():
        if name.startswith("src/") and name.endswith(".py"):
            for node in ast.walk(ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"(?m)^\| `([^`]+)`", page)
    assert len(messages) > 40
    texts = _constants()
    parts = [part.strip() for message in messages for part in message.split("…")]
    assert not [part for part in parts if len(part) > 2 and part not in texts]


def test_each_row_of_the_reliability_page_names_its_test() -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| \[(\d+)\]\(\.\./(tests/faults/test_\d\d_\w+\.py)\) \|", page)
    there = [name for name in files() if re.match(r"tests/faults/test_\d\d_", name)]
    assert [name for _, name in rows] == sorted(there)
    assert all(name.startswith(f"tests/faults/test_{int(number):02}_") for number, name in rows)


def test_each_row_of_the_page_of_inputs_names_its_tests() -> None:
    page = (REPOSITORY / "docs" / "inputs.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in re.findall(r"(?m)^\| (?!Case|---)(.+) \|$", page)]
    assert len(rows) > 50
    named = [re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", row[-1]) for row in rows]
    assert all(len(row) == 3 for row in rows)
    assert all(named), "a row without a test"
    absent = [
        f"{file}: {test}"
        for test, file in {pair for row in named for pair in row}
        if f"\ndef {test}(" not in (REPOSITORY / file).read_text(encoding="utf-8")
    ]
    assert not absent


def _options(words: list[str]) -> tuple[str, set[str]]:
    """The command that ``words`` begin with, and the options that it and its parents have."""
    command: Any = typer.main.get_command(app)
    path, known = "uotft", {"--help", "-h"}
    for word in (word for word in words if not word.startswith("-")):
        known |= {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        if word not in getattr(command, "commands", {}):
            break
        command, path = command.commands[word], f"{path} {word}"
    return path, known | {o for p in command.params for o in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("name", ["README.md", *DOCS])
def test_printed_commands_and_their_options_exist(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8").replace("\\\n", " ")
    wrong = []
    for block in re.findall(r"(?ms)^ *```(?:console|bash)?\n(.*?)^ *```$", text):
        for line in re.findall(r"(?m)^\s*(?:\$ )?uotft (?!\[|.*\[OPTIONS\])(.*)$", block):
            words = line.partition("  #")[0].split()
            path, known = _options(words)
            given = {word.partition("=")[0] for word in words if word.startswith("-")}
            if path == "uotft" or given - known - {"--"}:
                wrong.append(f"uotft {line}: {path} does not know {given - known or words[0]}")
    assert not wrong
