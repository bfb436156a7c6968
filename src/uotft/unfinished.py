"""The folder of a training, or embedding, that has not finished: what it has made, and its run.

    FOLDER/step-000000200/rank-0.safetensors   one file a process
    FOLDER/step-000000200/state.json           written last: the checkpoint is whole
    FOLDER/run.json                            the MLflow run that goes on
    FOLDER/belongs.json                        where there is no run: beside the shards of a pool

A checkpoint gets a folder of its own and the one before is removed after it, so a kill at any
moment leaves a whole one. All files of JSON name what they belong to: settings and the
fingerprints of the files that are read.
"""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path
from typing import Any

from uotft import store
from uotft.errors import UserError

STATE = "state.json"
RUN = "run.json"
BELONGS = "belongs.json"


def claim(folder: Path, belongs: dict[str, Any]) -> str:
    """Set the folder aside if it belongs to something else; a line that says so, or ""."""
    for path in (folder / RUN, folder / BELONGS, *(path / STATE for path in _slots(folder))):
        facts = _facts(path)
        if facts and (names := _differences(facts["belongs"], belongs)):
            aside = folder.with_name(f"{folder.name}.aside")
            if aside.exists():
                remove(aside)
            folder.rename(aside)
            return (
                f"what is unfinished in {folder} has other {', '.join(names)}: "
                f"set aside as {aside.name}, and started anew"
            )
    return ""


def begin(folder: Path, belongs: dict[str, Any]) -> None:
    """Say what the folder belongs to, where no run does."""
    store.write_json(folder / BELONGS, {"belongs": belongs})


def slot(folder: Path, step: int) -> Path:
    """The folder of the checkpoint taken before ``step``."""
    return folder / f"step-{step:09}"


def complete(folder: Path, step: int, facts: dict[str, Any]) -> None:
    """Declare a checkpoint whole, all of whose files are there, and remove the older ones."""
    new = slot(folder, step)
    files = {path.name: store.fingerprint(path) for path in sorted(new.glob("rank-*.safetensors"))}
    store.write_json(new / STATE, {"step": step, "files": files, **facts})
    for other in _slots(folder):
        if other != new:
            shutil.rmtree(other)


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The latest whole checkpoint and its facts."""
    for path in reversed(_slots(folder)):
        facts = _facts(path / STATE)
        if facts and all(
            (path / name).is_file() and store.fingerprint(path / name) == digest
            for name, digest in facts["files"].items()
        ):
            return path, facts
    return None


def remember_run(folder: Path, run_id: str, belongs: dict[str, Any]) -> None:
    """Keep the id of the run that tracks this training."""
    store.write_json(folder / RUN, {"run_id": run_id, "belongs": belongs})


def run_id(folder: Path) -> str:
    """The id of the run that tracks this training, or ""."""
    facts = _facts(folder / RUN)
    return facts["run_id"] if facts else ""


def finish(folder: Path) -> None:
    """Remove the checkpoints of a training that has finished, and the folder if it is empty."""
    for path in _slots(folder):
        remove(path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def remove(folder: Path) -> None:
    """Remove a folder at once, and its files as far as it goes; it must be there.

    Over NFS a file that is open somewhere stays as .nfs… until it is closed, and its folder, too:
    such a rest has another name than any folder that is looked for, and the next call removes it.
    """
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    for rest in folder.parent.glob(f".{glob.escape(folder.name)}.*.gone"):
        shutil.rmtree(rest, ignore_errors=True)


def _slots(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _facts(path: Path) -> dict[str, Any] | None:
    """The facts in a file; nothing if it was never finished or is damaged."""
    try:
        facts: dict[str, Any] = store.read_json(path)
    except UserError:
        return None
    return facts


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    """The dotted names under which two nested dicts differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            difference
            for key in sorted(one.keys() | other.keys())
            for difference in _differences(
                one.get(key), other.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if one == other else [name]
