"""Shards that fit no disk: the bank's digits, the room, kills, several processes, what is kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.commands import call, users_environment
from support.dataset_archives import coloured, tar
from support.download_server import Server, serving
from support.foreign_weights import torchvision_file
from support.watched_commands import wait
from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import silently
from uotft.data import shard_stream
from uotft.pipeline import banks as travelling, shard_banks, shard_selection
from uotft.pipeline.shard_banks import Reading, Sums
from uotft.selection import banks

SHARDS, EACH, CLASSES = 5, 12, 11
NAMES = [f"web-{number:02}.tar" for number in range(SHARDS)]
RNG = np.random.default_rng(3)
#: {shard: [(class, JPEG)]}; the last shard alone has the classes 9 and 10
PICTURES = {
    name: [
        (9 + i % 2 if name == NAMES[-1] else (i + shard) % 9, coloured(colour, i))
        for i, colour in enumerate(map(tuple, RNG.integers(0, 255, (EACH, 3))))
    ]
    for shard, name in enumerate(NAMES)
}  # fmt: skip


def packed(pictures: list[tuple[int, bytes]], shard: str) -> bytes:
    members: dict[str, bytes] = {}
    for i, (label, content) in enumerate(pictures):
        members |= {f"{shard}-{i}.jpg": content, f"{shard}-{i}.cls": b"%d" % label}
    return tar(members)


CONTENTS = {name: packed(pictures, name[:-4]) for name, pictures in PICTURES.items()}
LARGEST = max(map(len, CONTENTS.values()))
SIZE = 32
READING = Reading(size=SIZE)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(dict(CONTENTS)) as made:
        yield made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torchvision_file("resnet18", tmp_path_factory.mktemp("weights"))[1]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards on this machine's disk."""
    folder = tmp_path_factory.mktemp("shards")
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def bank(on_disk: Path, weights: Path) -> Path:
    """The bank of the shards on disk."""
    output = on_disk / "bank.safetensors"
    make(f"{on_disk}/web-{{00..04}}.tar", weights, output)
    return output


def make(places: str, weights: Path, output: Path, room: int = 2**30, **options: object) -> str:
    every = shard_stream.listed(places, shard_banks.work_folder(output), room)
    reading = options.pop("reading", READING)
    return shard_banks.make(every, f"resnet18:{weights}", reading, output, silently, **options)


def addresses(server: Server, manner: str = "good") -> str:
    return f"{server.address}/{manner}/web-{{00..04}}.tar"


def test_the_means_are_those_of_the_same_pictures_in_folders(
    bank: Path, on_disk: Path, weights: Path, tmp_path: Path
) -> None:
    """Within 1e-6: sums of other batches of images, added in another order."""
    for name, pictures in PICTURES.items():
        for i, (label, content) in enumerate(pictures):
            path = tmp_path / "photos" / f"{label:02}" / f"{name[:-4]}-{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    backbone = f"resnet18:{weights}"
    travelling.make(str(tmp_path / "photos"), backbone, SIZE, tmp_path / "p.npz", silently)
    found, folders = banks.read(bank), banks.read(tmp_path / "p.npz")
    assert [int(name) for name in folders.names] == [int(name) for name in found.names]
    assert list(found.names) == [str(i) for i in range(CLASSES)], "numbers, in their order"
    assert found.counts.tolist() == folders.counts.tolist()
    assert found.means == pytest.approx(folders.means, rel=1e-5, abs=1e-6)
    assert found.weights == folders.weights != ""
    assert "class means of 60 images of 5 shards at 32 pixels, by resnet18 (" in found.origin
    assert {p.name for p in on_disk.glob("*.tar")} == {*NAMES}, "what was on disk stays"


def bytes_of(path: Path) -> int:
    with suppress(FileNotFoundError):  # renamed or dropped in between
        return path.stat().st_size
    return 0


