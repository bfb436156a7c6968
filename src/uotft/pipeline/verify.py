"""The command data verify: hash all outputs in dvc.lock again, and DVC's copies of them.

The same for images that `dvc add` versions. DVC trusts its cache, and a remote that has not
``verify = true``: it silently checks out a damaged copy, and calls it up to date
(treeverse/dvc#5978, #9641).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from uotft.core import dvc, storage
from uotft.core.errors import UserError
from uotft.core.records import Progress
from uotft.pipeline.workspace import Workspace

Pairs = list[tuple[str, str]]  # paths from the root, and the MD5 of each


def everything(ws: Workspace, progress: Progress) -> tuple[str, list[str]]:
    """(a summary of what was checked, one line per fault), for all that DVC versions."""
    made, added, bad, count = dvc.made_stages(ws.root), _added(ws.root), list[str](), 0
    if not made and not added:
        raise UserError(f"{ws.root / 'dvc.lock'} has no stage yet; dvc repro runs them")
    for name in progress([*made, *added], "hashing"):
        files, wrong = _compared(ws, name, made[name] if name in made else added[name])
        count, bad = count + files, bad + wrong
    what = f"{len(made)} stages in dvc.lock"
    what += f" and {len(added)} .dvc files" if added else ""
    return f"{what}: {count} files hashed, and DVC's copies", bad


def differences(ws: Workspace, stage: str) -> list[str]:
    """One line for each output of a stage, or DVC's copy of it, that differs from dvc.lock."""
    return _compared(ws, stage, dvc.made_stages(ws.root).get(stage, {}))[1]


def _added(root: Path) -> dict[str, Any]:
    """{a .dvc file: its content, with the paths from the root}, for those that git knows."""
    words = ["git", "ls-files", "-z", "--", "*.dvc"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    found = {}
    for name in {*done.stdout.split("\0")} | {path.name for path in root.glob("*.dvc")}:
        if not name or not (root / name).is_file():
            continue
        outs = (storage.read_yaml(root / name) or {}).get("outs", [])
        folder = os.path.dirname(name)
        found[name] = {
            "outs": [
                out | {"path": os.path.join(folder, out["path"])}
                for out in outs
                if out.get("hash") == "md5"  # else of a DVC before 3, or of a cloud's versions
            ]
        }
    return dict(sorted(found.items()))


def _compared(ws: Workspace, stage: str, recorded: dict[str, Any]) -> tuple[int, list[str]]:
    """(number of files that DVC has of a stage or .dvc file, one line per fault)."""
    files, bad = _files(ws, stage, recorded)
    lock = stage if stage.endswith(".dvc") else "dvc.lock"
    for name, md5 in files:
        path, kept = ws.root / name, dvc.copy_of(ws.root, md5)
        whole, copied = _is(path, md5), _is(kept, md5)
        if not whole:
            then = "dvc checkout" if stage.endswith(".dvc") else "dvc repro"
            bad.append(f"{path}: not the version in {lock}{f'; {then} makes it' * copied}")
        if not copied:
            bad.append(_line(kept, f"copy of {name}", stage, whole=whole))
    return len(files), bad


def _files(ws: Workspace, stage: str, recorded: dict[str, Any]) -> tuple[Pairs, list[str]]:
    """The files of a stage's outputs, also those in folders, and one line per fault in folders."""
    files: Pairs = []
    bad = []
    for out in recorded.get("outs", []):
        name, md5 = out["path"], out["md5"]
        if not md5.endswith(".dir"):
            files.append((name, md5))
            continue
        kept = dvc.copy_of(ws.root, md5)
        if not _is(kept, md5.removesuffix(".dir")):
            whole = dvc.hash_of_folder(ws.root / name) == md5
            bad.append(_line(kept, f"list of {name}", stage, whole=whole))
        else:
            listed = json.loads(kept.read_text("utf-8"))
            files += [(f"{name}/{entry['relpath']}", entry["md5"]) for entry in listed]
    return files, bad


def _is(path: Path, md5: str) -> bool:
    return path.is_file() and dvc.hash_of(path) == md5


def _line(kept: Path, what: str, stage: str, *, whole: bool) -> str:
    """The fault of DVC's copy of a file or folder, which is ``whole`` or not, and what mends it."""
    there = kept.is_file()
    if whole:
        then = "delete it, then dvc commit" if there else "dvc commit makes it"
    else:
        # DVC takes the file for its version while it stands there, and then brings no other
        then = "delete both, then dvc pull"
        then += "" if stage.endswith(".dvc") else f", or dvc repro -f -s {stage}"
    return f"{kept}: {'changed' if there else 'missing'}, DVC's {what}; {then}"
