"""`uotft train --dataset dogs` where something goes wrong; the same command then finishes.

What is refused before anything is made answers in children of this process. The rest are real
processes in one folder: one project goes through every interruption, and later tests go on in it.
"""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml

from support import dataset_archives
from support.commands import answer, call, users_environment
from support.from_a_name import (
    ARCHIVE,
    FIRST,
    LISTS,
    TAR,
    WEIGHTS,
    Done,
    World,
    accept,
    mirror,
    random_weights,
    train,
)
from support.patched_modules import Source, hold_here
from support.projects import runs
from support.watched_commands import inside, mounted, ranks, wait
from uotft.core import storage
from uotft.data import downloads, wordnet
from uotft.data.class_downloads import CLASS_URL
from uotft.pipeline.bank_weights import classifier_rows
from uotft.selection import banks

HEADER = 512  # bytes of a tar's header
INDEXED = 120  # headers that are asked for before the kill
BUDGET = 5000  # bytes of a class before the cut
STEPS = 30  # of a training, enough to be stopped in the middle
#: The plan does not measure how fast this machine is.
UNMEASURED = {"uotft.runs.plan": {"_times": Source("lambda *_: ({}, '')")}}


def closed_port() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def length(asked: str) -> int:
    """How many bytes a Range asks for; 0 without an end."""
    first, _, last = asked.removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1 if last else 0


def refused(done: Done, *said: str) -> None:
    """Exit code 2, one message with these words, and nothing of Python's."""
    assert done.returncode == 2, done.stdout + done.stderr
    for words in said:
        assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def finished(done: Done) -> None:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "test top-1" in done.stdout