def test_from_addresses_it_has_the_same_bytes_and_no_shard_stays(
    server: Server, bank: Path, weights: Path, tmp_path: Path
) -> None:
    """With room for two shards, never more than two are there."""
    output, most = tmp_path / "web.safetensors", []
    work = shard_banks.work_folder(output)

    def look(name: str, asked: str) -> None:
        there = [p for p in work.iterdir() if p.name.endswith((".tar", ".part"))]
        most.append(sum(map(bytes_of, there)))

    server.before = look
    line = make(addresses(server), weights, output, room=2 * LARGEST)
    assert line.startswith(f"{output}: class means of 60 images of 5 shards")
    assert output.read_bytes() == bank.read_bytes()
    assert 0 < max(most) <= 2 * LARGEST
    assert sorted(p.name for p in work.iterdir()) == ["made_of.json", "total-00000005.npz"]
    server.asked.clear()
    make(addresses(server), weights, output, room=2 * LARGEST)
    assert not server.asked, "all is done"


def test_further_shards_may_follow(
    server: Server, bank: Path, weights: Path, tmp_path: Path
) -> None:
    output = tmp_path / "web.safetensors"
    make(f"{server.address}/good/web-{{00..02}}.tar", weights, output)
    assert banks.read(output).counts.sum() == 3 * EACH
    server.asked.clear()
    make(addresses(server), weights, output)
    assert {Path(path).name for path, _ in server.asked} == {*NAMES[3:]}
    assert banks.read(output).means.tolist() == banks.read(bank).means.tolist()


def command(server: Server, weights: Path, output: Path, room: int) -> list[str]:
    words = ["uotft", "bank", "make", "--shards", addresses(server), "--size", str(SIZE)]
    words += ["--backbone", f"resnet18:{weights}", "--output", output.name]
    return [*words, "--features", "--room", str(room / 2**30)]


def started(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    env = users_environment() | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=folder, env=env, stderr=subprocess.PIPE)


def ends(process: subprocess.Popen[bytes]) -> None:
    said = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 0, said


def died(process: subprocess.Popen[bytes]) -> None:
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_kill_costs_the_shard_under_way_alone(
    server: Server, bank: Path, weights: Path, tmp_path: Path
) -> None:
    """SIGKILL as the third shard is asked for, and again when a fetched one is not embedded yet."""
    words = command(server, weights, tmp_path / "web.safetensors", LARGEST)
    running: list[subprocess.Popen[bytes]] = []
    work = tmp_path / "web.work"

    def kill(name: str, asked: str) -> None:
        if name == NAMES[2] and (work / "total-00000002.npz").exists():
            running[-1].kill()

    server.before = kill
    running.append(started(words, tmp_path))
    died(running[0])

    def kill_later(name: str, asked: str) -> None:
        """The process waits for the size of shard 4, and so it embeds nothing."""
        if name == NAMES[4]:
            wait((work / NAMES[3]).exists)
            running[-1].kill()

    server.before = kill_later
    server.asked.clear()
    running.append(started(words, tmp_path))
    died(running[1])
    server.before = lambda name, asked: None
    ends(started(words, tmp_path))
    assert (tmp_path / "web.safetensors").read_bytes() == bank.read_bytes()
    fetched = {Path(path).name for path, _ in server.asked}
    assert fetched == {*NAMES[2:]}, "neither of the first two is fetched again"
    assert np.load(work / "features.npy").shape == (SHARDS * EACH, 512)
    assert not [*work.glob("*.tar"), *work.glob(".*.part"), *work.glob("part-*")]


@pytest.mark.slow
def test_two_processes_share_the_shards(
    server: Server, bank: Path, weights: Path, tmp_path: Path
) -> None:
    server.before = lambda name, asked: time.sleep(0.5)  # or the first would have all
    words = command(server, weights, tmp_path / "web.safetensors", LARGEST)
    both = [started(words, tmp_path) for _ in range(2)]
    for process in both:
        ends(process)
    assert (tmp_path / "web.safetensors").read_bytes() == bank.read_bytes()
    # one asks for the size of each, and then for its bytes; the other may have asked for a size
    asked = Counter(Path(path).name for path, _ in server.asked)
    assert all(2 <= asked[name] <= 3 for name in NAMES), "each is fetched once"


def test_the_size_of_a_shard_is_asked_for_once(server: Server, tmp_path: Path) -> None:
    """Two wait for room: another process holds the lock of one, and lets it go."""
    every = shard_stream.listed(addresses(server), tmp_path, 2**30)
    ahead = shard_stream._Ahead(every, lambda number: False, lambda archive: Future())
    assert [ahead._archive(number).name for number in (3, 2, 3)] == [NAMES[n] for n in (3, 2, 3)]
    assert len(server.asked) == 2


