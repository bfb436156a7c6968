"""What `dvc add` versions is verified like what stages make; DVC's own files are its real ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.commands import call
from support.projects import tiny_params, workspace, write_params
from uotft.core import dvc
from uotft.core.errors import UserError
from uotft.pipeline import verify

FILES = {"photos/lark/a.png": b"a", "photos/lark/b.png": b"b", "list.txt": b"c"}


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a folder and a file that `dvc add` has taken, and a remote."""
    folder = tmp_path_factory.mktemp("added")
    write_params(folder, tiny_params())
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for words in (
        ["init", "-q", "--no-scm"],
        ["add", "-q", "photos", "list.txt"],
        ["remote", "add", "-q", "-d", "there", "elsewhere"],
    ):
        done = call("dvc", *words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def verified(root: Path) -> tuple[str, list[str]]:
    return verify.everything(workspace(root), lambda items, label: items)


def test_what_was_added_is_hashed_too(added: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(added, tmp_path / "project"))
    summary, bad = verified(root)
    assert summary == "0 stages in dvc.lock and 2 .dvc files: 3 files hashed, and DVC's copies"
    assert bad == []
    photo = root / "photos/lark/a.png"
    photo.unlink()
    photo.write_bytes(b"x")
    back = f"{photo}: not the version in photos.dvc; dvc checkout makes it"
    assert verified(root)[1] == [back]
    copy = dvc.copy_of(root, dvc.hash_of(root / "list.txt"))
    copy.unlink()
    gone = f"{copy}: missing, DVC's copy of list.txt; dvc commit makes it"
    assert verified(root)[1] == [gone, back]


def test_a_lost_list_is_made_again_only_from_a_folder_that_is_whole(
    added: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(added, tmp_path / "project"))
    [copy] = (root / ".dvc/cache").rglob("*.dir")
    copy.unlink()
    line = f"{copy}: missing, DVC's list of photos; "
    assert verified(root)[1] == [f"{line}dvc commit makes it"]
    (root / "photos/lark/b.png").unlink()
    assert verified(root)[1] == [f"{line}delete both, then dvc pull"]


def test_a_project_without_anything_of_dvc(tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params())
    with pytest.raises(UserError, match="has no stage yet"):
        verified(tmp_path)


def test_a_remote_is_believed_unless_it_is_verified(added: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(added, tmp_path / "project"))
    assert dvc.remotes(root) == {"there": False}
    assert call("dvc", "remote", "modify", "there", "verify", "true", cwd=root).returncode == 0
    assert dvc.remotes(root) == {"there": True}
    assert dvc.remotes(tmp_path) == {}, "no DVC here"
