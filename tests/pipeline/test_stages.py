"""The stages on a tiny workspace: what a run may see, what it writes, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from support.projects import HUGE, tiny_params, workspace, write_params
from support.stages import find_overlap, plant, put_under_features, run_train
from uotft.analysis import endings
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.core.records import Cell
from uotft.data.subset import sample
from uotft.pipeline import (
    compare,
    embed,
    evaluate,
    forecast,
    prepare,
    pretrain,
    readers,
    select,
    units,
)
from uotft.selection import features as pools
from uotft.training import assembly, runtime
from uotft.training.streams import Sampling


def weights(root: Path, strategy: str = "uot") -> str:
    folder = workspace(root).cell("models", Cell("digits", strategy, 0))
    return storage.fingerprint(folder / "model.safetensors")


def test_splits_never_meet(tiny: Path) -> None:
    for dataset in ("glyphs", "digits"):
        images = readers.images(workspace(tiny), dataset)
        rows = np.concatenate([images.rows(s) for s in ("train", "val", "test")])
        assert sorted(rows) == list(range(len(images.images)))
        assert set(np.unique(images.labels[images.rows("train")])) == set(range(len(images.names)))


def test_the_same_seed_gives_the_same_pixels(tiny: Path, tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params())
    for dataset in ("glyphs", "digits"):
        prepare.prepare(workspace(tmp_path), dataset, progress=lambda items, label: items)
        paths = [workspace(root).data(dataset) for root in (tiny, tmp_path)]
        assert storage.fingerprint(paths[0]) == storage.fingerprint(paths[1])


@pytest.mark.parametrize("split", ["val", "test"])
def test_val_and_test_images_decide_nothing(fresh: Path, split: str) -> None:
    """Scramble a split's pixels and labels: embeddings, selection and weights stay the same."""
    run_train(fresh)
    ws, before = workspace(fresh), weights(fresh)
    features = np.array(pools.read(ws.features("digits"))["features"])
    images = readers.images(ws, "digits")
    rng = np.random.default_rng(0)
    rows = images.rows(split)
    images.images[rows] = rng.integers(0, 255, images.images[rows].shape)
    images.labels[rows] = rng.permutation(images.labels[rows])
    storage.write_images(ws.data("digits"), images)
    embed.embed(ws, "digits", Context(runtime.start(0, 1), progress=lambda items, label: items))
    run_train(fresh)
    assert np.array_equal(features, pools.read(ws.features("digits"))["features"])
    assert weights(fresh) == before


def test_undrawn_training_images_decide_nothing_either(fresh: Path) -> None:
    run_train(fresh)
    ws, before = workspace(fresh), weights(fresh)
    pool = pools.read(ws.features("digits"))
    sampled = sample(pool["labels"], ws.params.subset, 0)
    others = np.setdiff1d(np.arange(len(pool["labels"])), sampled)
    features = np.array(pool["features"])
    features[others] = 7
    np.save(ws.features("digits") / "features.npy", features)
    images = readers.images(ws, "digits")
    images.images[pool["rows"][others]] = 99
    put_under_features(ws, "digits", images)
    run_train(fresh)
    assert weights(fresh) == before


def test_same_seed_same_weights_and_another_seed_others(fresh: Path) -> None:
    first, again, other = run_train(fresh), run_train(fresh), run_train(fresh, seed=1)
    assert first == again
    assert first != other


def test_loss_terms_are_logged_by_name(fresh: Path) -> None:
    joint, plain = run_train(fresh), run_train(fresh, "none")
    assert set(joint[1][1]) == {"loss/target", "loss/source", "learning_rate"}
    assert set(plain[1][1]) == {"loss/target", "learning_rate"}
    assert set(joint[-1][1]) == {"val/top1", "val/mean_per_class"}
    rates = [numbers["learning_rate"] for _, numbers in joint if "learning_rate" in numbers]
    recipe = workspace(fresh).params.train.recipe
    assert rates[0] == pytest.approx(recipe.learning_rate)
    assert rates[-1] == pytest.approx(recipe.learning_rate / 10), "one drop by step 8 of 12"


def test_ten_images_are_overfitted(fresh: Path) -> None:
    params = tiny_params()
    params["subset"] = {"shots": 1}
    params["train"] |= {"target_head": "random", "target_batch": 10}
    params["train"]["recipe"] |= {"steps": 200, "learning_rate": 0.1, "drops": []}
    params["train"]["augment"] = {"rotation": 0.0, "shear": 0.0, "zoom": 0.0, "shift": 0.0}
    write_params(fresh, params)
    losses = [n["loss/target"] for _, n in run_train(fresh, "none") if "loss/target" in n]
    assert losses[-1] < 0.05 < losses[0]


def test_selection_file(fresh: Path) -> None:
    ws = workspace(fresh)
    select.select(ws, Cell("digits", "uot", 0))
    folder = ws.cell("selections", Cell("digits", "uot", 0))
    chosen = json.loads((folder / "selection.json").read_text())
    assert [c["rank"] for c in chosen["classes"]] == [1, 2, 3, 4, 5]
    scores = [c["score"] for c in chosen["classes"]]
    assert scores == sorted(scores, reverse=True)
    assert len(chosen["scores"]) == 12
    assert chosen["settings"]["cost_scale"] == 0.01
    assert chosen["fingerprints"]["source"] == storage.fingerprint(ws.embedding("glyphs"))
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_k_above_the_number_of_classes_writes_nothing(fresh: Path) -> None:
    params = tiny_params()
    params["select"]["top_k"] = 13
    write_params(fresh, params)
    with pytest.raises(UserError, match=r"select\.top_k: got 13.*only 12 classes"):
        select.select(workspace(fresh), Cell("digits", "uot", 0))
    assert not (fresh / "selections").exists()


