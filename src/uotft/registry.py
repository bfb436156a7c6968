"""Name -> the file on a shelf. A file's name is its registered name, so none can be taken twice."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from uotft.errors import UserError

SHELVES = ("datasets", "backbones", "selectors", "objectives")


def names(shelf: str) -> list[str]:
    """All names on a shelf, sorted."""
    return sorted(m.name for m in iter_modules(import_module(f"uotft.{shelf}").__path__))


def check(shelf: str, name: object, setting: str) -> None:
    """Refuse a name that is not on the shelf; ``setting`` says in the error where it came from."""
    if name not in names(shelf):
        raise UserError(f"{setting}: got {name!r}; known are {', '.join(names(shelf))}")


def load(shelf: str, name: str, setting: str) -> ModuleType:
    """The module ``name`` of a shelf."""
    check(shelf, name, setting)
    return import_module(f"uotft.{shelf}.{name}")
