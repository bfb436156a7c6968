"""The stage fetch: selections -> the list of ImageNet's classes that have to be here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.commands import answer
from support.dataset_archives import coloured
from support.image_folders import pictures
from support.projects import tiny_params, write_params
from uotft.core import storage, user_settings
from uotft.core.errors import UserError
from uotft.core.records import Cell, silently
from uotft.data import wordnet
from uotft.pipeline import init, prepare, source_classes
from uotft.pipeline.init import Wanted
from uotft.pipeline.workspace import Workspace

IDS = [*wordnet.imagenet()][:4]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project whose ImageNet is a copy of its user's: four classes."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for number, wnid in enumerate(IDS):
        for i in range(10):
            path = tmp_path / "copy" / wnid / f"{wnid}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(coloured((50 * number, 20 * i, 90), i))
    user_settings.remember(imagenet=str(tmp_path / "copy"))
    pictures(tmp_path / "birds", 3, 12)
    folder, _ = init.project(Wanted("", "", str(tmp_path / "birds"), tmp_path))
    return Workspace.find(folder)


def selects(ws: Workspace, cell: Cell, *wnids: str) -> None:
    classes = [{"name": wordnet.named(wnid)} for wnid in wnids]
    storage.write_json(ws.cell("selections", cell) / "selection.json", {"classes": classes})


def listed(ws: Workspace) -> list[str]:
    return json.loads((ws.root / "selected" / "imagenet.json").read_text())["classes"]


def test_the_command_lists_what_is_kept(project: Workspace) -> None:
    selects(project, Cell("birds", "uot", 0), IDS[2], IDS[0])
    selects(project, Cell("birds", "random", 1), IDS[0])
    done = answer("uotft", "data", "fetch", cwd=project.root)
    assert done.returncode == 0, done.stderr
    assert "imagenet: images of 2 classes, in " in done.stdout
    assert listed(project) == [IDS[0], IDS[2]]


def test_a_source_that_does_not_come_by_class_is_refused(tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params())
    done = answer("uotft", "data", "fetch", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the source glyphs does not come by class" in done.stderr
    assert "`uotft data prepare glyphs`" in done.stderr


def test_a_class_that_is_listed_stays(project: Workspace) -> None:
    cell = Cell("birds", "uot", 0)
    for wnid in (IDS[3], IDS[1]):
        selects(project, cell, wnid)
        [*source_classes.fetch(project, silently, [cell])]
    assert listed(project) == [IDS[1], IDS[3]]


def test_a_copy_without_a_class_is_refused_and_nothing_is_listed(project: Workspace) -> None:
    absent = [*wordnet.imagenet()][7]
    selects(project, Cell("birds", "uot", 0), absent)
    with pytest.raises(UserError, match=rf"copy: 1 of the classes wanted are missing: {absent}"):
        [*source_classes.fetch(project, silently)]
    assert not (project.root / "selected").exists()


def test_no_selection_keeps_a_class_so_the_source_is_empty(project: Workspace) -> None:
    selects(project, Cell("birds", "none", 0))
    [*source_classes.fetch(project, silently)]
    assert listed(project) == []
    line = prepare.prepare(project, "imagenet", progress=silently)
    assert line.startswith("imagenet: 0 classes")
