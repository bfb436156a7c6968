"""The units of selection on a tiny workspace: classes, clusters and single images."""

from pathlib import Path

import numpy as np
import pytest

from support.finished_trials import line_of
from support.projects import tiny_params, workspace, write_params
from support.stages import run_train
from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.models import model_io
from uotft.models.network import random_rows
from uotft.pipeline import readers, select as select_stage, units, workspace as workspace_stage
from uotft.pipeline.report_images import WorkspaceImages
from uotft.selection import features as pools

UNITS = ("class", "cluster", "image")


def remake(root: Path, unit: str, **select: int) -> workspace_stage.Workspace:
    """The tiny workspace with units of another kind."""
    params = tiny_params()
    params["select"] |= {"unit": unit, **select}
    write_params(root, params)
    ws = workspace(root)
    units.units(ws)
    return ws


def chosen_rows(ws: workspace_stage.Workspace, strategy: str = "uot") -> np.ndarray:
    """The rows of the bank that seed 0 selects."""
    kept = select_stage.select(ws, Cell("digits", strategy, 0)).kept
    found = readers.read_selection(ws, Cell("digits", strategy, 0))["classes"]
    assert [c["row"] for c in found] == kept.tolist()
    return kept


@pytest.mark.parametrize("unit", UNITS)
def test_every_training_image_belongs_to_one_unit(fresh: Path, unit: str) -> None:
    ws = remake(fresh, unit)
    bank, pool = readers.source_bank(ws), pools.read(ws.features("glyphs"))
    assert np.bincount(bank.members, minlength=len(bank.names)).tolist() == bank.counts.tolist()
    assert bank.counts.sum() == len(readers.images(ws, "glyphs").rows("train"))
    for row in range(len(bank.names)):
        mean = pool["features"][bank.members == row].astype(float).mean(0)
        assert bank.means[row] == pytest.approx(mean, abs=1e-6)


def test_names_of_units_sort_as_their_numbers(fresh: Path) -> None:
    assert readers.source_bank(remake(fresh, "class")).names[0] == "digit zero"
    bank = readers.source_bank(remake(fresh, "image"))
    assert bank.names[:2] == ("image 00", "image 01")
    assert list(bank.names) == sorted(bank.names)
    assert bank.labels[:7] == ("digit zero",) * 6 + ("digit one",)
    bank = readers.source_bank(remake(fresh, "cluster"))
    assert bank.names[0] == "cluster 0"
    assert len(bank.names) == 9
    assert not bank.labels


def test_the_same_clusters_again(fresh: Path) -> None:
    ws = remake(fresh, "cluster")
    before = storage.fingerprint(ws.embedding("glyphs"))
    units.units(ws)
    assert storage.fingerprint(ws.embedding("glyphs")) == before


def test_a_kept_class_means_all_its_training_images(fresh: Path) -> None:
    ws = remake(fresh, "class")
    kept = chosen_rows(ws)
    part, images = readers.source_part(ws, kept), readers.images(ws, "glyphs")
    train = images.rows("train")
    assert part.rows.tolist() == train[np.isin(images.labels[train], kept)].tolist()
    assert kept[part.labels].tolist() == images.labels[part.rows].tolist()
    assert part.classes.tolist() == kept.tolist()
    assert part.names == tuple(images.names[c] for c in kept)


def test_a_kept_cluster_means_its_images_and_is_their_label(fresh: Path) -> None:
    ws = remake(fresh, "cluster")
    kept, bank = chosen_rows(ws), readers.source_bank(ws)
    part, train = readers.source_part(ws, kept), readers.images(ws, "glyphs").rows("train")
    assert part.rows.tolist() == train[np.isin(bank.members, kept)].tolist()
    cluster = dict(zip(train.tolist(), bank.members.tolist(), strict=True))
    assert kept[part.labels].tolist() == [cluster[row] for row in part.rows.tolist()]
    assert part.names == tuple(bank.names[row] for row in kept)
    assert not len(part.classes)


def test_a_kept_image_means_itself_under_its_class(fresh: Path) -> None:
    ws = remake(fresh, "image", top_k=7)
    kept = chosen_rows(ws)
    part, images = readers.source_part(ws, kept), readers.images(ws, "glyphs")
    assert part.rows.tolist() == sorted(images.rows("train")[kept])
    assert part.classes[part.labels].tolist() == images.labels[part.rows].tolist()
    assert part.names == tuple(images.names[c] for c in part.classes)
    assert set(part.labels) == set(range(len(part.names)))


