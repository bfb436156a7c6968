"""A remote of DVC that several people share: what one pushes, another pulls and never runs again.

DVC believes what a remote or its cache holds (treeverse/dvc#5978), unless the remote has
``verify = true``.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.commands import call
from support.projects import alone
from support.repository import commit
from support.ssh_server import ssh_server
from uotft.core import dvc

pytestmark = pytest.mark.slow
DAMAGED = "metrics/digits/uot.json"


@dataclass
class Shared:
    """The first person's project, and the remote to which it was pushed: files in ``folder``."""

    project: Path
    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, cwd: Path, code: int = 0) -> str:
        """What a command prints that must end with this exit code."""
        done = call(*words, cwd=cwd, **self.environment)
        assert done.returncode == code, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def cloned(self, folder: Path) -> Path:
        """The project as another person gets it, without what DVC keeps."""
        subprocess.run(["git", "clone", "-q", self.project, folder], check=True)
        local = self.project / ".dvc/config.local"  # where that person's key is
        if local.is_file():
            shutil.copy(local, folder / ".dvc")
        return folder

    def object(self) -> Path:
        """The remote's copy of a file that holds no checksum of its own."""
        return self.folder / self.kept().relative_to(self.project / ".dvc/cache")

    def kept(self) -> Path:
        """The first person's copy of it."""
        return dvc.copy_of(self.project, dvc.hash_of(self.project / DAMAGED))


@pytest.fixture(scope="module", params=["folder", "ssh"])
def shared(
    request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    """A finished project, pushed."""
    place = tmp_path_factory.mktemp("shared")
    own = alone(project, place)
    made = Shared(own, place / "remote", {})
    if request.param == "folder":
        made.run("dvc", "remote", "add", "-d", "there", str(made.folder), cwd=own)
        yield pushed(made)
        return
    with ssh_server(tmp_path_factory.mktemp("ssh")) as host:
        made.environment["HOME"] = str(host.home)
        made.run("dvc", "remote", "add", "-d", "there", f"{host.address}{made.folder}", cwd=own)
        key = ("dvc", "remote", "modify", "--local", "there", "keyfile", str(host.key))
        made.run(*key, cwd=own)
        yield pushed(made)


def pushed(made: Shared) -> Shared:
    commit(made.project)
    made.run("dvc", "push", cwd=made.project)
    return made


def damage(path: Path) -> bytes:
    """Change a digit of a file in DVC's keeping, whose mode and times stay; what it held."""
    before, content = path.stat(), path.read_bytes()
    path.chmod(0o644)
    other = lambda found: b'"top1": %d' % (int(found[1]) % 9 + 1)  # noqa: E731
    path.write_bytes(re.sub(rb'"top1": (\d)', other, content, count=1))
    assert path.read_bytes() != content
    path.chmod(stat.S_IMODE(before.st_mode))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return content


def mend(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # it is read-only
    path.write_bytes(content)


def test_what_one_pushes_another_pulls_and_runs_no_stage(shared: Shared, tmp_path: Path) -> None:
    there = shared.cloned(tmp_path / "clone")
    shared.run("dvc", "pull", cwd=there)
    said = shared.run("dvc", "repro", cwd=there)
    assert "Running stage" not in said
    assert "Data and pipelines are up to date." in said
    assert "and DVC's copies; 0 wrong\n" in shared.run("uotft", "data", "verify", cwd=there)


def test_what_the_remote_damaged_is_found_before_it_is_used(shared: Shared, tmp_path: Path) -> None:
    """DVC notices nothing; uotft does, and what it tells to do mends it."""
    content = damage(shared.object())
    there = shared.cloned(tmp_path / "clone")
    try:
        shared.run("dvc", "pull", cwd=there)
        assert (there / DAMAGED).read_bytes() != content
        assert "up to date" in shared.run("dvc", "status", cwd=there)
        said = shared.run("uotft", "compare", cwd=there, code=2)
        assert f"{there / DAMAGED} is not what {there}/predictions/digits/uot.npz gives" in said
        told = shared.run("uotft", "data", "verify", cwd=there, code=1).splitlines()
    finally:
        mend(shared.object(), content)
    copy = there / ".dvc/cache" / shared.object().relative_to(shared.folder)
    then = "delete both, then dvc pull, or dvc repro -f -s evaluate@digits"
    assert told[:2] == [
        f"{there / DAMAGED}: not the version in dvc.lock",
        f"{copy}: changed, DVC's copy of {DAMAGED}; {then}",
    ]
    for path in (there / DAMAGED, copy):
        path.unlink()
    shared.run("dvc", "pull", cwd=there)
    assert (there / DAMAGED).read_bytes() == content


def test_a_remote_that_is_verified_passes_no_damage_on(shared: Shared, tmp_path: Path) -> None:
    content = damage(shared.object())
    there = shared.cloned(tmp_path / "clone")
    try:
        said = shared.run("uotft", "doctor", cwd=there, code=1)
        [found] = [line for line in said.splitlines() if "there: " in line]
        [advice] = re.findall(r"`(.+)`", found)
        shared.run(*advice.split(), cwd=there)
        looked = call("uotft", "doctor", cwd=there, **shared.environment).stdout
        assert "ok  remote         there: hashed when pulled" in looked
        said = shared.run("dvc", "pull", cwd=there, code=1)
        assert "metrics/digits" in said
        assert not (there / DAMAGED).exists()
        shared.object().unlink()
        told = shared.run("dvc", "push", cwd=shared.project)
        assert "up to date" in told, "it looks for the list of the folder alone"
        shared.object().parent.mkdir(exist_ok=True)
        shutil.copy(shared.kept(), shared.object())
        assert shared.object().read_bytes() == content
    finally:
        mend(shared.object(), content)
    shared.run("dvc", "pull", cwd=there)
    assert (there / DAMAGED).read_bytes() == content