def test_another_process_is_waited_for(on_disk: Path, tmp_path: Path) -> None:
    """Its shard is left to it, and taken once it is done or its process has died."""
    every = shard_stream.listed(f"{on_disk}/web-{{00..04}}.tar", tmp_path / "work", 2**30)
    done: set[int] = set()
    first, second = (shard_stream.each(every, done.__contains__) for _ in range(2))
    assert next(first) == (0, on_disk / NAMES[0])
    # five are claimed at a time, so nothing is left for the second
    first.close()
    assert [number for number, _ in marked(second, done)] == [0, 1, 2, 3, 4]


def marked(each: Iterator[tuple[int, Path]], done: set[int]) -> Iterator[tuple[int, Path]]:
    for number, path in each:
        done.add(number)
        yield number, path


def test_features_are_those_of_the_images_in_order_and_can_be_clustered(
    server: Server, weights: Path, tmp_path: Path
) -> None:
    output = tmp_path / "web.safetensors"
    make(addresses(server), weights, output, keep_features=True)
    features = np.load(tmp_path / "web.work" / "features.npy", mmap_mode="r")
    assert (features.shape, features.dtype) == ((SHARDS * EACH, 512), np.float16)
    labels = np.array([label for name in NAMES for label, _ in PICTURES[name]])
    means = np.stack([features[labels == c].astype(float).mean(0) for c in range(CLASSES)])
    assert banks.read(output).means == pytest.approx(means, rel=2e-3, abs=2e-3)
    words = ["--features", "web.work/features.npy", "--output", "clusters.npz", "--clusters", "4"]
    done = call("uotft", "units", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert banks.read(tmp_path / "clusters.npz").counts.sum() == SHARDS * EACH


def test_what_a_killed_process_added_to_the_features_is_not_counted_twice(tmp_path: Path) -> None:
    """It dies after the features are written and before the total says so."""
    sums = Sums(tmp_path / "work", ("a", "b"), {})
    rows = np.arange(6, dtype=np.float16).reshape(3, 2)

    def part(features: np.ndarray) -> dict[str, np.ndarray]:
        one = {"names": np.array(["x"]), "counts": np.array([len(features)])}
        return {**one, "sums": np.ones((1, 2)), "skipped": np.array(0), "features": features}

    sums.keep(0, part(rows))
    shard_banks._append(tmp_path / "work" / "features.npy", 3, rows + 10)
    shard_banks._append(tmp_path / "work" / "features.npy", 6, rows + 10)
    sums.keep(1, part(rows[:1] + 100))
    found = np.load(tmp_path / "work" / "features.npy")
    assert found.tolist() == [*rows.tolist(), [100, 101]]
    assert (tmp_path / "work" / "features.npy").stat().st_size == 128 + found.nbytes
    assert sums.read()["sums"].tolist() == [[2, 2]]


def one_picture(number: int) -> dict[str, np.ndarray]:
    """The sums of a shard with one picture."""
    one = {"names": np.array(["x"]), "counts": np.array([1]), "skipped": np.array(0)}
    return {**one, "sums": np.array([[10.0**number]])}


def test_a_broken_shard_can_be_left_out_and_none_is_taken_for_another(tmp_path: Path) -> None:
    """Those after it were kept by another process, and have other numbers now."""
    places = tuple("abcd")
    first = Sums(tmp_path / "work", places, {})
    for number in (1, 2, 3):
        first.keep(number, one_picture(number))
    sums = Sums(tmp_path / "work", places[1:3], {})
    assert [sums.is_done(number) for number in range(2)] == [True, True]
    sums.add()
    assert sums.read()["sums"].tolist() == [[110]], "b and c: not d, which is not in the list"
    other = Sums(tmp_path / "work", ("b", "c", "e"), {})
    assert not other.is_done(2), "what is kept is of d"


def test_processes_with_other_lists_do_not_add_to_the_same_sums(tmp_path: Path) -> None:
    first, second = (Sums(tmp_path / "work", tuple(places), {}) for places in ("abc", "bc"))
    second.keep(0, one_picture(1))
    with pytest.raises(UserError, match=r"holds the sums of 1 other shards"):
        first.keep(1, one_picture(1))
    with pytest.raises(UserError, match=r"holds the sums of 1 other shards"):
        first.read()
    assert second.read()["sums"].tolist() == [[10]]


def test_pictures_that_cannot_be_read_stop_the_work_or_are_counted(
    weights: Path, tmp_path: Path
) -> None:
    pictures = {name: [*PICTURES[name]] for name in NAMES[:2]}
    pictures[NAMES[1]][4] = (pictures[NAMES[1]][4][0], b"words")
    with serving({n: packed(p, n[:-4]) for n, p in pictures.items()}) as server:
        places = f"{server.address}/good/web-{{00..01}}.tar"
        with pytest.raises(UserError, match=r"1 of 12 pictures cannot be read; --unreadable skip"):
            make(places, weights, tmp_path / "a.npz")
        line = make(places, weights, tmp_path / "b.npz", reading=replace(READING, skip=True))
        assert line.endswith(", 1 picture could not be read")
    left = [label for name in NAMES[:2] for label, content in pictures[name] if content != b"words"]
    found = banks.read(tmp_path / "b.npz")
    assert found.counts.tolist() == np.bincount(left)[np.bincount(left) > 0].tolist()


def test_what_cannot_be_made_is_refused(server: Server, weights: Path, tmp_path: Path) -> None:
    output = tmp_path / "web.npz"
    with pytest.raises(UserError, match=r"--room: got .*, but web-00\.tar alone has"):
        make(addresses(server), weights, output, room=100)
    with pytest.raises(UserError, match=r"web-00\.tar could not be downloaded"):
        make(addresses(server, "gone"), weights, output)
    with pytest.raises(UserError, match=r"--shards: .*none\.tar: no such file"):
        make(str(tmp_path / "none.tar"), weights, output)
    with pytest.raises(UserError, match=r"is not the http\(s\) address of a file NAME\.tar"):
        make("https://example.org/a.zip", weights, output)
    with pytest.raises(UserError, match=r"two shards have one file name"):
        make("https://example.org/{0..1}/a.tar", weights, output)
    make(f"{server.address}/good/web-{{00..01}}.tar", weights, output)
    with pytest.raises(UserError, match=r"web\.work holds the sums of other settings or weights"):
        make(addresses(server), weights, output, reading=Reading(size=40))
    with pytest.raises(UserError, match=r"holds the sums of 2 other shards"):
        make(f"{server.address}/good/web-{{01..02}}.tar", weights, output)


def test_a_shard_with_other_bytes_than_its_checksum_is_refused(
    server: Server, tmp_path: Path
) -> None:
    sums = "".join(f"{hashlib.sha256(c).hexdigest()}  {n}\n" for n, c in CONTENTS.items())
    (tmp_path / "sums").write_text(sums)
    for manner, wanted in (("good", None), ("lying", "its checksum is"), ("other", "its checksum")):
        every = shard_stream.listed(
            addresses(server, manner), tmp_path / manner, 2**30, str(tmp_path / "sums")
        )
        done: set[int] = set()
        if wanted is None:
            each = marked(shard_stream.each(every, done.__contains__), done)
            assert [number for number, _ in each] == [*range(SHARDS)]
        else:
            with pytest.raises(UserError, match=wanted):
                next(shard_stream.each(every, done.__contains__))
    (tmp_path / "sums").write_text(sums.splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"no checksum of web-01\.tar"):
        shard_stream.listed(addresses(server), tmp_path, 2**30, str(tmp_path / "sums"))


def test_the_kept_classes_alone_stay_as_a_data_set(server: Server, tmp_path: Path) -> None:
    """Those of two classes of many shards, and no file of a shard without any."""
    chosen = {"classes": [{"name": "class 3"}, {"name": "class 7"}]}
    (tmp_path / "selection.json").write_text(json.dumps(chosen))
    (tmp_path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    output, names = tmp_path / "kept", str(tmp_path / "classes.txt")
    every = shard_stream.listed(addresses(server), output / ".work", 2 * LARGEST)
    lines = shard_selection.keep(
        every, tmp_path / "selection.json", READING, output, silently, names=names
    )
    wanted = [content for n in NAMES for label, content in PICTURES[n] if label in (3, 7)]
    assert lines[0] == f"{output}: {len(wanted)} images of 2 classes, from 5 shards"
    assert sorted(p.name for p in output.iterdir()) == [".work", *NAMES[:-1]]
    section = storage.from_yaml(re.sub("^as a data set: ", "", lines[1]))
    view = {"stored": 16, "size": 16, "val": 0.0}
    module, settings = config.dataset_section({**section, **view}, "kept")
    images = module.load(settings, silently)
    assert images.names == ("class 3", "class 7")
    assert sorted(images.files.content(i) for i in range(len(images.labels))) == sorted(wanted)
    server.asked.clear()
    shard_selection.keep(every, tmp_path / "selection.json", READING, output, silently, names=names)
    assert not server.asked, "all is done"
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"--selection: .*other\.json is not a selection\.json"):
        shard_selection.keep(every, tmp_path / "other.json", READING, output, silently)
    chosen["classes"].pop()
    (tmp_path / "selection.json").write_text(json.dumps(chosen))
    with pytest.raises(UserError, match="is of another selection"):
        shard_selection.keep(
            every, tmp_path / "selection.json", READING, output, silently, names=names
        )


def test_other_class_names_do_not_count_as_done(on_disk: Path, tmp_path: Path) -> None:
    """The file was forgotten, or a wrong one given: no shard is taken as done with it."""
    chosen = tmp_path / "selection.json"
    chosen.write_text(json.dumps({"classes": [{"name": "class 3"}]}))
    for name, shift in (("right", 0), ("wrong", 1), ("longer", 0)):
        lines = [f"class {(i + shift) % CLASSES}\n" for i in range(CLASSES)]
        (tmp_path / name).write_text("".join(lines) + "another\n" * (name == "longer"))

    def keep(names: str, output: str) -> str:
        every = shard_stream.listed(f"{on_disk}/web-*.tar", tmp_path / output / ".work", 2**30)
        names = names and str(tmp_path / names)
        return shard_selection.keep(
            every, chosen, READING, tmp_path / output, silently, names=names
        )[0]

    with pytest.raises(UserError, match="no picture of the classes of"):
        keep("", "forgotten")
    for name, output in (("wrong", "mistaken"), ("right", "kept")):
        assert "images of 1 class, from 5 shards" in keep(name, output)
    assert keep("longer", "kept") == keep("right", "kept"), "the class has the same line"
    for output in ("forgotten", "mistaken"):
        with pytest.raises(UserError, match=f"{output} is of another selection, or other"):
            keep("right", output)
    with pytest.raises(UserError, match=r"--names: .*none: .*No such file"):
        keep("none", "unread")


def test_the_commands(
    server: Server, on_disk: Path, bank: Path, weights: Path, tmp_path: Path
) -> None:
    """From addresses to a data set: bank, selection, kept pictures."""
    words = [
        "--backbone",
        f"resnet18:{weights}",
        "--size",
        str(SIZE),
        "--output",
        "web.safetensors",
    ]
    done = call("uotft", "bank", "make", "--shards", addresses(server), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "web.safetensors").read_bytes() == bank.read_bytes()
    os.link(bank, tmp_path / "target.safetensors")
    words = ["--source-bank", "web.safetensors", "--target-bank", "target.safetensors"]
    done = call("uotft", "select", *words, "--output", "chosen", "--top-k", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [found] = [p for p in (tmp_path / "chosen", tmp_path / "chosen/selection.json") if p.is_file()]
    words = ["--shards", addresses(server), "--selection", str(found), "--output", "kept"]
    done = call("uotft", "data", "keep", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "images of 2 classes, from 5 shards" in done.stdout


def test_tars_are_not_replaced_by_what_is_kept_of_them(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(CONTENTS[name])
    (tmp_path / "chosen.json").write_text(json.dumps({"classes": [{"name": "3"}]}))
    (tmp_path / "link").symlink_to(tmp_path)
    for output in (tmp_path, tmp_path / "link"):
        every = shard_stream.listed(f"{tmp_path}/web-*.tar", output / ".work", 2**30)
        with pytest.raises(UserError, match=r"would replace .*web-00\.tar, which is read"):
            shard_selection.keep(every, tmp_path / "chosen.json", READING, output, silently)
    assert all((tmp_path / name).read_bytes() == CONTENTS[name] for name in NAMES)