def test_the_cap_spreads_images_over_classes(fresh: Path) -> None:
    free = remake(fresh, "image", top_k=10)
    most = np.bincount(readers.source_part(free, chosen_rows(free)).labels).max()
    capped = remake(fresh, "image", top_k=10, max_per_class=1)
    part = readers.source_part(capped, chosen_rows(capped))
    assert most > 1 >= np.bincount(part.labels).max()
    assert len(part.rows) == 10
    settings = storage.read_json(
        capped.cell("selections", Cell("digits", "uot", 0)) / "selection.json"
    )
    assert settings["settings"]["max_per_class"] == 1
    assert settings["settings"]["unit"] == "image"


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_trains(fresh: Path, unit: str) -> None:
    ws = remake(fresh, unit)
    first, again = run_train(fresh), run_train(fresh)
    assert first == again
    assert "loss/source" in first[1][1]
    part = readers.source_part(ws, chosen_rows(ws))
    network, facts = model_io.read(ws.cell("models", Cell("digits", "uot", 0)))
    assert facts["source_classes"] == list(part.names)
    assert network.head("source").out_features == len(part.names)


@pytest.mark.parametrize("unit", UNITS)
def test_the_source_head_starts_from_what_knows_the_unit(fresh: Path, unit: str) -> None:
    params = tiny_params()
    params["select"]["unit"] = unit
    recipe = params["train"]["recipe"] | {"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    params["train"]["recipe"] = recipe
    write_params(fresh, params)
    ws = workspace(fresh)
    units.units(ws)
    run_train(fresh)
    part = readers.source_part(ws, chosen_rows(ws))
    weight = model_io.read(ws.cell("models", Cell("digits", "uot", 0)))[0].head("source").weight
    if unit == "cluster":  # proportional to the centred means
        centred = part.means - part.means.mean(0)
        scale = params["train"]["head_scale"] / np.square(centred).sum(1).mean()
        expected = scale * centred
    else:
        classifier = model_io.read(ws.pretrained())[0].head("target").weight
        expected = classifier[part.classes].detach().numpy()
    assert weight.detach().numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("head", ["class_means", "random"])
def test_the_source_head_starts_from_means_or_at_random(fresh: Path, unit: str, head: str) -> None:
    """Class means: a row ranks by distance to the mean features of its label's kept images."""
    params = tiny_params()
    params["select"] |= {"unit": unit, "top_k": 8}
    recipe = params["train"]["recipe"] | {"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    params["train"] |= {"source_head": head, "recipe": recipe}
    write_params(fresh, params)
    ws = workspace(fresh)
    units.units(ws)
    run_train(fresh)
    weight = model_io.read(ws.cell("models", Cell("digits", "uot", 0)))[0].head("source").weight
    if head == "random":
        expected = random_rows("source", weight.shape, 0)[0].numpy()
    else:
        part, pool = (
            readers.source_part(ws, chosen_rows(ws)),
            pools.read(ws.features("glyphs")),
        )
        features = pool["features"][np.isin(pool["rows"], part.rows)].astype(np.float64)
        means = np.array([features[part.labels == c].mean(0) for c in range(len(part.names))])
        centred = means - means.mean(0)
        expected = params["train"]["head_scale"] / np.square(centred).sum(1).mean() * centred
    assert weight.detach().numpy() == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("unit", UNITS)
def test_the_contact_sheet_shows_members(fresh: Path, unit: str) -> None:
    ws = remake(fresh, unit)
    kept, bank = chosen_rows(ws), readers.source_bank(ws)
    sheets = WorkspaceImages(ws).examples("digits", [line_of(ws, "digits", "uot")], 12)
    images = readers.images(ws, "glyphs")
    assert list(sheets) == ["digits", "uot"]
    assert [name for name, _ in sheets["digits"]] == list(map(str, range(10)))
    pixels = images.images[images.rows("train")]
    for number, (name, image) in zip(kept.tolist(), sheets["uot"], strict=False):
        assert name == (bank.labels or bank.names)[number]
        assert any(np.array_equal(image, own) for own in pixels[bank.members == number])


def test_labels_select_images_by_class_and_never_clusters(fresh: Path) -> None:
    ws = remake(fresh, "image", top_k=60)
    part = readers.source_part(ws, chosen_rows(ws, "label"))
    assert all(name.startswith("digit ") for name in part.names)
    ws = remake(fresh, "cluster")
    with pytest.raises(UserError, match=r"'digit \*' matches none of the 9 .*cluster 0, cluster 1"):
        select_stage.select(ws, Cell("digits", "label", 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "pixel"}, r"select\.unit: got 'pixel': Input should be 'class', 'cluster' or"),
        ({"max_per_class": 3}, r"select\.max_per_class: got 3: .*needs select.unit: image"),
    ],
)
def test_wrong_settings(tmp_path: Path, change: dict, message: str) -> None:
    params = tiny_params()
    params["select"] |= change
    write_params(tmp_path, params)
    with pytest.raises(UserError, match=message):
        config.load(tmp_path)


def test_more_clusters_than_images_write_nothing(fresh: Path) -> None:
    before = storage.fingerprint(workspace(fresh).embedding("glyphs"))
    params = tiny_params()
    params["select"]["unit"], params["cluster"]["clusters"] = "cluster", 1000
    write_params(fresh, params)
    with pytest.raises(UserError, match=r"cluster\.clusters: got 1000, .* only 72 points"):
        units.units(workspace(fresh))
    assert storage.fingerprint(workspace(fresh).embedding("glyphs")) == before
