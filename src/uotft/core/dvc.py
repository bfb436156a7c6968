"""DVC's locks and its dvc.lock, read without DVC, and where its cache is.

While a command of DVC looks at the pipeline, .dvc/tmp/lock is locked and names the process; while a
stage is under way, .dvc/tmp/rwlock lists what the stage reads and writes, with its process. Another
`dvc repro` fails as long.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from contextlib import suppress
from functools import cache, reduce
from pathlib import Path
from typing import Any

from uotft.core import private, storage
from uotft.core.errors import UserError

INDEXES = ".dvc/tmp/uotft"  # from a project's root


def holder(root: Path) -> str:
    """The process that holds DVC's locks around ``root``, and its command; empty if none does."""
    here = next((f for f in (root, *root.parents) if (f / ".dvc").is_dir()), root) / ".dvc/tmp"
    try:
        with (here / "lock").open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _command(file.read().strip())
    except OSError:
        return ""  # no command of DVC has been there
    try:
        held = json.loads((here / "rwlock").read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    readers = [reader for found in held.get("read", {}).values() for reader in found]
    for entry in (*held.get("write", {}).values(), *readers):
        if Path("/proc", str(entry["pid"])).exists():
            return f"{entry['pid']} ({entry['cmd']})"
    return ""


def made_stages(root: Path) -> dict[str, Any]:
    """{stage: what dvc.lock tells of it}; empty where nothing has run."""
    lock = root / "dvc.lock"
    if not lock.is_file():
        return {}
    try:
        return dict((storage.read_yaml(lock) or {}).get("stages", {}))
    except (AttributeError, TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{lock}: not the file that DVC writes ({error}): git restore it"
        ) from error


def unmade(root: Path, stages: list[str]) -> list[str]:
    """Those of ``stages`` that dvc.lock does not have with today's params.yaml and outputs."""
    try:
        made, params = made_stages(root), storage.read_yaml(root / "params.yaml")
    except (OSError, UserError):  # perhaps it is being written
        return stages
    return [name for name in stages if name not in made or not _as_it_was(root, made[name], params)]


def absent_settings(root: Path) -> list[str]:
    """Settings that stages of dvc.yaml list and params.yaml lacks: DVC stops at them.

    A params.yaml of an older version lacks those that are new, where defaults would do.
    """
    if not (root / "dvc.yaml").is_file():
        raise UserError(
            f"{root / 'dvc.yaml'} is missing: copy it from another project that `uotft init` made"
        )
    stages = (storage.read_yaml(root / "dvc.yaml") or {}).get("stages", {})
    every = (key for s in stages.values() for key in s.get("do", s).get("params", ()))
    listed = {key for key in every if isinstance(key, str)}  # others are of another file
    params = storage.read_yaml(root / "params.yaml")
    return sorted(key for key in listed if "${" not in key and not _has(params, key))


def _has(params: Any, key: str) -> bool:
    """Whether the setting ``a.b`` is there, whatever its value."""
    for word in key.split("."):
        if not isinstance(params, dict) or word not in params:
            return False
        params = params[word]
    return True


def _as_it_was(root: Path, stage: dict[str, Any], params: dict[str, Any]) -> bool:
    then = stage.get("params", {}).get("params.yaml", {})
    now = {key: reduce(lambda section, word: section.get(word, {}), key.split("."), params)
           for key in then}  # fmt: skip
    return then == now and all(_is_there(root / out["path"], out["md5"]) for out in stage["outs"])


def _is_there(path: Path, md5: str) -> bool:
    """Whether a file has these bytes; of a folder, whose hash is of DVC's own making, if it is."""
    if md5.endswith(".dir") or not path.is_file():
        return path.is_dir()
    return hash_of(path) == md5


def index_place(root: Path) -> Path:
    """Where `dvc` typed by hand keeps its indexes, which are pickles, for a project in ``root``.

    DVC expands no ~ there, so no one setting names each user's home; and its own /var/tmp/dvc is
    open to all (CVE-2025-69872). Here it is open to those who may write dvc.yaml, too, whose
    commands all users of the project run anyway.
    """
    return root.absolute() / INDEXES


def keep_indexes_apart(root: Path) -> None:
    """Make that place, closed to strangers, and name it where the project was moved since."""
    local = root / ".dvc" / "config.local"
    found = local.read_text("utf-8") if local.is_file() else ""
    old = re.search(r"^\s*site_cache_dir = (.+)$", found, re.MULTILINE)
    if old is None or not old[1].endswith((INDEXES, "/uotft/dvc")):
        return  # another place, which the user chose
    place, group = index_place(root), stat.S_IMODE(root.stat().st_mode) & 0o020
    with suppress(OSError):  # another user's, and as it should be
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o2770 if group else 0o700)
    if old[1] != str(place):
        private.write(local, found.replace(old[1], str(place)).encode())


def hash_of(path: Path) -> str:
    """The MD5 of a file, in hexadecimal: its version, for DVC."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def hash_of_folder(folder: Path) -> str:
    """The same of a folder: the MD5 of its list of files, as DVC writes that, and ".dir"."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [{"md5": hash_of(p), "relpath": p.relative_to(folder).as_posix()} for p in paths]
    listed = json.dumps(sorted(files, key=lambda file: file["relpath"]), sort_keys=True)
    return f"{hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest()}.dir"


def copy_of(root: Path, md5: str) -> Path:
    """Where DVC keeps its copy of a file, or its list of a folder, of this MD5."""
    return _cache(root) / "files" / "md5" / md5[:2] / md5[2:]


def remotes(root: Path) -> dict[str, bool]:
    """{remote: whether DVC hashes what it gets from there}, by all of DVC's settings."""
    found = dict(line.split("=", 1) for line in _told(root, "config", "--list").splitlines())
    names = [re.fullmatch(r"remote\.(.+)\.url", key) for key in found]
    return {
        name[1]: found.get(f"remote.{name[1]}.verify", "").lower() in ("true", "1", "yes", "on")
        for name in names
        if name
    }


@cache
def _cache(root: Path) -> Path:
    """DVC's cache, wherever its settings put it."""
    found = _told(root, "cache", "dir").strip()
    return Path(found) if found else root / ".dvc" / "cache"


def _told(root: Path, *words: str) -> str:
    """The output of a command of DVC; "" if it fails, or if no DVC is set up in ``root``."""
    if not (root / ".dvc" / "config").is_file():
        return ""
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def _command(pid: str) -> str:
    try:
        arguments = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return pid
    return f"{pid} ({' '.join(os.fsdecode(b' '.join(arguments)).split())})"
