"""dvc.lock is of the code as it is now: a stage whose code changed runs again."""

from __future__ import annotations

import yaml
from dvc.repo import Repo

from support.repository import REPOSITORY


def test_the_lock_is_of_todays_code() -> None:
    made = yaml.safe_load((REPOSITORY / "dvc.lock").read_text())["stages"]
    stale = set()
    with Repo(str(REPOSITORY)) as repo:
        for stage in repo.index.stages:
            known = {dep["path"]: dep["md5"] for dep in made[stage.addressing]["deps"]}
            for dep in stage.deps:
                if dep.def_path.startswith("src/"):
                    dep.save()  # in memory alone: it computes the hash of the file or folder
                    if known.get(dep.def_path) != dep.hash_info.value:
                        stale.add(dep.def_path)
    assert not stale, "run `make repro`, and commit dvc.lock"
