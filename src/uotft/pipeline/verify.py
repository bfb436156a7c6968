"""The command data verify: hash all outputs in dvc.lock again, and DVC's copies of them.

DVC trusts its cache: it silently checks out a damaged copy, and calls it up to date
(treeverse/dvc#5978, #9641).
"""

from __future__ import annotations

import json
from typing import Any

from uotft.core import dvc
from uotft.core.errors import UserError
from uotft.core.records import Progress
from uotft.pipeline.workspace import Workspace

Pairs = list[tuple[str, str]]  # paths from the root, and the MD5 of each


def everything(ws: Workspace, progress: Progress) -> tuple[str, list[str]]:
    """(a summary of what was checked, one line per fault), for all stages that ran."""
    made, bad, count = dvc.made_stages(ws.root), list[str](), 0
    if not made:
        raise UserError(f"{ws.root / 'dvc.lock'} has no stage yet; dvc repro runs them")
    for name in progress([*made], "hashing"):
        files, wrong = _compared(ws, name, made[name])
        count, bad = count + files, bad + wrong
    return f"{len(made)} stages in dvc.lock: {count} files hashed, and DVC's copies", bad


def differences(ws: Workspace, stage: str) -> list[str]:
    """One line for each output of a stage, or DVC's copy of it, that differs from dvc.lock."""
    return _compared(ws, stage, dvc.made_stages(ws.root).get(stage, {}))[1]


def _compared(ws: Workspace, stage: str, recorded: dict[str, Any]) -> tuple[int, list[str]]:
    """(number of files that dvc.lock has of a stage, one line per fault)."""
    files, bad = _files(ws, recorded)
    for name, md5 in files:
        path, kept = ws.root / name, dvc.copy_of(ws.root, md5)
        whole = path.is_file() and dvc.hash_of(path) == md5
        if not whole:
            bad.append(f"{path}: not the version in dvc.lock; dvc repro makes it")
        if not kept.is_file():
            bad.append(f"{kept}: missing, DVC's copy of {name}; dvc commit makes it")
        elif dvc.hash_of(kept) != md5:
            then = "dvc commit" if whole else f"dvc repro --force {stage}"
            bad.append(f"{kept}: changed, DVC's copy of {name}; delete it, then {then}")
    return len(files), bad


def _files(ws: Workspace, stage: dict[str, Any]) -> tuple[Pairs, list[str]]:
    """The files of a stage's outputs, also those in folders, and one line per fault in folders."""
    files: Pairs = []
    bad = []
    for out in stage.get("outs", []):
        name, md5 = out["path"], out["md5"]
        if not md5.endswith(".dir"):
            files.append((name, md5))
            continue
        kept = dvc.copy_of(ws.root, md5)
        if not kept.is_file():
            bad.append(f"{kept}: missing, DVC's list of {name}; dvc commit makes it")
        elif dvc.hash_of(kept) != md5.removesuffix(".dir"):
            bad.append(f"{kept}: changed, DVC's list of {name}; delete it, then dvc commit")
        else:
            listed = json.loads(kept.read_text("utf-8"))
            files += [(f"{name}/{entry['relpath']}", entry["md5"]) for entry in listed]
    return files, bad
