"""`uotft doctor`: what is installed, which devices this machine has, which data a project has."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from uotft.core import disk, dvc, environment, registry
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.pipeline.workspace import Workspace
from uotft.runs import plan, whole
from uotft.tracking import outbox

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
    yield from _remotes(ws.root)
    waiting = len(outbox.folders(ws.tracking))
    found = f"{waiting} runs are not sent yet: run `uotft sync`" if waiting else "empty"
    yield not waiting, "outbox", found


def of_training(dataset: str, source: str, backbone: str, strategy: str) -> Iterator[Finding]:
    """The same for what one training by names needs; what is to be fetched is not there yet."""
    cell = Cell((not source and whole.section(dataset)) or dataset, strategy, 0)
    order = whole.order(cell, source, "", backbone, ())
    ws = order.preview() if order else Workspace.find()
    cell = order.cell if order else cell
    made = (ws.root / "params.yaml").is_file()
    yield True, "project", f"{ws.root}{'' if made else ', which the training makes'}"
    found = plan.plan(ws, [cell], measured=False)
    for line in found.there:
        yield True, "found", line
    for item in found.items:
        size = f"{disk.gib(item.size)} " if item.size else ""
        yield False, "missing", f"{item.what}, {size}from {item.address}"
    for name, check in plan.checks(found, ws, [cell]).items():
        try:
            check()
        except UserError as error:
            yield False, name, str(error)
        else:
            yield True, name, "as it should be"
    model = ws.cell("models", cell) / "model.json"
    yield model.is_file(), "model", f"{model.parent}{'' if model.is_file() else ': not trained'}"


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
    cores = f"{environment.cores()} cores"
    try:
        import torch
    except ImportError as error:
        yield True, "cpu", cores
        yield False, "gpu", f"torch does not load: {error}"
        return
    # kernels of another kind round differently: trainings have other digits
    yield True, "cpu", f"{cores}, torch's kernels for {torch.backends.cpu.get_cpu_capability()}"
    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield True, "gpu", ", ".join(found) or "none: training runs on the CPU"


def _remotes(root: Path) -> Iterator[Finding]:
    """The remotes of DVC, which passes on what they damaged unless it hashes what it gets."""
    for name, verified in dvc.remotes(root).items():
        mend = f"a damaged file comes unnoticed: `dvc remote modify {name} verify true`"
        yield verified, "remote", f"{name}: {'hashed when pulled' if verified else mend}"


def _data(ws: Workspace) -> Iterator[Finding]:
    wanted = {f"data {name}": ws.data(name) for name in (ws.params.source, *ws.params.targets)}
    wanted["pretrained"] = ws.pretrained() / "model.safetensors"
    if environment.tracking_uri():
        yield True, "runs", "in the store of MLFLOW_TRACKING_URI"
    else:
        wanted["runs"] = ws.tracking / "mlflow.db"
    for name, path in wanted.items():
        shown = os.path.relpath(path, ws.root)
        if path.is_file():
            yield True, name, f"{shown} ({path.stat().st_size / 2**20:.1f} MiB)"
        else:
            yield True, name, f"{shown} does not exist yet: `dvc repro` makes it"