@pytest.fixture
def world(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A world whose constants hold in this process, for commands by `answer`."""
    with mirror(tmp_path, random_weights(tmp_path_factory), UNMEASURED) as made:
        hold_here(made.changes, monkeypatch)
        yield made


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def dogs(world: World, here: Path, *words: str, **environment: str) -> Done:
    """The command for what is refused early; few classes, since all of them need 42 GiB free."""
    return answer("uotft", "train", "--dataset", "dogs", "--set", "select.top_k=5", *words,
                  cwd=here, **world.environment | environment)  # fmt: skip


def test_terms_that_are_not_accepted(world: World, here: Path) -> None:
    refused(dogs(world, here), "uotft data accept imagenet", "https://image-net.org/download.php",
            "--imagenet PATH", "--strategy none")  # fmt: skip
    assert not any(here.iterdir())
    assert not world.server.asked


def test_a_disk_that_is_too_small(world: World, here: Path, tmp_path: Path) -> None:
    accept_here(world, here)
    with mounted(tmp_path / "small", "size=1m") as small:
        refused(dogs(world, small), "make room, or work on another disk",
                f"are free in {small}", "in uotft-dogs/")  # fmt: skip
        assert not any(small.iterdir())
    assert not world.server.asked


def test_no_network(world: World, here: Path) -> None:
    accept_here(world, here)
    mirror = closed_port()
    start = time.monotonic()
    done = dogs(world, here, UOTFT_MIRROR=mirror)
    assert time.monotonic() - start < downloads.PATIENCE, "no address is waited for"
    refused(done, "not reachable: 4 of 4 files", f"{mirror}/{ARCHIVE}", f"{mirror}/{TAR}",
            f"{mirror}/{WEIGHTS}", "check the network", "UOTFT_MIRROR")  # fmt: skip
    assert done.stderr.count("not reachable") == 1
    assert not any(here.iterdir())


def accept_here(world: World, here: Path) -> None:
    done = answer("uotft", "data", "accept", "imagenet", cwd=here, **world.environment)
    assert done.returncode == 0, done.stderr


@dataclass
class Story:
    """One project that has gone through every interruption.

    ``said`` has what the command said at each, ``asked`` the Ranges of the big tar by then.
    """

    world: World
    here: Path
    said: dict[str, Done] = field(default_factory=dict)
    asked: dict[str, list[str]] = field(default_factory=dict)

    @property
    def project(self) -> Path:
        return self.here / "uotft-dogs"

    @property
    def images(self) -> Path:
        return self.here / "downloads" / "imagenet"

    def train(self, *words: str, **environment: str) -> Done:
        return call("uotft", "train", "--dataset", "dogs", *words, cwd=self.here, timeout=600,
                    **self.world.environment | environment)  # fmt: skip

    def tell(self, what: str, hook: Callable[[int, str, str], object] | None = None) -> None:
        """The command, with a ``hook`` (process, name, Range) before each answer of the server."""
        with start(self) as process:
            if hook:
                self.world.server.before = lambda name, asked: hook(process.pid, name, asked)
            self.end(what, process)

    def end(self, what: str, process: subprocess.Popen[str]) -> None:
        out, err = process.communicate(timeout=600)
        self.world.server.before = lambda name, asked: None
        self.said[what] = Done(what, process.returncode, out, err)
        self.asked[what] = self.world.asked_of(TAR)
        wait(lambda: not inside(self.here), 120)  # orphans save, or finish

    def tars(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.images.glob("n*.tar"))}


def start(story: Story) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["uotft", "train", "--dataset", "dogs"],
        cwd=story.here,
        env=users_environment() | story.world.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches it alone
    )


def edit(project: Path, **changes: object) -> None:
    """Other settings at the top of params.yaml."""
    file = project / "params.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes, sort_keys=False))


def make_tiny(project: Path) -> None:
    """A few steps on small pictures, with two strategies and a seed."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    for section in params["datasets"].values():
        section |= {"stored": 64, "size": 64}
    params["select"]["top_k"] = 3
    params["train"] |= {"target_batch": 4, "source_batch": 4}
    params["train"]["recipe"] |= {
        "epochs": 0, "steps": STEPS, "eval_every": 15, "checkpoint_every": 3,
    }  # fmt: skip
    edit(project, **params | {"seeds": [0], "strategies": ["none", "uot"], "cpu_threads": 1})


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    (folder / "here").mkdir()
    with mirror(folder, random_weights(tmp_path_factory), UNMEASURED) as world:
        accept(world, folder)
        story = Story(world, folder / "here")
        go_through(story)
        yield story


def go_through(story: Story) -> None:
    """Every interruption in turn; `Story.said` has what came of each."""
    server, here = story.world.server, story.here
    server.instead[ARCHIVE] = "cut"
    story.tell("the archive is cut")
    make_tiny(story.project)
    server.instead = {LISTS: "other"}
    story.tell("the lists are other bytes")
    server.instead = {}

    def in_a_stage(_: int, name: str, asked: str) -> None:
        if name == WEIGHTS and asked != FIRST:
            for each in inside(here):  # all at once, as a machine that loses its power
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)

    story.tell("killed in a stage of DVC", in_a_stage)
    headers, classes = list[str](), list[str]()

    def in_the_index(pid: int, name: str, asked: str) -> None:
        headers.extend([asked] if name == TAR and length(asked) == HEADER else [])
        if len(headers) == INDEXED:
            os.kill(pid, signal.SIGKILL)

    story.tell("killed in the index", in_the_index)

    def in_a_class(_: int, name: str, asked: str) -> None:
        if name == TAR and length(asked) > HEADER and server.left is None:
            server.left = BUDGET

    story.tell("a class is cut", in_a_class)
    server.left = None

    def in_the_classes(pid: int, name: str, asked: str) -> None:
        classes.extend([asked] if name == TAR and length(asked) > HEADER else [])
        if len(classes) == 2:
            os.kill(pid, signal.SIGKILL)

    story.tell("killed in the classes", in_the_classes)
    left = story.project / "unfinished" / "models" / "dogs" / "uot" / "0"
    for what, number in (("killed in the training", signal.SIGKILL), ("Ctrl-C", signal.SIGINT)):
        before = {*left.glob("step-*/state.json")}
        with start(story) as process:
            while not {*left.glob("step-*/state.json")} - before and process.poll() is None:
                time.sleep(0.01)
            os.killpg(process.pid, number)
            story.end(what, process)
    story.tell("at last")


@pytest.mark.slow
def test_interrupted_everywhere_it_is_one_finished_run(story: Story) -> None:
    said = story.said
    for what in said:
        assert "Traceback" not in said[what].stderr, said[what].stderr
    killed = [what for what in said if what.startswith("killed")]
    assert len(killed) == 4
    assert {said[what].returncode for what in killed} == {-signal.SIGKILL}, said
    assert said["Ctrl-C"].returncode == 130, said["Ctrl-C"].stderr
    assert "interrupted; the same command goes on at step" in said["Ctrl-C"].stderr
    finished(said["at last"])
    assert "going on at step" in said["at last"].stderr
    assert [run.info.status for run in runs(story.here, "dogs")] == ["FINISHED"]
    assert not (story.project / "unfinished/models/dogs/uot/0").exists()
    assert not ranks(story.here)


