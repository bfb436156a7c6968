"""Files of pre-trained weights -> tensors -> a backbone. Nothing in a file is executed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load
from torch import Tensor, nn

from uotft.core import locks
from uotft.core.errors import UserError
from uotft.core.progress import track
from uotft.core.records import Settings
from uotft.data import downloads
from uotft.data.archives import Archive

State = dict[str, Tensor]

#: Of ImageNet's training images, red, green and blue in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HASH = re.compile(r"-([0-9a-f]{8,})\.")  # in the names of torchvision's files


class Trunk(nn.Module):
    """A network of others behind this project's images: (n, C, H, W) in [-1, 1] -> (n, D).

    ``trunk`` was trained on pixels in [0, 1] from which ``mean`` was taken, divided by ``std``.
    ``size`` is (H, W) where it sees no other.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        features: int,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.features, self.channels = trunk, features, len(mean)
        self.mean, self.std, self.size = mean, std, size
        m, s = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", 0.5 / s, persistent=False)
        self.register_buffer("shift", (0.5 - m) / s, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) in [-1, 1] -> (n, D)."""
        if self.size and tuple(images.shape[2:]) != self.size:
            (height, width), (h, w) = self.size, images.shape[2:]
            raise UserError(
                f"backbone: this network sees {height} x {width} pixels only, the images have "
                f"{h} x {w}: set backbone.image_size: {h} in params.yaml"
            )
        features: Tensor = self.trunk(images * self.scale + self.shift)
        return features


@dataclass(frozen=True)
class Pretrained:
    """A backbone with its weights; ``classifier`` is weight (classes, D) and bias, if they have
    one; ``origin`` says where they come from."""

    backbone: nn.Module
    classifier: tuple[Tensor, Tensor] | None
    origin: dict[str, str]


def pretrained(
    backbone: nn.Module, path: Path, *, prefix: str = "", classifier: str = ""
) -> Pretrained:
    """Put a file's weights into ``backbone``, every one of them.

    Keys that do not begin with ``prefix`` are left alone; the linear layer ``classifier`` (its full
    name in the file) is kept apart, and may be missing.
    """
    state = read(path)
    rows = take_linear(state, classifier)
    chosen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not chosen:
        raise UserError(f"{path}: no key begins with {prefix!r}; there are {few(state)}")
    fit(backbone.trunk if isinstance(backbone, Trunk) else backbone, chosen, path)
    return Pretrained(backbone, rows, origin(path))


class ImageNet(Settings):
    """Settings of a network that torchvision has ImageNet weights for."""

    FILES: ClassVar = ("weights",)

    weights: str = Field(
        "download",
        description="download: torchvision's IMAGENET1K_V1; a file of the same format; or none: "
        "the stage pretrain trains",
    )


def imagenet_trunk(name: str) -> Trunk:
    """torchvision's residual network ``name`` without its classifier, with random weights."""
    from torchvision import models

    network = models.get_model(name)
    features = network.fc.in_features
    network.fc = nn.Identity()
    return Trunk(network, features)


def imagenet(name: str, settings: ImageNet) -> Pretrained | None:
    """The same with its weights, or None where it is to be trained."""
    from torchvision import models

    if settings.weights == "none":
        return None
    if settings.weights == "download":
        path = download(models.get_model_weights(name).IMAGENET1K_V1.url)
    else:
        path = Path(settings.weights)
    return pretrained(imagenet_trunk(name), path, classifier="fc")


def origin(path: Path) -> dict[str, str]:
    """The file's name and SHA-256; not its folder, since model.json goes to other machines."""
    with path.open("rb") as file:
        return {"file": path.name, "sha256": file_digest(file, "sha256").hexdigest()}


def take_linear(state: State, name: str) -> tuple[Tensor, Tensor] | None:
    """Take the linear layer ``name`` out of ``state``: weight and bias (zeros if it has none)."""
    if f"{name}.weight" not in state:
        return None
    weight = state.pop(f"{name}.weight")
    return weight, state.pop(f"{name}.bias", torch.zeros(len(weight)))


def read(path: Path) -> State:
    """The tensors of a safetensors file, or of a .pt or .pth file that holds nothing else to run.

    Of a whole checkpoint its ``state_dict`` or ``model``.
    """
    if not path.is_file():
        raise UserError(f"backbone.weights: {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            held: Any = load(path.read_bytes())
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  a foreign file may fail in any way
        # torch's own words advise to run what is inside; the cause stands last but one
        words = [part.strip() for part in str(error).split("\n\n") if part.strip()]
        cause = words[-2] if len(words) > 1 else (words or [type(error).__name__])[0]
        raise UserError(
            f"{path}: not a readable file of weights ({cause.splitlines()[0][:200]}); a "
            "safetensors file is needed, or a .pt or .pth file of plain tensors: nothing else in "
            "a pickle is run"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    if not isinstance(held, dict) or not all(isinstance(v, Tensor) for v in held.values()):
        raise UserError(f"{path}: holds a {type(held).__name__}, not named tensors")
    return dict(held)


def fit(network: nn.Module, state: State, path: Path) -> None:
    """Load ``state`` into ``network``; names and shapes must be the same."""
    own = network.state_dict()
    # files from before 2018 do not count batches
    missing = [k for k in own.keys() - state.keys() if not k.endswith("num_batches_tracked")]
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    found = {
        "missing": missing,
        "unexpected": state.keys() - own.keys(),
        "of another shape": [f"{k} {(*state[k].shape,)} for {(*own[k].shape,)}" for k in wrong],
    }
    if any(found.values()):
        said = "; ".join(f"{what}: {few(names)}" for what, names in found.items() if names)
        raise UserError(f"{path}: these weights are not of this backbone's architecture; {said}")
    network.load_state_dict(state, strict=False)


def few(names: Iterable[str], most: int = 4) -> str:
    """The first names in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def download(url: str) -> Path:
    """The file behind torchvision's address: from torch's cache, or fetched, its hash checked.

    The name ends with the beginning of the file's SHA-256. A download goes on where it broke off.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    stated = HASH.search(path.name)
    if stated is None:
        raise UserError(f"backbone.weights: {url}: its name does not tell its SHA-256")
    busy = f"backbone.weights: another process is downloading {path}; wait for it"
    try:
        with locks.exclusive(path.with_name(f".{path.stem}.lock"), busy):
            wanted = downloads.sized(Archive(path.name, "", 0, stated[1], (url,)), path.parent)
            return downloads.fetch(wanted, path.parent, track)
    except UserError as error:
        raise UserError(
            f"{error}\nor put the file anywhere and name it: backbone.weights: PATH"
        ) from error
