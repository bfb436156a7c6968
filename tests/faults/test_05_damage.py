"""Fault 5: a byte is flipped, or the end cut off, in every file of checkpoints and features, and
each bit of an npz.

Expected: the damage is found before anything is used; a damaged checkpoint falls back to the one
before, damaged shards are made anew, damaged features are refused.

What finds it: the SHA-256 of a checkpoint, a shard and the finished features; the one that every
JSON file has of its own content; the CRC-32 of the arrays in an npz.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.child_processes import fork, killed, pair
from support.projects import tiny_params, workspace, write_params
from support.tiny_training import change, dies_at, left, made, train
from uotft.core import storage
from uotft.core.context import Context
from uotft.core.errors import UserError
from uotft.pipeline import embed as embed_stage, freshness, readers, units
from uotft.selection import features
from uotft.training import checkpoints, runtime

RNG = np.random.default_rng()


def damage(path: Path, *, cut: bool = False) -> bytes:
    """Flip some bits of one byte, or cut the end off; returns what was there."""
    content = path.read_bytes()
    place = int(RNG.integers(len(content)))
    flipped = bytes([content[place] ^ int(RNG.integers(1, 256))])
    path.write_bytes(content[:place] if cut else content[:place] + flipped + content[place + 1 :])
    return content


def one_of(files: list[Path]) -> Path:
    """A file: half of the time any, else the more likely the larger it is."""
    sizes = np.array([path.stat().st_size for path in files], float)
    return files[RNG.choice(len(files), p=sizes / sizes.sum() / 2 + 0.5 / len(files))]


def embed(root: Path, **more: object) -> None:
    quiet = {"progress": lambda batches, label: batches}
    embed_stage.embed(workspace(root), "glyphs", Context(runtime.start(0, 1), **quiet | more))


def shards_of(root: Path) -> tuple[Path, list[range]]:
    """An embedding that was killed before its five shards became features."""
    params = tiny_params()
    params["embed"] = {"batch_size": 4}
    write_params(root, params)
    ws = workspace(root)
    shutil.rmtree(ws.features("glyphs"))
    whole = features.join
    features.join = lambda *words, **more: 1 / 0
    with pytest.raises(ZeroDivisionError):
        embed(root)
    features.join = whole
    return ws.unfinished(ws.features("glyphs")), features.cut(72, 4)


def test_every_flip_in_a_checkpoint_is_known(
    trainable: Path, trials: Callable, measured: Callable
) -> None:
    fingerprint = {"settings": 1}
    assert all([
        killed(pid) for pid in pair(lambda rank: train(trainable, progress=dies_at(13)))
    ])  # fmt: skip
    folder = left(trainable)
    checkpoints.remember_run(folder, "a-run", fingerprint)
    before, last = folder / "step-000000005", folder / "step-000000010"
    kinds: Counter[str] = Counter()
    for trial in range(trials(40, 500)):
        files = [*last.iterdir(), folder / checkpoints.RUN]
        assert len(files) == 4, "of two processes, the state, and the run"
        path, said = one_of(files), []
        content = damage(path, cut=trial % 10 == 9)
        found = checkpoints.newest(folder, said.append)
        assert found is not None
        if path.name == checkpoints.RUN:
            assert checkpoints.run_id(folder) == ""
            assert found[0] == last
        else:
            assert found[0] == before
            assert [f"{last}: {path.name} damaged or missing" in line for line in said] == [True]
        path.write_bytes(content)
        kinds["cut" if trial % 10 == 9 else "flip"] += 1
    found = checkpoints.newest(folder, pytest.fail)
    assert (found[0], checkpoints.run_id(folder)) == (last, "a-run")
    measured(f"{kinds['flip']} flips and {kinds['cut']} cuts in checkpoints: all known, "
             "the one before is used")  # fmt: skip


def test_every_flip_in_features_is_known(fresh: Path, trials: Callable, measured: Callable) -> None:
    """In shards, in what they belong to, and in the finished features and their index."""
    folder, shards = shards_of(fresh)
    ws, kinds = workspace(fresh), Counter()
    for trial in range(trials(20, 250)):
        path = one_of([*folder.iterdir()])
        content = damage(path, cut=trial % 10 == 9)
        if path.name == freshness.FINGERPRINT:
            with pytest.raises(UserError, match=r"belongs\.json"):
                storage.read_sealed(path)
        else:
            missing = features.missing(folder, shards)
            assert [f"-{rows.start:012}-" in path.name for rows in missing] == [True]
        path.write_bytes(content)
        kinds["shards"] += 1
    assert not features.missing(folder, shards)
    embed(fresh)
    pool = ws.features("glyphs")
    good = {name: np.array(array) for name, array in features.read(pool).items()}
    for trial in range(trials(20, 250)):
        path = one_of([*pool.iterdir()])
        content = damage(path, cut=trial % 10 == 9)
        try:
            read = features.read(pool)
        except UserError as error:
            assert path.name in str(error)  # noqa: PT017
            kinds["features" if path.suffix == ".npy" else "index"] += 1
        else:  # dates and the like in the zip, which nobody reads
            assert path.name == features.INDEX
            assert read.keys() == good.keys()
            for name, array in read.items():
                assert array.dtype == good[name].dtype
                assert np.array_equal(array, good[name])
            kinds["dates"] += 1
        path.write_bytes(content)
    assert kinds["features"]
    measured(
        f"{kinds['shards']} of {kinds['shards']} in shards and {kinds['features']} of "
        f"{kinds['features']} in features.npy known; of {kinds['index'] + kinds['dates']} in "
        f"index.npz {kinds['index']} refused, {kinds['dates']} in bytes of the zip that say "
        "nothing: the same arrays"
    )


@pytest.mark.parametrize("saver", [np.savez, np.savez_compressed])
def test_no_bit_of_an_npz_changes_an_array_unnoticed(
    tmp_path: Path, saver: Callable, trials: Callable, measured: Callable
) -> None:
    """Heads that hide a part of an array, comments that swallow the arrays after them."""
    arrays = {"features": RNG.random((96, 2)).astype("f4"), "names": np.array(["a", "b"])}
    path = tmp_path / "a.npz"
    saver(path, **arrays, data=np.array("sha"))
    content, good = path.read_bytes(), storage.read_arrays(path)
    bits = 8 * len(content)
    chosen = RNG.permutation(bits)[: trials(500, bits)]
    counts: Counter[str] = Counter()
    for bit in chosen.tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read = storage.read_arrays(path)
        except UserError:
            counts["refused"] += 1
            continue
        counts["same"] += 1
        assert read.keys() == good.keys(), bit
        assert all(np.array_equal(read[k], good[k]) for k in good), bit
        assert all(read[k].dtype == good[k].dtype for k in good), bit
    measured(f"{len(chosen)} bits of an npz of {len(content)} bytes: {counts['refused']} refused, "
             f"{counts['same']} leave every array as it was, 0 wrong")  # fmt: skip


def test_what_is_still_a_readable_file_is_known_too(trainable: Path, tmp_path: Path) -> None:
    """A digit of a history; the head of an array that hides its end; an entry that hides others."""
    assert killed(fork(lambda: train(trainable, progress=dies_at(7))))
    state = left(trainable) / "step-000000005" / checkpoints.STATE
    said, content = [], state.read_bytes()
    loss = content.index(b'"loss/target": ') + len(b'"loss/target": ')
    other = b"7" if content[loss : loss + 1] != b"7" else b"8"
    state.write_bytes(content[:loss] + other + content[loss + 1 :])
    storage.read_json(state)
    assert checkpoints.newest(left(trainable), said.append) is None
    assert "state.json damaged or missing" in said[0]

    path = tmp_path / "a.npz"
    np.savez(path, features=np.ones((90000, 2), np.float32), data=np.array("sha"))
    content = path.read_bytes()
    assert content.count(b"(90000, 2)") == 1
    path.write_bytes(content.replace(b"(90000, 2)", b"(10000, 2)"))  # one bit
    with pytest.raises(UserError, match=r"features\.npy holds more than its head says"):
        storage.read_arrays(path)
    hidden = bytearray(content)
    hidden[content.index(b"PK\1\2") + 33] ^= 1  # 256 bytes of comment, says the first entry
    path.write_bytes(hidden)
    with pytest.raises(UserError, match="an entry with a comment"):
        storage.read_arrays(path)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    trainable: Path, damaged: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Or, if that is damaged too, to the start; and ends in the same bytes."""
    train(trainable)
    whole, ran = made(trainable), []
    assert killed(fork(lambda: train(trainable, progress=dies_at(13))))
    slots = sorted(left(trainable).glob("step-*"))
    assert [slot.name[-2:] for slot in slots] == ["05", "10"]
    for slot in slots[-damaged:]:
        damage(slot / "rank-0.safetensors")
    capfd.readouterr()

    def count(items: range, label: str) -> range:
        ran.extend(items)
        there = [p.name[-2:] for p in left(trainable).glob("step-*")]
        assert there == ([] if damaged == 2 else ["05"]), "the damaged one is gone"
        return items

    train(trainable, progress=count)
    said = capfd.readouterr().err
    lines = [f"{slot}: rank-0.safetensors damaged or missing" for slot in slots[-damaged:]]
    assert said.count("damaged or missing (SHA-256): checkpoint not used") == damaged
    assert all(line in said for line in lines)
    assert ran[0] == {1: 5, 2: 0}[damaged]
    assert made(trainable) == whole


