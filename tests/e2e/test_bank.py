"""`uotft bank`, and selection from a bank or a classifier alone, as a user without a project."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.commands import answer, call, users_environment
from support.download_server import Server, serving
from support.foreign_weights import torchvision_file
from support.patched_modules import Source, patched
from support.repository import REPOSITORY
from uotft.core.records import ClassBank
from uotft.data import wordnet
from uotft.models.weights import MEAN, STD
from uotft.selection import banks

SIZE = 56  # of the 64 pixels that are kept: the share 0.875
KINDS = [f"kind {i}" for i in range(5)]
ROWS = [7, 130, 131, 555, 999]  # of the classifier, one near each kind


@dataclass(frozen=True)
class Place:
    """``photos``, a ResNet18 whose ROWS are the class means of these photos, and those means."""

    folder: Path
    network: torch.nn.Module
    means: np.ndarray

    @property
    def backbone(self) -> str:
        return f"resnet18:{self.folder / 'resnet18.pth'}"

    @property
    def photos(self) -> str:
        return str(self.folder / "photos")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("banks")
    network, path = torchvision_file("resnet18", folder)
    rng, means = np.random.default_rng(0), []
    rows = network.fc.weight.detach().clone()
    network.fc = torch.nn.Identity()
    for kind in KINDS:
        colour, pictures = rng.integers(30, 225, 3), []
        (folder / "photos" / kind).mkdir(parents=True)
        for number in range(4):
            pixels = (colour + rng.normal(0, 40, (64, 64, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / kind / f"{number}.png")
            pictures.append(pixels[4:60, 4:60])
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        m, s = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        with torch.no_grad():
            means.append(network((images - m) / s).mean(0).numpy())
    found = np.stack(means)
    apart = found - found.mean(0)
    rows[:] = torch.from_numpy(-found.mean(0)) + 0.1 * rows  # far from every kind
    rows[ROWS] = torch.from_numpy(found.mean(0) + 20 * apart).float()
    state = {**network.state_dict(), "fc.weight": rows, "fc.bias": torch.zeros(1000)}
    torch.save(state, path)
    return Place(folder, network, found)


@pytest.fixture(scope="module")
def made(place: Place) -> Path:
    """The bank of the photos, by the command of docs/banks.md."""
    words = ("--images", "photos", "--backbone", "resnet18:resnet18.pth", "--size", str(SIZE))
    done = call("uotft", "bank", "make", *words, "--output", "p.safetensors", cwd=place.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "p.safetensors: means of 5 classes of 512 features, from 20 training images, weights "
    )
    left = {"photos", "resnet18.pth", "p.safetensors"}
    assert {p.name for p in place.folder.iterdir()} == left
    return place.folder / "p.safetensors"


def test_class_means_are_those_of_the_network(place: Place, made: Path) -> None:
    bank = banks.read(made)
    assert bank.names == tuple(KINDS)
    assert bank.counts.tolist() == [4] * 5
    assert np.allclose(bank.means, place.means, rtol=1e-3, atol=1e-4)
    assert bank.origin == (
        "class means of 20 training images of photos at 56 pixels, by resnet18 (resnet18.pth)"
    )
    assert str(place.folder) not in made.read_bytes().decode(errors="ignore")


def test_show(made: Path, tmp_path: Path) -> None:
    done = call("uotft", "bank", "show", str(made), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = banks.read(made).weights
    assert done.stdout.splitlines() == [
        f"{made}: 5 rows of 512 features (float32), each the mean of a class",
        "names: kind 0, kind 1, kind 2, kind 3, kind 4",
        "images behind a row: 4 to 4, 20 in all",
        "origin: class means of 20 training images of photos at 56 pixels, by resnet18 "
        "(resnet18.pth)",
        f"weights: {weights}",
        "every row is finite, and none is all zero",
    ]


def test_show_of_a_users_own(tmp_path: Path) -> None:
    means = np.ones((3, 2))
    means[1, 0], means[2] = np.nan, 0
    np.savez(tmp_path / "s.npz", means=means, trunk=np.ones((3, 9)))
    done = answer("uotft", "bank", "show", "s.npz", cwd=tmp_path)
    assert "for heads: as many rows of 9 features" in done.stdout
    assert "weights: not stated, so nothing says which network made it" in done.stdout
    assert "NaN, infinite or all zero: '1' (row 1), '2' (row 2);" in done.stdout
    for name, message in (("no.npz", "no.npz: no such file"), ("s.csv", "s.csv: neither npz")):
        (tmp_path / "s.csv").write_text("1,2")
        done = answer("uotft", "bank", "show", name, cwd=tmp_path)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_imagenets_classes_without_an_image_of_them(place: Place, tmp_path: Path) -> None:
    source = ("--source-bank", f"imagenet:{place.backbone}", "--target", place.photos)
    words = ("--size", str(SIZE), "--explain")
    done = call("uotft", "select", *source, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    near = [wordnet.named([*wordnet.imagenet()][row]) for row in ROWS]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("uot: 100 of 1000 kept: ")
    assert {line.split(":")[0] for line in lines[1:6]} == set(near), "the five that were planted"
    for line in lines[1:6]:
        assert all(f"{kind} " in line for kind in KINDS), "with the share of each kind of photo"
    assert not [*tmp_path.iterdir()], "nothing is written"


def test_selection_json_of_a_classifier(place: Place, made: Path, tmp_path: Path) -> None:
    """Also for a bank of the target in place of its images, and with recall of what is expected."""
    source = ("--source-bank", f"imagenet:{place.backbone}", "--target-bank", str(made))
    words = ("--top-k", "5", "--output", "out.json", "--expect", "* goldfish", "--expect", "n0151*")
    done = call("uotft", "select", *source, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out.json").read_text())
    assert sorted(c["row"] for c in said["classes"]) == ROWS
    assert len(said["scores"]) == 1000
    assert said["fingerprints"]["target"] == hashlib.sha256(made.read_bytes()).hexdigest()
    assert len(said["fingerprints"]["source"]) == 64
    assert done.stdout.startswith("recall of the ")
    half = ("--strategy", "uot_and_random", "--output", "half.json")
    done = answer("uotft", "select", *source, "--top-k", "5", *half, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scales = [json.loads((tmp_path / name).read_text())["settings"]["cost_scale"]
              for name in ("out.json", "half.json")]  # fmt: skip
    assert scales == [0.03, 0.03], "that of rows, for every strategy with a transport"


def test_a_bank_for_a_folder(place: Place, made: Path, tmp_path: Path) -> None:
    """The folder's val and test, which a project would cut, decide nothing."""
    words = ("--target", place.photos, "--backbone", place.backbone, "--size", str(SIZE))
    done = call("uotft", "select", "--source-bank", str(made), *words, "--explain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "from 10 training images" in done.stderr, "of 20: a project cuts two each for val, test"
    assert done.stdout.startswith("uot: 5 of 5 kept: ")
    assert all(f"\n{kind}: {kind} " in done.stdout for kind in KINDS)


def test_rows_of_a_classifier_as_a_bank(place: Place, tmp_path: Path) -> None:
    words = ("--classifier", "--backbone", place.backbone, "--output", "c.safetensors")
    done = call("uotft", "bank", "make", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bank = banks.read(tmp_path / "c.safetensors")
    assert (bank.classifier, bank.means.shape) == (True, (1000, 512))
    assert bank.names[0] == "n01440764 tench"
    done = answer("uotft", "bank", "show", "c.safetensors", cwd=tmp_path)
    assert "each the row of a classifier\nnames: n01440764 tench, n01443537 goldfish" in done.stdout


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with a small bank of other weights, and one picture set that is quick to refuse."""
    bank = ClassBank(np.ones((2, 512)), ("a", "b"), np.ones(2, int), weights="cd" * 32)
    banks.write(tmp_path / "other.safetensors", bank)
    (tmp_path / "weights.pth").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--source-bank", "other.safetensors", "--target", "PHOTOS"),
         "--target: embedding PHOTOS needs --backbone, the one that made other.safetensors"),
        (("--source-bank", "other.safetensors", "--target", "PHOTOS", "--backbone", "NETWORK"),
         "other.safetensors was made with other weights (cdcdcdcdcdcd) than those of --backbone"),
        (("--source-bank", "other.safetensors", "--target", "none", "--backbone", "NETWORK"),
         "none: no such folder, archive or list of images"),
        (("--source-bank", "imagenet:NETWORK", "--target", "none"),
         "none: no such folder, archive or list of images"),
        (("--source-bank", "imagenet:NETWORK", "--target", "PHOTOS", "--backbone", "resnet50"),
         "--backbone: got 'resnet50', but --source-bank imagenet:"),
        (("--source-bank", "imagenet:NETWORK", "--target", "PHOTOS", "--metric", "l2"),
         "metric: got 'l2', but source holds rows of a classifier"),
        (("--source-bank", "imagenet:NETWORK", "--target-bank", "other.safetensors"),
         "source and other.safetensors were made with different weights"),
        (("--source-bank", "imagenet:small_resnet", "--target", "PHOTOS"),
         "--backbone: small_resnet has no weights of its own"),
        (("--source-bank", "imagenet:moco", "--target", "PHOTOS"), "write moco:PATH"),
        (("--source-bank", "imagenet:weights.pth", "--target", "PHOTOS"),
         "names no network: write NAME:weights.pth"),
        (("--source-bank", "imagenet:NETWORK"), "select needs --dataset, or"),
        (("--source-bank", "other.safetensors", "--target", "PHOTOS", "--target-bank", "t.npz"),
         "--target and --target-bank exclude each other"),
        (("--source-bank", "other.safetensors", "--target-bank", "t.npz", "--backbone", "resnet18"),
         "select: --backbone goes with --target"),
    ],
)  # fmt: skip
def test_mistakes_in_a_selection(
    place: Place, elsewhere: Path, words: tuple[str, ...], message: str
) -> None:
    def whole(text: str) -> str:
        return text.replace("PHOTOS", place.photos).replace("NETWORK", place.backbone)

    before = sorted(elsewhere.iterdir())
    done = answer("uotft", "select", *map(whole, words), cwd=elsewhere)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert whole(message) in done.stderr
    assert sorted(elsewhere.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "bank make needs one of --images, --shards, --classifier and --dataset"),
        (("--images", "x", "--classifier"),
         "needs one of --images, --shards, --classifier and --dataset"),
        (("--images", "x"), "--images, --shards and --classifier need --backbone"),
        (("--dataset", "x", "--backbone", "resnet18"), "--dataset has the project's own"),
        (("--images", "x", "--backbone", "NETWORK"), "x: no such folder, archive or list"),
        (("--images", "PHOTOS", "--backbone", "NETWORK", "--output", "o.csv"),
         "--output: got o.csv; a bank is a file that ends in .safetensors or .npz"),
    ],
)  # fmt: skip
def test_mistakes_in_making(
    place: Place, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    words = tuple(
        w.replace("PHOTOS", place.photos).replace("NETWORK", place.backbone) for w in words
    )
    output = () if "--output" in words else ("--output", "o.safetensors")
    done = answer("uotft", "bank", "make", *words, *output, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert message in done.stderr
    assert not [*tmp_path.iterdir()]


def test_a_classifier_of_other_classes(tmp_path: Path) -> None:
    torchvision_file("resnet18", tmp_path, num_classes=12)
    words = ("--classifier", "--backbone", "resnet18:resnet18.pth", "--output", "o.npz")
    done = answer("uotft", "bank", "make", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "its classifier has 12 classes, and names are known only of ImageNet's 1,000" in done.stderr
    )


INTERRUPTED = "lambda *a, **b: [__import__('signal').raise_signal(2), __import__('time').sleep(5)]"


def test_ctrl_c_while_images_are_embedded(place: Place, tmp_path: Path, made: Path) -> None:
    changes = {"uotft.models.embedding": {"shards": Source(INTERRUPTED)}}
    environment = patched(made.parent / "patch", changes)
    words = ("--images", place.photos, "--backbone", place.backbone, "--output", "o.safetensors")
    done = call("uotft", "bank", "make", *words, cwd=tmp_path, **environment)
    assert done.returncode == 130, done.stderr
    assert "interrupted; no file is half written" in done.stderr
    assert not [*tmp_path.iterdir()]


def test_an_archive_of_images_is_unpacked_for_this_command_alone(
    place: Place, made: Path, tmp_path: Path
) -> None:
    shutil.make_archive(str(tmp_path / "photos"), "zip", place.photos)
    words = ("--images", "photos.zip", "--backbone", place.backbone, "--size", str(SIZE))
    done = call(
        "uotft", "bank", "make", *words, "--output", "z.npz", cwd=tmp_path,
        TMPDIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.array_equal(banks.read(tmp_path / "z.npz").means, banks.read(made).means)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos.zip", "z.npz"]


class Published:
    """A small bank, its digest, and other files that a server may have in its place."""

    def __init__(self, folder: Path) -> None:
        bank = ClassBank(np.eye(3, 8), ("a", "b", "c"), np.ones(3, int), weights="ab" * 32)
        banks.write(folder / "made.safetensors", bank)
        self.bank = (folder / "made.safetensors").read_bytes()
        (folder / "made.safetensors").unlink()
        self.no_bank = b"words, not tensors" * 100
        self.contents = {"b.safetensors": self.bank, "n.safetensors": self.no_bank}

    def fetch(
        self, server: Server, manner: str, cwd: Path, *words: str, name: str = "b.safetensors"
    ) -> subprocess.CompletedProcess[str]:
        digest = hashlib.sha256(self.contents[name]).hexdigest()
        said = words or ("--sha256", digest)
        return answer("uotft", "bank", "fetch", f"{server.address}/{manner}/{name}", *said, cwd=cwd)


def test_a_bank_is_fetched_checked_and_shown(tmp_path: Path) -> None:
    published = Published(tmp_path)
    with serving(published.contents) as server:
        done = published.fetch(server, "good", tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("b.safetensors: 3 rows of 8 features (float64)")
        assert "weights: abab" in done.stdout
        asked = len(server.asked)
        assert published.fetch(server, "good", tmp_path).returncode == 0
        assert len(server.asked) == asked, "it is there, with that digest"
        digest = hashlib.sha256(published.bank).hexdigest()
        words = ("--sha256", digest.upper(), "--output", "inner/mine.safetensors")
        assert published.fetch(server, "moved", tmp_path, *words).returncode == 0
    assert (tmp_path / "b.safetensors").read_bytes() == published.bank
    assert (tmp_path / "inner" / "mine.safetensors").read_bytes() == published.bank
    assert len([*tmp_path.rglob("*")]) == 3


@pytest.mark.parametrize(
    ("manner", "message"),
    [
        ("other", "its checksum is "),
        ("page", "got a web page"),
        ("gone", "HTTP Error 404"),
        ("cut", "connection lost after "),
        ("untold", "does not state the file's size"),
    ],
)
def test_what_a_server_may_send_instead(tmp_path: Path, manner: str, message: str) -> None:
    published = Published(tmp_path)
    with serving(published.contents) as server:
        done = published.fetch(server, manner, tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert "b.safetensors could not be downloaded" in done.stderr
        assert message in done.stderr
        assert not (tmp_path / "b.safetensors").exists()
        done = published.fetch(server, "good", tmp_path)
        assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_the_right_bytes_that_are_no_bank(tmp_path: Path) -> None:
    published = Published(tmp_path)
    with serving(published.contents) as server:
        done = published.fetch(server, "good", tmp_path, name="n.safetensors")
    assert done.returncode == 2
    assert "n.safetensors: not a readable safetensors file" in done.stderr
    assert not [*tmp_path.iterdir()]


def test_nothing_is_fetched_without_the_right_digest(tmp_path: Path) -> None:
    published = Published(tmp_path)
    with serving(published.contents) as server:
        for words in (("--output", "b.npz"), ("--sha256", "ab12"), ("--sha256", "g" * 64)):
            done = published.fetch(server, "good", tmp_path, *words)
            assert done.returncode == 2
            assert "give the 64 digits that the bank's publisher states" in done.stderr
        assert not server.asked
        (tmp_path / "b.safetensors").write_bytes(b"another")
        done = published.fetch(server, "good", tmp_path)
        assert "b.safetensors is there already, and its checksum is" in done.stderr
        assert (tmp_path / "b.safetensors").read_bytes() == b"another"
        url = f"{server.address}/good/page.html"
        done = answer("uotft", "bank", "fetch", url, "--sha256", "a" * 64, cwd=tmp_path)
        assert "got page.html; a bank is a file that ends in" in done.stderr
    for address in ("file:///etc/passwd", "https://[::1/x.npz", "http://127.0.0.1:9/ä.npz"):
        done = answer("uotft", "bank", "fetch", address, cwd=tmp_path)
        assert "give an address that begins with https://" in done.stderr
        assert done.returncode == 2


def test_a_kill_leaves_no_bank_and_the_same_command_goes_on(tmp_path: Path) -> None:
    published = Published(tmp_path)
    digest = hashlib.sha256(published.bank).hexdigest()
    with serving(published.contents) as server:
        url = f"{server.address}/stuck/b.safetensors"
        command = ("uotft", "bank", "fetch", url, "--sha256", digest)
        with subprocess.Popen(command, cwd=tmp_path, env=users_environment()) as process:
            for _ in range(600):
                if (tmp_path / ".b.safetensors.part").exists():
                    break
                time.sleep(0.05)
            process.kill()
        assert [p.name for p in tmp_path.iterdir()] == [".b.safetensors.part"]
        assert published.fetch(server, "good", tmp_path).returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_the_commands_of_the_page(place: Place, tmp_path: Path) -> None:
    """As they stand in docs/banks.md, but for the project's; weights come from torch's cache."""
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "resnet18-f37072fd.pth").symlink_to(place.folder / "resnet18.pth")
    (tmp_path / "photos").mkdir()
    for name in ("photos/birds", "old-photos"):
        (tmp_path / name).symlink_to(place.photos)
    page = (REPOSITORY / "docs" / "banks.md").read_text(encoding="utf-8")
    lines = [line for block in page.split("```")[1::2] for line in block.strip().splitlines()]
    assert len(lines) == 7
    with serving({}) as server:
        for line in (line for line in lines if "--dataset" not in line):
            if "bank fetch" in line:
                bank = (tmp_path / "old.safetensors").read_bytes()
                server.contents["old.safetensors"] = bank
                line = line.replace("https://example.org", f"{server.address}/good")
                line = line.replace("DIGEST", hashlib.sha256(bank).hexdigest())
                (tmp_path / "old.safetensors").unlink()
            done = answer(*line.split(), cwd=tmp_path, TORCH_HOME=str(tmp_path / "torch"))
            assert done.returncode == 0, f"{line}: {done.stderr}"
            assert done.stdout
