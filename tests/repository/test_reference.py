"""The generated pages are those of today's help texts and settings, and nothing lacks a meaning."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

import reference
from support.repository import REPOSITORY
from uotft.cli.app import app
from uotft.core import registry, settings

MODELS = [settings.Params, *reference.SECTIONS.values()]
VARIANTS = [(kind, name) for kind in reference.KINDS for name in registry.names(kind)]


@pytest.mark.parametrize("page", ["commands", "parameters", "reliability"])
def test_the_page_is_up_to_date(page: str) -> None:
    committed = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert committed == getattr(reference, page)(), "run `make docs` and commit the page"


def _commands(command: Any, path: str = "uotft") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{path} {name}")


def test_every_command_and_option_has_help() -> None:
    silent = []
    for path, command in _commands(typer.main.get_command(app)):
        silent += [] if command.help else [path]
        silent += [f"{path} {p.name}" for p in command.params if not getattr(p, "help", None)]
    assert not silent


def test_every_setting_has_a_meaning() -> None:
    found: list[tuple[str, type[BaseModel]]] = [(model.__name__, model) for model in MODELS]
    for kind, name in VARIANTS:
        module: ModuleType = registry.load(kind, name, "test")
        found.append((f"{kind}/{name}", module.Settings))
    silent = [
        f"{where}: {name}"
        for where, model in found
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert not silent
