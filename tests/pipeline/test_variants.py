"""Cells with other settings than those of params.yaml: their words, folders and own units."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from support.projects import tiny_params, workspace, write_params
from support.stages import run_train
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.pipeline import freshness, readers, select, train as train_stage, units as units_stage
from uotft.training import runtime


def quiet(items, label):  # noqa: ANN001, ANN201
    return items


def train(root: Path, *overrides: str, strategy: str = "uot") -> Path:
    """Select and train one cell with other words in this process; the folder of its model."""
    ws = workspace(root).with_changes(overrides)
    units_stage.own_units(ws)
    select.select(ws, Cell("digits", strategy, 0))
    train_stage.train(
        ws,
        Cell("digits", strategy, 0),
        Context(runtime.start(0, 1), log=lambda *_: None, progress=quiet),
    )
    return ws.cell("models", Cell("digits", strategy, 0))


def test_words_change_the_settings_and_nothing_else(tiny: Path) -> None:
    ws = workspace(tiny)
    changed = ws.with_changes(
        ["train.recipe.steps=200", "select.top_k=auto", "selectors.uot.cost_scale=0.1",
         "train.lambda=0.30", "subset.fraction=0.2", "source_fraction=0.5"]
    )  # fmt: skip
    there, here = ws.params.model_dump(by_alias=True), changed.params.model_dump(by_alias=True)
    assert here["subset"] == {"shots": None, "fraction": 0.2, "longtail": None}
    there |= {"subset": here["subset"], "source_fraction": 0.5}
    there["select"]["top_k"], there["train"]["lambda"] = "auto", 0.3
    there["train"]["recipe"]["steps"] = 200
    there["selectors"]["uot"]["cost_scale"] = 0.1
    assert here == there
    assert "train.lambda=0.3" in changed.overrides
    assert ws.with_changes([]) is ws
    assert ws.params.train.source_weight == 1.0, "the words of a variant stay its own"


def test_a_variant_has_one_folder_however_it_is_spelled(tiny: Path) -> None:
    ws = workspace(tiny)
    one = ws.with_changes(["train.lambda=0.30", "select.top_k=3"])
    assert one.variant == "variants/select.top_k=3,train.lambda=0.3"
    assert one.variant == ws.with_changes(["select.top_k=3", "train.lambda=3.0e-1"]).variant
    assert ws.with_changes(["subset.longtail=10.0"]).variant == "variants/subset.longtail=10"
    # a worker is given the words in this spelling
    again = ws.with_changes(["train.recipe.drops=[0.5,0.9]", "train.reestimate_norm=true"])
    assert ws.with_changes(again.overrides) == again


@pytest.mark.parametrize(
    "override",
    [
        "selectors.label.table=tables/classes.json",
        f"selectors.label.classes={list('abcdefgh') * 9}",
    ],
)
def test_words_that_are_no_folders_name_get_a_short_one(fresh: Path, override: str) -> None:
    ws = workspace(fresh).with_changes([override])
    assert len(Path(ws.variant).parts) == 2
    assert len(Path(ws.variant).name) < 120
    ws.note_overrides()
    found = json.loads((fresh / ws.variant / "overrides.json").read_text())["set"]
    assert workspace(fresh).with_changes(found) == ws


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.weight=1"],
            r"--set train\.weight=1:\n  train\.weight: no such setting; known are",
        ),
        (["train.lambda=-1"], r"--set train\.lambda=-1:\n  train\.lambda: got -1: .* greater"),
        (["train.recipe.steps=1.5"], r"train\.recipe\.steps: got 1.5: .* integer"),
        (
            ["source=digits"],
            "--set source: --set changes only source_fraction, .*params.yaml, in a",
        ),
        (["lambda=1"], "--set lambda: --set changes only"),
        (["train={lambda: 1}"], "--set train: name one setting"),
        (["source_fraction.x=1"], "--set source_fraction.x: name one setting"),
        (["train.lambda"], "--set: got 'train.lambda'; write NAME=VALUE"),
        (["train.lambda=[1"], r"--set train\.lambda: got '\[1', which is not YAML"),
        (["train.lambda=1", "train.lambda=2"], "--set train.lambda=2: train.lambda is given twice"),
        (["subset.shots=1", "subset.fraction=0.5"], "set only one of shots, fraction"),
        (["selectors.uot.eps=1"], r"--set selectors\.uot\.eps=1: selectors\.uot:\n  eps: no such"),
        (["selectors.teleport.a=1"], "selectors: got 'teleport'; known are all, "),
        (["objectives.joint.a=1"], r"objectives\.joint:\n  a: no such setting"),
        (["train.objective=magic"], r"--set train\.objective=magic: train\.objective: got 'magic'"),
    ],
)
def test_words_that_mean_nothing(tiny: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        workspace(tiny).with_changes(overrides)


def test_a_word_that_says_the_same_gives_the_same_weights(fresh: Path) -> None:
    run_train(fresh)
    ours = train(fresh, f"select.top_k={tiny_params()['select']['top_k']}", "select.unit=class")
    base = workspace(fresh).cell("models", Cell("digits", "uot", 0))
    assert storage.fingerprint(ours / "model.safetensors") == storage.fingerprint(
        base / "model.safetensors"
    )
    assert (fresh / "variants/select.unit=class/embeddings/glyphs.npz").is_file()


def test_units_of_a_variant_are_made_once_and_again_when_their_inputs_change(fresh: Path) -> None:
    before = storage.fingerprint(workspace(fresh).embedding("glyphs"))
    ws = workspace(fresh).with_changes(["select.unit=cluster", "cluster.clusters=6"])
    assert "6 x cluster of 72" in units_stage.own_units(ws)
    assert units_stage.own_units(ws) == ""
    # one that differs downstream shares them
    assert (
        units_stage.own_units(workspace(fresh).with_changes([*ws.overrides, "train.lambda=2"]))
        == ""
    )
    record = ws.embedding("glyphs").with_suffix(".json")
    assert json.loads(record.read_text())["unit"] == "cluster"
    assert units_stage.own_units(workspace(fresh)) == "", "params.yaml's own are DVC's"
    assert storage.fingerprint(workspace(fresh).embedding("glyphs")) == before
    params = yaml.safe_load((fresh / "params.yaml").read_text())
    params["cluster"]["seed"] = 5  # not among the words, but it decides
    write_params(fresh, params)
    ws = workspace(fresh).with_changes(ws.overrides)
    assert "6 x cluster" in units_stage.own_units(ws)
    assert len(readers.source_bank(ws).names) == 6
    ws.embedding("glyphs").unlink()
    assert "6 x cluster" in units_stage.own_units(ws)


def test_half_of_the_source_beside_the_whole(fresh: Path) -> None:
    ws = workspace(fresh).with_changes(["source_fraction=0.5"])
    made = train(fresh, "source_fraction=0.5")
    assert (made / "model.safetensors").is_file()
    assert readers.source_bank(ws).counts.tolist() == [3] * 12
    assert readers.source_bank(workspace(fresh)).counts.tolist() == [6] * 12
    part = readers.source_part(ws, np.arange(12))
    assert part.rows.tolist() == readers.source(ws).rows("train").tolist()


def test_the_fingerprint_of_a_variants_training_knows_its_units(fresh: Path) -> None:
    """Clusters of another seed: no setting of the training says so, the units' fingerprint does."""
    found = []
    for seed in (0, 1):
        ws = workspace(fresh).with_changes(["select.unit=cluster", f"cluster.seed={seed}"])
        units_stage.own_units(ws)
        select.select(ws, Cell("digits", "uot", 0))
        fingerprint = freshness.of_training(ws, Cell("digits", "uot", 0))
        [units] = [
            v for k, v in fingerprint["files"].items() if k.endswith("embeddings/glyphs.npz")
        ]
        found.append(units)
    assert found[0] != found[1]
