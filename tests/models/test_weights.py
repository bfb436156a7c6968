"""Files of weights: what is read, what is refused, and torchvision's download over real HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support.download_server import in_a_thread
from support.foreign_weights import moco_file, torchvision_file
from uotft.core.errors import UserError
from uotft.models import model_io, weights
from uotft.models.backbones import resnet18, small_resnet
from uotft.models.network import Network


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"cut"])
def test_corrupt_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    if content == b"cut":
        state = {"a": torch.rand(99)}
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        content = path.read_bytes()[:-50]
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not a readable file of weights"):
        weights.read(path)


@pytest.mark.parametrize("held", [[torch.rand(2)], {"epoch": 3}, torch.rand(3)])
def test_what_is_no_state_dict_is_refused(held: object, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "a.pth")
    with pytest.raises(UserError, match="not named tensors"):
        weights.read(tmp_path / "a.pth")


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match=r"backbone\.weights: nowhere\.pth: no such file"):
        weights.read(Path("nowhere.pth"))


def test_weights_of_another_architecture_name_the_keys(tmp_path: Path) -> None:
    small = small_resnet.build(small_resnet.Settings(widths=[4, 8]))
    state = small.state_dict()
    state["extra.weight"] = state.pop("layers.0.weight")
    state["layers.1.bias"] = torch.zeros(5)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError) as caught:
        weights.pretrained(small, tmp_path / "a.safetensors")
    said = str(caught.value)
    assert "missing: layers.0.weight; unexpected: extra.weight" in said
    assert "of another shape: layers.1.bias (5,) for (4,)" in said


def test_a_prefix_that_no_key_has(tmp_path: Path) -> None:
    save_file({"layers.0": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="no key begins with 'module.'; its keys are layers.0"):
        weights.pretrained(torch.nn.Linear(1, 1), tmp_path / "a.safetensors", prefix="module.")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """Files below a folder over HTTP on this machine; torch keeps what it fetches elsewhere."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with in_a_thread(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as http:
        yield f"http://127.0.0.1:{http.server_port}", folder


def published(folder: Path, digest: str = "") -> str:
    """A file in torchvision's form, with the beginning of its SHA-256 in its name."""
    torch.manual_seed(0)
    made = folder / "made.pth"
    torch.save(resnet18.build(resnet18.Settings()).trunk.state_dict(), made)
    digest = digest or hashlib.sha256(made.read_bytes()).hexdigest()[:8]
    return made.rename(folder / f"resnet18-{digest}.pth").name


def test_weights_are_downloaded_once(server: tuple[str, Path]) -> None:
    address, folder = server
    name = published(folder)
    path = weights.download(f"{address}/{name}")
    assert path.read_bytes() == (folder / name).read_bytes()
    (folder / name).unlink()
    assert weights.download(f"{address}/{name}") == path, "the second time from torch's cache"


@pytest.mark.parametrize("fault", ["hash", "404", "offline"])
def test_a_failed_download_says_where_to_put_the_file(
    server: tuple[str, Path], fault: str, tmp_path: Path
) -> None:
    address, folder = server
    name = published(folder, "0123abcd")
    url = {"hash": f"{address}/{name}", "404": f"{address}/other-0123abcd.pth"}
    with pytest.raises(UserError) as caught:
        weights.download(url.get(fault, f"http://127.0.0.1:9/{name}"))
    said = str(caught.value)
    assert str(tmp_path / "home/hub/checkpoints") in said
    assert "backbone.weights: PATH" in said
    assert (
        "train without pre-trained weights, on small pictures: a project of --preset small" in said
    )
    assert not list((tmp_path / "home").rglob("*.p*")), "nothing half-fetched is left"


def test_a_backbone_has_one_fingerprint_wherever_it_comes_from(tmp_path: Path) -> None:
    network, path = torchvision_file("resnet18", tmp_path)
    old = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    save_file(old, tmp_path / "old.safetensors")  # files from before 2018
    timm = {"name": "timm", "model": "resnet18.tv_in1k"}
    found = {}
    for name, section in {
        "file": {"name": "resnet18", "weights": str(path)},
        "old": {"name": "resnet18", "weights": str(tmp_path / "old.safetensors")},
        "timm": {**timm, "weights": str(path)},
        "own": {"name": "state_dict", "weights": str(path), "architecture": {"name": "resnet18"},
                "prefix": "", "classifier": "fc"},
    }.items():  # fmt: skip
        backbone = model_io.pretrained(section).backbone
        found[name] = weights.fingerprint(backbone)
    section = {"name": "resnet18", "weights": str(path)}
    adopted = Network(model_io.pretrained(section).backbone, target=7)
    facts = {"backbone": section, "classes": [*"abcdefg"], "source_classes": []}
    model_io.write(tmp_path / "pretrained", adopted, facts)
    found["project"] = weights.fingerprint(model_io.read(tmp_path / "pretrained")[0].backbone)
    assert len(set(found.values())) == 1, found

    with torch.no_grad():
        next(adopted.backbone.parameters()).view(-1)[0] += 1e-3
    assert weights.fingerprint(adopted.backbone) not in found.values()
    adopted.backbone.double()
    assert weights.fingerprint(adopted.backbone) not in found.values()


def test_the_projection_of_moco_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    """Selection compares its outputs."""
    backbone = model_io.pretrained(
        {"name": "moco", "weights": str(moco_file(tmp_path)[1])}
    ).backbone
    before = weights.fingerprint(backbone)
    with torch.no_grad():
        backbone.project[2].bias += 1
    assert weights.fingerprint(backbone) != before
