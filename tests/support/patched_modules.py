"""Other constants in uotft's modules, for real processes: tiny files have other sizes and sums.

`patched` writes a sitecustomize.py into a folder; with that folder first in PYTHONPATH, every
Python that starts, DVC's stages and workers too, replaces the constants as it imports a module.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from uotft.data.archives import Archive, Card, Span

CODE = '''"""Written by tests/support/patched_modules.py."""
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder

CHANGES = {changes!r}  # {{module: {{name: Python source of its value}}}}


class Patched(Loader):
    def __init__(self, loader, changes):
        self.loader, self.changes = loader, changes

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        for name, source in self.changes.items():
            if not hasattr(module, name):
                raise AttributeError(f"{{module.__name__}} has no {{name}} to replace")
            names = dict(vars(module))
            if "archives" not in module.__name__ and ("Archive(" in source or "Card(" in source):
                from uotft.data.archives import Archive, Card, Span
                names.update(Archive=Archive, Card=Card, Span=Span)
            setattr(module, name, eval(source, names))


class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in CHANGES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        spec.loader = Patched(spec.loader, CHANGES[name])
        return spec


sys.meta_path.insert(0, Finder())
'''


class Source(str):
    """Python source of a value that has no ``repr``; the module's own names can stand in it."""

    def __repr__(self) -> str:
        return str(self)


def patched(folder: Path, changes: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The environment of commands in which ``changes``, {module: {name: value}}, hold.

    A value must have a ``repr`` that is Python, as numbers, texts, `Card` and `Source` have. A card
    of a data set: ``{"uotft.data.datasets.dogs": {"CARD": dataset_archives.card("dogs", …)}}``.
    """
    sources = {
        module: {name: repr(value) for name, value in values.items()}
        for module, values in changes.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(CODE.format(changes=sources), encoding="utf-8")
    others = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{others}".rstrip(os.pathsep)}


def hold_here(changes: dict[str, dict[str, Any]], patch: pytest.MonkeyPatch) -> None:
    """Let the same ``changes`` hold in this process, and in the children that it forks."""
    known = {"Archive": Archive, "Card": Card, "Span": Span}
    for name, values in changes.items():
        module = importlib.import_module(name)
        for constant, value in values.items():
            made = eval(repr(value), {**vars(module), **known})
            patch.setattr(module, constant, made)


def tiny_imagenet(content: bytes, images: int = 2) -> dict[str, dict[str, Any]]:
    """The changes with which a tiny ILSVRC2012_img_train.tar counts as the published one."""
    names = {"TRAIN_BYTES": len(content), "IMAGES": (images, images)}
    return {"uotft.data.class_downloads": names}
