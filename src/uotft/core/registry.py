"""Kind and name -> the module of a variant.

A variant is one file, and the file's name is its registered name, so no name can be taken twice.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from uotft.core.errors import UserError

#: {kind: the package whose files are its variants}; looked up by name, so nothing is imported here.
PACKAGES = {
    "datasets": "uotft.data.datasets",
    "backbones": "uotft.models.backbones",
    "strategies": "uotft.selection.strategies",
    "objectives": "uotft.training.objectives",
    "experiments": "uotft.analysis.experiments",
}


def names(kind: str) -> list[str]:
    """All names of a kind, sorted."""
    return sorted(m.name for m in iter_modules(import_module(PACKAGES[kind]).__path__))


def check(kind: str, name: object, setting: str) -> None:
    """Refuse a name that has no file; ``setting`` says in the error where the name came from."""
    if name not in names(kind):
        raise UserError(f"{setting}: got {name!r}; known are {', '.join(names(kind))}")


def load(kind: str, name: str, setting: str) -> ModuleType:
    """The module ``name`` of a kind."""
    check(kind, name, setting)
    return import_module(f"{PACKAGES[kind]}.{name}")
