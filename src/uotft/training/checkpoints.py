"""The folder of a training, or embedding, that has not finished: what it has made, and its run.

    FOLDER/step-000000200/rank-0.safetensors   one file a process
    FOLDER/step-000000200/state.json           written last: the checkpoint is whole
    FOLDER/run.json                            the MLflow run that goes on
    FOLDER/belongs.json                        where there is no run: beside the shards of a pool

A checkpoint gets a folder of its own and the newest two stay, so a kill at any moment leaves a
whole one, and so does damage to the last. All files of JSON hold the fingerprint of the training
(`pipeline.freshness`) and are sealed: nothing in them changes unnoticed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uotft.core import storage
from uotft.core.errors import UserError

STATE = "state.json"
RUN = "run.json"
KEPT = 2  # checkpoints: should the last one be damaged, the one before counts


def slot(folder: Path, step: int) -> Path:
    """The folder of the checkpoint taken before ``step``."""
    return folder / f"step-{step:09}"


def complete(folder: Path, step: int, facts: dict[str, Any]) -> None:
    """Declare a checkpoint whole, all of whose files are there, and remove all but the newest."""
    new = slot(folder, step)
    files = {
        path.name: storage.fingerprint(path) for path in sorted(new.glob("rank-*.safetensors"))
    }
    storage.write_sealed(new / STATE, {"step": step, "files": files, **facts})
    for path in slots(folder)[:-KEPT]:
        remove(path)


def newest(
    folder: Path, say: Callable[[str], object] = lambda line: None
) -> tuple[Path, dict[str, Any]] | None:
    """The latest whole checkpoint and its facts; ``say`` is told of each that is damaged."""
    for path in reversed(slots(folder)):
        if not (path / STATE).exists():
            continue  # never finished
        facts = record(path / STATE)
        damaged = [STATE] if facts is None else _damaged(path, facts["files"])
        if facts and not damaged:
            return path, facts
        say(f"{path}: its {', '.join(damaged)} is damaged or missing (SHA-256): not used")
    return None


def tidy(folder: Path, last: Path | None) -> None:
    """Remove what is no whole checkpoint, and those after ``last``, which is gone on with."""
    for path in slots(folder):
        if last is None or path > last or record(path / STATE) is None:
            remove(path)


def remember_run(folder: Path, run_id: str, fingerprint: dict[str, Any]) -> None:
    """Keep the id of the run that tracks this training."""
    storage.write_sealed(folder / RUN, {"run_id": run_id, "belongs": fingerprint})


def run_id(folder: Path) -> str:
    """The id of the run that tracks this training, or ""."""
    facts = record(folder / RUN)
    return facts["run_id"] if facts else ""


def finish(folder: Path) -> None:
    """Remove the checkpoints of a training that has finished, and the folder if nothing is left."""
    for path in slots(folder):
        remove(path)
    _sweep(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def remove(folder: Path) -> None:
    """Remove a folder at once, and its files as far as it goes; it must be there.

    Over NFS a file that is open somewhere stays as .nfs… until it is closed, and its folder, too;
    and a kill stops anywhere. Such a rest has another name than any folder that is looked for, and
    the next call removes it.
    """
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    _sweep(folder.parent)


def _sweep(folder: Path) -> None:
    for rest in folder.glob(".*.gone"):
        shutil.rmtree(rest, ignore_errors=True)


def slots(folder: Path) -> list[Path]:
    """The folders of all checkpoints, the oldest first."""
    return sorted(folder.glob("step-*"))


def _damaged(slot: Path, files: dict[str, str]) -> list[str]:
    return [
        name
        for name, digest in files.items()
        if not (slot / name).is_file() or storage.fingerprint(slot / name) != digest
    ]


def record(path: Path) -> dict[str, Any] | None:
    """What a sealed file records; nothing if it was never finished or is damaged."""
    try:
        return storage.read_sealed(path)
    except UserError:
        return None