def test_two_processes_fall_back_together(trainable: Path) -> None:
    """The file of one of them is damaged, and the state of the other checkpoint."""
    change(trainable, checkpoint_every=3)
    assert not any([killed(pid) for pid in pair(lambda rank: train(trainable))])
    whole = made(trainable)
    for name in ("rank-1.safetensors", "state.json"):
        assert all([
            killed(pid) for pid in pair(lambda rank: train(trainable, progress=dies_at(13)))
        ])  # fmt: skip
        damage(left(trainable) / "step-000000012" / name)
        assert checkpoints.newest(left(trainable))[1]["step"] == 9
    assert not any([killed(pid) for pid in pair(lambda rank: train(trainable))])
    assert made(trainable) == whole


def test_a_damaged_run_does_not_stop_the_training(
    trainable: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The checkpoints themselves say what they belong to; without any, it is set aside."""
    train(trainable)
    whole = made(trainable)
    checkpoints.remember_run(left(trainable), "a-run", {"of": "something else"})
    damage(left(trainable) / checkpoints.RUN)
    assert killed(fork(lambda: train(trainable, progress=dies_at(7))))
    assert "has a damaged run.json: set aside as 0.aside" in capfd.readouterr().err
    checkpoints.remember_run(left(trainable), "a-run", {"of": "something else"})
    damage(left(trainable) / checkpoints.RUN, cut=True)
    ran: list[int] = []
    train(trainable, progress=lambda items, label: (ran.append(i) or i for i in items))
    assert ran[0] == 5
    assert made(trainable) == whole


@pytest.mark.parametrize("how", ["a damaged shard", "damaged", "removed"])
def test_damaged_shards_are_made_anew(
    fresh: Path, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """And all of them, where nothing says any more what they belong to."""
    folder, shards = shards_of(fresh)
    ran: list[range] = []
    if how == "a damaged shard":
        damage(sorted(folder.glob("shard-*"))[1])
    elif how == "damaged":
        damage(folder / freshness.FINGERPRINT)
    else:
        (folder / freshness.FINGERPRINT).unlink()
    embed(fresh, progress=lambda batches, label: (ran.extend(batches), batches)[1])
    assert len(ran) == (4 if how == "a damaged shard" else 18), "batches of four"
    assert ("has a damaged belongs.json" in capfd.readouterr().err) == (how == "damaged")
    ws = workspace(fresh)
    again = {p.name: p.read_bytes() for p in ws.features("glyphs").iterdir()}
    shutil.rmtree(ws.features("glyphs"))
    embed(fresh)
    assert {p.name: p.read_bytes() for p in ws.features("glyphs").iterdir()} == again


@pytest.mark.parametrize("unit", ["class", "cluster", "image"])
def test_damaged_features_are_refused_by_all_who_read_them(fresh: Path, unit: str) -> None:
    params = tiny_params()
    params["select"]["unit"] = unit
    write_params(fresh, params)
    ws = workspace(fresh)
    for dataset in ("glyphs", "digits"):
        damage(ws.features(dataset) / "features.npy")
    message = r"features\.npy is damaged: .*; delete .*-images and run dvc repro"
    if unit == "class":  # needs the means alone, which are in the index
        units.units(ws)
    else:
        with pytest.raises(UserError, match=message):
            units.units(ws)
    with pytest.raises(UserError, match=message):
        readers.target_bank(ws, "digits", 0)