def test_too_many_shots(fresh: Path) -> None:
    params = tiny_params()
    params["subset"]["shots"] = 500
    write_params(fresh, params)
    with pytest.raises(
        UserError, match=r"subset\.shots: got 500, but class 0 has only \d+ training"
    ):
        select.select(workspace(fresh), Cell("digits", "uot", 0))


def test_evaluation_reads_the_test_part_and_counts_it_once(fresh: Path) -> None:
    for seed in (0, 1):
        run_train(fresh, seed=seed)
    ws = workspace(fresh)
    results = evaluate.evaluate(ws, "digits", "uot", progress=lambda items, label: items)
    for seed in ("0", "1"):
        assert results[seed]["images"] == 1000 == np.sum(results[seed]["confusion"])
        assert results[seed]["top1"] == pytest.approx(np.trace(results[seed]["confusion"]) / 10)
    images = readers.images(ws, "digits")
    for seed, said in storage.read_answers(ws.predictions("digits", "uot")).items():
        assert np.array_equal(said.rows, images.rows("test"))
        assert np.array_equal(said.labels, images.labels[said.rows])
        matrix = np.zeros((10, 10), int)
        np.add.at(matrix, (said.labels, said.predicted), 1)
        assert matrix.tolist() == results[str(seed)]["confusion"]
        assert said.data == storage.fingerprint(ws.data("digits"))


def test_the_report_shows_numbers_with_and_without(fresh: Path) -> None:
    plant(fresh, readers.images(workspace(fresh), "glyphs").rows("train")[:3], 0)
    found = find_overlap(fresh)["counts"]["target_images"]
    ws = workspace(fresh)
    for strategy in ("none", "uot"):
        for seed in (0, 1):
            run_train(fresh, strategy, seed)
        results = evaluate.evaluate(ws, "digits", strategy, progress=lambda items, label: items)
    overlap = readers.read_overlap(ws, "digits")["target"]
    assert found == len(overlap) >= 3
    for m in results.values():
        assert m["images"] == 1000 == m["clean"]["images"] + found
        hits = round(m["top1"] * 10), round(m["clean"]["top1"] * (1000 - found) / 100)
        assert 0 <= hits[0] - hits[1] <= found
    forecast.forecast(ws, "digits", progress=lambda items, label: items)
    compare.compare(ws)
    mean = np.mean([m["clean"]["top1"] for m in results.values()])
    for name in ("comparison.md", "index.html"):
        text = (ws.root / "reports" / name).read_text()
        assert f"{found} of 1000 test images are also in the source." in text
        assert f"/ {mean:.2f}." in text


def test_a_batch_that_processes_cannot_share_is_refused(fresh: Path) -> None:
    class Three:
        num_processes, process_index, device = 3, 0, "cpu"

    images = readers.images(workspace(fresh), "digits")
    context, rows = Context(Three()), images.rows("train")
    for batch in (8, 3):  # not divisible; one image for each, of which batch norm knows no variance
        sampling = Sampling("target", batch, 0, workspace(fresh).params.train.augment)
        with pytest.raises(UserError, match=f"target batch of {batch} cannot be shared by 3 proce"):
            assembly.stream(images, rows, images.labels, sampling, context)


def test_a_source_without_validation_images_is_refused(fresh: Path) -> None:
    ws, quiet = workspace(fresh), {"log": lambda *_: None, "progress": lambda items, label: items}
    images = readers.images(ws, "glyphs")
    images.splits[images.rows("val")] = "test"
    storage.write_images(ws.data("glyphs"), images)
    with pytest.raises(
        UserError, match=r"data/glyphs\.npz has no validation image: a folder needs"
    ):
        pretrain.pretrain(ws, Context(runtime.start(0, 1), **quiet))


@pytest.mark.parametrize("kept", [1, 3])
def test_a_source_smaller_than_its_batch_trains(fresh: Path, kept: int) -> None:
    """One image, or three of three classes at most: they come again and again."""
    params = tiny_params()
    params["select"] |= {"unit": "image", "top_k": kept}
    write_params(fresh, params)
    units.units(workspace(fresh))
    points = run_train(fresh)
    assert all(np.isfinite(n["loss/source"]) for _, n in points if "loss/source" in n)
    facts = storage.read_json(
        workspace(fresh).cell("models", Cell("digits", "uot", 0)) / "model.json"
    )
    assert len(facts["reused"]) <= kept


def test_runtime_seeds_torch() -> None:
    import torch

    draws = []
    for _ in range(2):
        runtime.start(3, 1)
        draws.append(torch.rand(2).tolist())
    assert draws[0] == draws[1]


def test_the_report_names_trainings_that_end_below_their_start(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "ERRORS", 1.0)  # the tiny network starts at 22 % alone
    params = tiny_params() | {"strategies": ["none"], "seeds": [0]}
    params["train"]["recipe"]["learning_rate"] = HUGE
    write_params(fresh, params)
    points = run_train(fresh, "none")
    ws, (start, *_, end) = workspace(fresh), [n["val/top1"] for _, n in points if "val/top1" in n]
    evaluate.evaluate(ws, "digits", "none", progress=lambda items, label: items)
    forecast.forecast(ws, "digits", progress=lambda items, label: items)
    compare.compare(ws)
    line = (
        f"digits: none, seed 0: validation top-1 ended at {end:.2f} %, below its start of "
        f"{start:.2f} % (100 images)."
    )
    for name in ("comparison.md", "index.html"):
        assert line in (fresh / "reports" / name).read_text()
