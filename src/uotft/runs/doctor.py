"""`uotft doctor`: what is installed, which devices this machine has, which data a project has."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from uotft.core import registry
from uotft.core.errors import UserError
from uotft.pipeline.workspace import Workspace

PACKAGES = (
    "torch",
    "torchvision",
    "accelerate",
    "mlflow",
    "dvc",
    "pot",
    "scikit-learn",
    "matplotlib",
)
Finding = tuple[bool, str, str]


def findings() -> Iterator[Finding]:
    """Yield (whether it is fine, its name, its state) for everything that a training needs."""
    yield True, "python", f"{platform.python_version()} on {platform.system()}"
    for name in PACKAGES:
        try:
            yield True, name, version(name)
        except PackageNotFoundError:
            yield False, name, "not installed: run `make setup`"
    yield from _faiss()
    yield from _devices()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield free > 1, "disk", f"{free:.1f} GiB free here"
    yield bool(shutil.which("git")), "git", shutil.which("git") or "not found: install git"
    for kind in registry.PACKAGES:
        yield True, kind, ", ".join(registry.names(kind))
    params = Workspace.nearest() / "params.yaml"
    if not params.is_file():
        yield (
            True,
            "project",
            "none in this folder: `uotft init` or `uotft train --source` makes one",
        )
        return
    try:
        ws = Workspace.find()
    except UserError as error:
        yield False, "params.yaml", str(error)
        return
    yield True, "params.yaml", str(params)
    yield from _data(ws)
    waiting = len([*(ws.tracking / "unsent").glob("*.*")])
    found = f"{waiting} runs are not sent yet: run `uotft sync`" if waiting else "empty"
    yield not waiting, "outbox", found


def _faiss() -> Iterator[Finding]:
    found = {}
    for name in ("faiss-cpu", "faiss-gpu"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    if len(found) > 1:
        listed += ": they overwrite each other's files; uninstall both, then install one"
    yield (
        len(found) == 1,
        "faiss",
        listed or "not installed: run `pip install 'uotft[cpu]'`, or with [gpu]",
    )


def _devices() -> Iterator[Finding]:
    yield True, "cpu", f"{len(os.sched_getaffinity(0))} cores"
    try:
        import torch
    except ImportError as error:
        yield False, "gpu", f"torch does not load: {error}"
        return
    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield True, "gpu", ", ".join(found) or "none: training runs on the CPU"


def _data(ws: Workspace) -> Iterator[Finding]:
    wanted = {f"data {name}": ws.data(name) for name in (ws.params.source, *ws.params.targets)}
    wanted["pretrained"] = ws.pretrained() / "model.safetensors"
    wanted["runs"] = ws.tracking / "mlflow.db"
    for name, path in wanted.items():
        shown = os.path.relpath(path, ws.root)
        if path.is_file():
            yield True, name, f"{shown} ({path.stat().st_size / 2**20:.1f} MiB)"
        else:
            yield True, name, f"{shown} does not exist yet: `dvc repro` makes it"
