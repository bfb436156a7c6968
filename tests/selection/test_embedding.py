"""Features: however many processes make them, and however often they are killed, the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from support.child_processes import at_call, fork, killed, pair
from support.projects import tiny_params, workspace, write_params
from support.stages import run_train
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import Interrupted, UserError
from uotft.models import model_io
from uotft.models.inputs import to_input
from uotft.pipeline import (
    embed as embed_stage,
    readers,
    units,
    workspace as workspace_stage,
)
from uotft.runs import job
from uotft.selection import banks, features as pools
from uotft.training import runtime

IMAGES, SHARDS = 72, 5  # of the glyphs: four images a batch, four batches a shard


def change(root: Path, **embed: object) -> workspace_stage.Workspace:
    params = tiny_params()
    params["embed"] = {"batch_size": 4, **embed}
    write_params(root, params)
    return workspace(root)


@pytest.fixture
def ready(fresh: Path) -> Path:
    """A tiny workspace whose glyphs are to be embedded in five shards, the last one smaller."""
    shutil.rmtree(change(fresh).features("glyphs"))
    return fresh


def embed(root: Path, **more: object) -> None:
    quiet = {"progress": lambda batches, label: batches}
    embed_stage.embed(workspace(root), "glyphs", Context(runtime.start(0, 1), **quiet | more))


def made(root: Path) -> dict[str, bytes]:
    """The bytes of what embedding wrote, which is removed."""
    folder = workspace(root).features("glyphs")
    content = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    shutil.rmtree(folder)
    return content


def left(root: Path) -> Path:
    ws = workspace(root)
    return ws.unfinished(ws.features("glyphs"))


def there(root: Path) -> int:
    return len([*left(root).glob("shard-*.npz")])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(batch: int) -> Callable:
    def progress(batches: list[range], label: str) -> Iterator[range]:
        for number, rows in enumerate(batches):
            if number == batch:
                die()
            yield rows

    return progress


def test_each_row_is_the_image_of_its_number(ready: Path) -> None:
    embed(ready)
    ws = workspace(ready)
    pool, images = pools.read(ws.features("glyphs")), readers.images(ws, "glyphs")
    network, facts = model_io.read(ws.pretrained())
    assert pool["rows"].tolist() == images.rows("train").tolist()
    assert pool["labels"].tolist() == images.labels[pool["rows"]].tolist()
    assert str(pool["backbone"]) == facts["sha256"]
    pixels = torch.as_tensor(images.images[pool["rows"]])
    with torch.no_grad():
        expected = network.backbone(to_input(pixels, network.channels)).numpy()
    assert pool["features"].shape == (IMAGES, 8)
    assert pool["features"] == pytest.approx(expected, abs=1e-5)
    assert not pool["features"].flags.owndata, "mapped, not read"


def test_means_are_those_of_one_pass_over_all_features(ready: Path) -> None:
    embed(ready)
    pool = pools.read(workspace(ready).features("glyphs"))
    sums = np.zeros((12, 8))
    np.add.at(sums, pool["labels"], pool["features"])
    counts = np.bincount(pool["labels"])
    assert pool["counts"].tolist() == counts.tolist()
    assert np.array_equal(pool["features_means"], sums / counts[:, None]), "to the last bit"


def test_the_units_that_are_classes_read_no_features(ready: Path) -> None:
    embed(ready)
    ws = workspace(ready)
    units.units(ws)
    before = ws.embedding("glyphs").read_bytes()
    np.save(ws.features("glyphs") / "features.npy", np.zeros((IMAGES, 8), np.float32))
    units.units(ws)
    assert ws.embedding("glyphs").read_bytes() == before


def test_two_processes_make_the_bytes_of_one(ready: Path) -> None:
    embed(ready)
    alone = made(ready)
    assert not any([killed(pid) for pid in pair(lambda rank: embed(ready))])
    assert made(ready) == alone
    assert not left(ready).exists()


def test_processes_share_what_was_missing_before_any_of_them_began(ready: Path) -> None:
    embed(ready)
    alone = made(ready)

    def work(rank: int) -> None:
        look = pools.missing
        pools.missing = lambda *words: (time.sleep(rank), look(*words))[1]
        embed(ready)

    assert not any([killed(pid) for pid in pair(work)])
    assert made(ready) == alone


def test_a_pool_lacks_no_shard(tmp_path: Path) -> None:
    shards = pools.cut(9, 1)
    for rows in (shards[0], shards[2]):
        pools.keep(tmp_path, rows, {"features": np.ones((len(rows), 2), np.float32)}, "float32")
    made, labels = tmp_path / "made", np.zeros(9, int)
    with pytest.raises(UserError, match="lacks 1 of 3 shards of features"):
        pools.join(tmp_path, shards, made, labels, "float32", names=np.array(["a"]))
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"shard"}


def test_killed_at_any_batch_it_ends_in_the_same_bytes(ready: Path) -> None:
    embed(ready)
    whole = made(ready)
    for batch, shards in ((2, 0), (7, 1), (9, 3)):  # a batch is decoded ahead of the one before it
        assert killed(fork(lambda at=batch: embed(ready, progress=dies_at(at))))
        assert there(ready) == shards
    ran: list[range] = []

    def count(batches: list[range], label: str) -> list[range]:
        ran.extend(batches)
        return batches

    embed(ready, progress=count)
    assert ran == [range(i, i + 4) for i in range(48, IMAGES, 4)], "what is there is not done again"
    assert made(ready) == whole
    assert not left(ready).exists()


@pytest.mark.parametrize("goes_on", [1, 2])
def test_two_processes_are_killed_and_one_or_two_go_on(ready: Path, goes_on: int) -> None:
    embed(ready)
    whole = made(ready)
    assert all([killed(pid) for pid in pair(lambda rank: embed(ready, progress=dies_at(6)))])
    assert there(ready) == 2
    if goes_on == 2:
        assert not any([killed(pid) for pid in pair(lambda rank: embed(ready))])
    else:
        embed(ready)
    assert made(ready) == whole


@pytest.mark.parametrize("moment", ["fsync 2", "fsync 3", "fsync 7", "fsync 8", "rename 1"])
def test_killed_while_it_writes(ready: Path, moment: str) -> None:
    """fsync 1: what it belongs to; 2 to 6: the shards; 7 and 8: the features and their index."""
    embed(ready)
    whole = made(ready)
    name, number = moment.split()

    def work() -> None:
        setattr(os if name == "fsync" else Path, name, at_call(int(number), die))
        embed(ready)

    assert killed(fork(work))
    assert there(ready) == {"fsync 2": 0, "fsync 3": 1}.get(moment, SHARDS)
    assert not workspace(ready).features("glyphs").exists()
    embed(ready)
    assert made(ready) == whole


def test_asked_to_stop_it_keeps_whole_shards_and_goes_on(ready: Path) -> None:
    embed(ready)
    whole, asked = made(ready), []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 7

    with pytest.raises(Interrupted):
        embed(ready, stop=stop)
    assert len(asked) == 9, "the batch under way is the last"
    assert there(ready) == 1
    assert not workspace(ready).features("glyphs").exists()
    embed(ready)
    assert made(ready) == whole


def test_one_process_that_is_asked_stops_both(ready: Path) -> None:
    def work(rank: int) -> None:
        with pytest.raises(Interrupted):
            embed(ready, stop=lambda: rank == 1)

    assert not any([killed(pid) for pid in pair(work)])
    assert there(ready) == 3, "the other finishes its share"
    assert not workspace(ready).features("glyphs").exists()


@pytest.mark.parametrize("what", ["files.data/glyphs.npz", "files.pretrained"])
def test_shards_of_something_else_are_set_aside(
    ready: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert killed(fork(lambda: embed(ready, progress=dies_at(9))))
    ws = workspace(ready)
    if "data" in what:
        np.savez(ws.data("glyphs"), **storage.read_arrays(ws.data("glyphs")))
    else:
        facts = ws.pretrained() / "model.json"
        facts.write_text(facts.read_text() + "\n")
    embed(ready)
    said = capfd.readouterr().err
    assert f"has other {what}" in said
    assert ": set aside as glyphs-images.aside, and started anew" in said
    assert len([*left(ready).with_name("glyphs-images.aside").glob("shard-*")]) == 2


def test_shards_serve_either_type_of_the_features(
    ready: Path, capfd: pytest.CaptureFixture
) -> None:
    """They are float32, and rounded when they are joined."""
    assert killed(fork(lambda: embed(ready, progress=dies_at(9))))
    change(ready, dtype="float16")
    embed(ready)
    assert "resuming: 2 of 5 shards are done" in capfd.readouterr().err
    assert pools.read(workspace(ready).features("glyphs"))["features"].dtype == np.float16


def test_float16_is_half_as_large_and_serves_every_unit(ready: Path) -> None:
    embed(ready)
    single = np.array(pools.read(workspace(ready).features("glyphs"))["features"])
    ws = change(ready, dtype="float16")
    for dataset in ("glyphs", "digits"):
        quiet = {"progress": lambda batches, label: batches}
        embed_stage.embed(ws, dataset, Context(runtime.start(0, 1), **quiet))
    pool = pools.read(ws.features("glyphs"))
    assert pool["features"].dtype == np.float16
    assert np.array_equal(pool["features"], single.astype(np.float16))
    for unit in ("class", "cluster", "image"):
        params = tiny_params()
        params["select"]["unit"] = unit
        params["embed"]["dtype"] = "float16"
        write_params(ready, params)
        units.units(workspace(ready))
        bank = banks.read(ws.embedding("glyphs"))
        for row in range(len(bank.names)):
            mean = pool["features"][bank.members == row].astype(float).mean(0)
            assert bank.means[row] == pytest.approx(mean, rel=1e-12, abs=1e-12), "of what is kept"
    target, own = pools.read(ws.features("digits")), readers.target_bank(ws, "digits", 0)
    drawn = np.concatenate([np.flatnonzero(target["labels"] == c) for c in range(10)])
    assert own.means.dtype == np.float64
    assert np.abs(own.means).max() <= np.abs(target["features"][drawn]).max()
    assert not np.array_equal(own.means, own.means.astype(np.float16)), "not rounded once more"


def test_features_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    features = np.array([[1.0, -70000.0]], np.float32)
    message = r"embed\.dtype: got 'float16', whose largest value is 65504, but .*reach 70000"
    with pytest.raises(UserError, match=f"{message}: choose float32"):
        pools.keep(tmp_path, range(1), {"features": features}, "float16")
    assert not any(tmp_path.iterdir())
    pools.keep(tmp_path, range(1), {"features": features}, "float32")


def test_never_more_than_a_shard_is_in_memory(tmp_path: Path) -> None:
    n, size, batch = 20_000, 64, 100
    shards = pools.cut(n, batch)
    assert len(shards) == 50
    labels = np.arange(n) % 7
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        for rows in shards:
            features = rng.random((len(rows), size), np.float32)
            pools.keep(tmp_path / "left", rows, {"features": features}, "float32")
        made = tmp_path / "made"
        pools.join(tmp_path / "left", shards, made, labels, "float32", names=np.array([*"abcdefg"]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    everything = n * size * 4
    assert (tmp_path / "made/features.npy").stat().st_size == everything + 128
    assert peak < everything / 4


def test_a_class_without_images_has_a_mean_of_zero() -> None:
    features = np.array([[1.0, 2], [3, 4], [10, 20]], np.float32)
    means, counts = pools.class_means([features[:1], features[1:]], np.array([2, 2, 0]), 4)
    assert means.tolist() == [[10, 20], [0, 0], [2, 3], [0, 0]]
    assert counts.tolist() == [1, 0, 2, 0]


def test_an_evaluation_that_is_asked_to_stop_writes_nothing(fresh: Path) -> None:
    """SIGTERM comes after the first of two seeds."""
    for seed in (0, 1):
        run_train(fresh, seed=seed)
    ws = workspace(fresh)
    storage.write_json(ws.metrics("digits", "uot"), "before")

    def asked(seeds: list[int], label: str) -> Iterator[int]:
        yield seeds[0]
        os.kill(os.getpid(), signal.SIGTERM)
        yield seeds[1]

    assert killed(fork(lambda: job.evaluate(ws, "digits", "uot", asked)))
    assert storage.read_json(ws.metrics("digits", "uot")) == "before"
    assert len([*ws.metrics("digits", "uot").parent.iterdir()]) == 1