@pytest.mark.slow
def test_a_cut_archive_goes_on_where_it_stopped(story: Story) -> None:
    archive = story.world.server.contents[ARCHIVE]
    refused(story.said["the archive is cut"], "images.tar could not be downloaded",
            f"connection lost after {len(archive) // 2:,} bytes")  # fmt: skip
    asked = story.world.asked_of(ARCHIVE)
    assert asked == ["", f"bytes={len(archive) // 2}-"], "its first half was read once"
    refused(story.said["the lists are other bytes"], "lists.tar could not be downloaded",
            story.world.server.address, "its checksum is", "not SHA-256")  # fmt: skip
    names = {path.name for path in (story.here / "downloads" / "dogs").iterdir()}
    assert {"images.tar", "lists.tar"} <= names
    assert not {name for name in names if name.endswith(".part")}


@pytest.mark.slow
def test_what_was_read_of_the_big_tar_is_not_read_again(story: Story) -> None:
    killed = story.asked["killed in the index"]
    assert len(killed) == INDEXED
    assert {length(part) for part in killed} == {HEADER}
    again = [part for part in killed if part in story.asked["at last"][INDEXED:]]
    assert len(again) <= INDEXED % 50, "the index is kept every 50 classes"
    cut = story.said["a class is cut"]
    refused(cut, f"connection lost after {BUDGET:,} bytes")
    [name] = re.findall(r"(n\d{8}\.tar) could not be downloaded", cut.stderr)
    assert name in story.tars()
    classes = [part for part in story.asked["at last"] if length(part) > HEADER]
    first = int(classes[0].removeprefix("bytes=").partition("-")[0])
    assert classes[1].startswith(f"bytes={first + BUDGET}-")
    assert len(classes) == 3 + 2, "the cut one twice, the one that was killed twice"
    assert [*story.tars().values()] == [
        dataset_archives.class_tar(name.removesuffix(".tar")) for name in story.tars()
    ]
    assert not [*story.images.glob(".n*.part")]


@pytest.mark.slow
def test_a_class_of_damaged_pictures(story: Story) -> None:
    server, before = story.world.server, story.tars()
    words = ("--strategy", "random", "--seed", "11")
    right = server.contents[TAR]
    server.contents[TAR] = right.replace(b"\xff\xd8\xff", b"\0\0\0")
    try:
        done = story.train(*words)
    finally:
        server.contents[TAR] = right
    refused(done, "2 of 2 images cannot be read", f"{server.address}/good/{TAR}")
    [name] = re.findall(r"(n\d{8})\.tar could not be downloaded", done.stderr)
    assert f"{name}_0.JPEG" in done.stderr
    assert story.tars() == before
    assert not [*story.images.glob(".n*.part")]
    finished(story.train(*words))
    assert f"{name}.tar" in story.tars()


@pytest.mark.slow
def test_a_server_without_ranges(story: Story) -> None:
    server, words = story.world.server, ("--strategy", "random", "--seed", "12")
    server.instead[TAR], before = "whole", story.tars()
    try:
        done = story.train(*words)
        refused(done, "the server sends only whole files", "could not be downloaded", "404")
        assert story.tars() == before
        whole = {CLASS_URL.format(wnid).split("//")[1]: wnid for wnid in wordnet.imagenet()}
        server.contents |= {n: dataset_archives.class_tar(w) for n, w in whole.items()}
        asked = story.world.asked_of(TAR)
        done = story.train(*words)
        finished(done)
    finally:
        server.instead = {}
    assert "so the classes come from" in done.stderr
    assert "winter21_whole" in done.stderr
    assert len(story.tars()) > len(before)
    assert story.world.asked_of(TAR) == asked, "its address was only tried"
    found = {whole[n] for path, _ in server.asked if (n := path.partition("/good/")[2]) in whole}
    new = {name.removesuffix(".tar") for name in story.tars().keys() - before.keys()}
    assert found >= new


@pytest.mark.slow
def test_a_bank_of_other_weights(story: Story) -> None:
    params = story.project / "params.yaml"
    text, bank = params.read_text(), story.here / "bank.safetensors"
    rows = torch.rand(1000, 512), torch.zeros(1000)
    banks.write(bank, classifier_rows(rows, "0" * 64, "resnet18"))
    edit(story.project, source_means=str(bank))
    before = len(runs(story.here, "dogs"))
    try:
        done = story.train("--again")
    finally:
        params.write_text(text)
    refused(done, str(bank), "other weights")
    assert len(runs(story.here, "dogs")) == before


