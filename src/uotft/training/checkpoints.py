"""The folder of an unfinished training or embedding: its checkpoints and its MLflow run.

    FOLDER/step-000000200/rank-0.safetensors   one file per process
    FOLDER/step-000000200/state.json           written last: marks the checkpoint as complete
    FOLDER/run.json                            the MLflow run to continue
    FOLDER/belongs.json                        instead of run.json if there is no run (embeddings)

Each checkpoint has its own folder and the newest two are kept. So one complete checkpoint remains
after a kill at any moment, and after damage to the latest. Each JSON file holds the fingerprint of
the training (`pipeline.freshness`) and is sealed with its SHA-256, so any change is detected.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.removal import remove, sweep

STATE = "state.json"
RUN = "run.json"
KEPT = 2  # checkpoints; if the newest is damaged, training resumes from the one before


def slot(folder: Path, step: int) -> Path:
    """The folder of the checkpoint taken before ``step``."""
    return folder / f"step-{step:09}"


def complete(folder: Path, step: int, facts: dict[str, Any]) -> None:
    """Mark a checkpoint as complete, once all its files are written; keep only the newest KEPT."""
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
    """The latest complete checkpoint and its facts, or None; ``say`` hears of damaged ones."""
    for path in reversed(slots(folder)):
        if not (path / STATE).exists():
            continue  # its writer was stopped before it was complete
        facts = record(path / STATE)
        damaged = [STATE] if facts is None else _damaged(path, facts["files"])
        if facts and not damaged:
            return path, facts
        say(f"{path}: {', '.join(damaged)} damaged or missing (SHA-256): checkpoint not used")
    return None


def tidy(folder: Path, last: Path | None) -> None:
    """Remove incomplete checkpoints, and those newer than ``last``, from which training resumes."""
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
    sweep(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def slots(folder: Path) -> list[Path]:
    """The folders of all checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def _damaged(slot: Path, files: dict[str, str]) -> list[str]:
    return [
        name
        for name, digest in files.items()
        if not (slot / name).is_file() or storage.fingerprint(slot / name) != digest
    ]


def record(path: Path) -> dict[str, Any] | None:
    """The content of a sealed file; None if it is missing, incomplete or damaged."""
    try:
        return storage.read_sealed(path)
    except UserError:
        return None