@pytest.mark.slow
def test_without_any_network_a_plain_fine_tuning(world: World, here: Path) -> None:
    """In an empty folder with dogs' archives and the weights; ImageNet's terms are not accepted."""
    archives = here / "downloads" / "dogs"
    cached = Path(world.environment["TORCH_HOME"], "hub", "checkpoints")
    for name, folder in ((ARCHIVE, archives), (LISTS, archives), (WEIGHTS, cached)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / Path(name).name).write_bytes(world.server.contents[name])
    finished(train(world, here, "--strategy", "none", UOTFT_MIRROR=closed_port()))
    assert not world.server.asked
    assert not (here / "downloads" / "imagenet").exists()
    assert not (here / "uotft-dogs" / "selected" / "imagenet.json").read_text().count("n0")


def folders(place: Path) -> Path:
    """A copy of ImageNet as a folder a class."""
    for tar in tars(place).glob("n*.tar"):
        with tarfile.open(tar) as opened:
            opened.extractall(place / tar.stem, filter="data")
        tar.unlink()
    return place


def tars(place: Path) -> Path:
    """A copy of ImageNet as class tars."""
    with tarfile.open(fileobj=io.BytesIO(dataset_archives.imagenet_tar())) as opened:
        opened.extractall(place, filter="data")
    return place


def whole_tar(place: Path) -> Path:
    """A copy of ImageNet as it is published."""
    place.mkdir()
    (place / Path(TAR).name).write_bytes(dataset_archives.imagenet_tar())
    return place / Path(TAR).name


@pytest.mark.slow
def test_a_second_target_shares_the_classes_and_the_store(story: Story) -> None:
    birds = story.here / "photos" / "birds"
    for c in range(3):
        (birds / f"kind {c}").mkdir(parents=True)
        for i in range(8):
            picture = dataset_archives.picture(c, "train", i)
            (birds / f"kind {c}" / f"{i}.jpg").write_bytes(picture)
    before, asked = story.tars(), len(story.world.asked_of(TAR))
    done = train(story.world, story.here, dataset="photos/birds")
    finished(done)
    kept = [each["name"].split()[0] for each in selected(story.here / "uotft-birds")]
    new = {f"{wnid}.tar" for wnid in kept} - before.keys()
    assert story.tars().keys() == before.keys() | new
    assert len(new) < len(kept), "some were there for dogs"
    classes = [p for p in story.world.asked_of(TAR)[asked:] if length(p) > HEADER]
    assert len(classes) == len(new)
    assert [run.info.status for run in runs(story.here, "birds")] == ["FINISHED"]
    assert runs(story.here, "dogs")
    assert not (story.here / "uotft-birds" / "mlflow.db").exists()


def selected(project: Path) -> list[dict[str, str]]:
    [file] = project.rglob("selection.json")
    return storage.read_json(file)["classes"]


@pytest.mark.slow
def test_dvc_repro_does_the_rest(story: Story) -> None:
    def models() -> dict[str, str]:
        """{run: what it trained}."""
        return {run.info.run_id: run.info.run_name for run in runs(story.here, "dogs")}

    def repro() -> None:
        done = call("dvc", "repro", cwd=story.project, timeout=600, **story.world.environment)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    before = models()
    repro()
    now = models()
    assert [now[run] for run in now.keys() - before.keys()] == ["dogs-none-0"]
    assert (story.project / "reports" / "index.html").is_file()
    edit(story.project, strategies=["none", "uot", "random"])
    repro()
    last = models()
    assert [last[run] for run in last.keys() - now.keys()] == ["dogs-random-0"]
    assert now.items() <= last.items()
    kept = storage.read_json(story.project / "selections/dogs/random/0/selection.json")["classes"]
    assert {f"{each['name'].split()[0]}.tar" for each in kept} <= story.tars().keys()
    assert "dogs,random,0," in (story.project / "reports" / "runs.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("form", "seed"), [(folders, "21"), (whole_tar, "22")])
def test_the_users_own_copy(
    story: Story, tmp_path: Path, form: Callable[[Path], Path], seed: str
) -> None:
    copy, own = form(tmp_path / "copy"), {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    words, params = ("--strategy", "random", "--seed"), story.project / "params.yaml"
    text, before, asked = params.read_text(), story.tars(), len(story.world.server.asked)
    try:
        done = story.train(*words, seed, "--imagenet", str(copy), **own)
        finished(done)
        assert f"classes, in {copy}" in done.stderr
        assert str(copy) in params.read_text()
        remembered = story.train(*words, "99", "--dry-run", **own)
        assert f"1000 of ImageNet's 1,000 classes in {copy}" in remembered.stdout
    finally:
        params.write_text(text)
    assert not [path for path, _ in story.world.server.asked[asked:] if "image-net" in path]
    assert story.tars() == before
