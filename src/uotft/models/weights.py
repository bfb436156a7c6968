"""Files of pre-trained weights -> tensors -> a backbone. No code in a file is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load
from torch import Tensor, nn

from uotft.core import locks
from uotft.core.errors import UserError
from uotft.core.progress import track
from uotft.core.records import Settings
from uotft.core.text import some
from uotft.data import downloads
from uotft.data.archives import Archive

State = dict[str, Tensor]

#: Mean and standard deviation of ImageNet's training pixels: red, green and blue in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What to do where weights cannot be downloaded.
WITHOUT_NETWORK = (
    "or put the file anywhere and name it in params.yaml: backbone.weights: PATH\n"
    "or train without pre-trained weights, on small pictures: a project of --preset small, by "
    "`uotft init` or `uotft train --source`"
)
HASH = re.compile(r"-([0-9a-f]{8,})\.")  # start of the SHA-256, in names of torchvision's files


class Trunk(nn.Module):
    """Adapts another project's network to images in [-1, 1]: (n, C, H, W) -> (n, D).

    ``trunk`` was trained on pixels in [0, 1], normalised as (pixel - mean) / std. ``size`` is its
    image size (H, W), if it accepts only one.
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
                f"backbone: this network takes only images of {height} x {width} pixels, but these "
                f"have {h} x {w}: set backbone.image_size: {h} in params.yaml"
            )
        features: Tensor = self.trunk(images * self.scale + self.shift)
        return features


@dataclass(frozen=True)
class Pretrained:
    """A backbone with pre-trained weights.

    ``classifier`` is weight (classes, D) and bias (classes,), or None if the file has none;
    ``origin`` names the file.
    """

    backbone: nn.Module
    classifier: tuple[Tensor, Tensor] | None
    origin: dict[str, str]


def pretrained(
    backbone: nn.Module,
    path: Path,
    *,
    prefix: str = "",
    classifier: str = "",
    required: bool = False,
    rename: Mapping[str, str] = MappingProxyType({}),
) -> Pretrained:
    """Load a file's weights into ``backbone``; each weight must be in the file.

    Ignores keys that do not begin with ``prefix``. Returns the linear layer ``classifier`` (its
    full name in the file) separately; it may be missing, unless it is ``required``. The other keys,
    without the prefix, are renamed by ``rename``, as `renamed` does. A file that does not fit is a
    ``UserError``.
    """
    state = read(path)
    if required:
        _need_linear(state, classifier, path)
    rows = take_linear(state, classifier)
    chosen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not chosen:
        raise UserError(
            f"{path}: no key begins with {prefix!r}; its keys are {some(sorted(state), 4)}"
        )
    chosen = renamed(chosen, rename, path)
    fit(backbone.trunk if isinstance(backbone, Trunk) else backbone, chosen, path)
    return Pretrained(backbone, rows, origin(path))


class ImageNet(Settings):
    """Settings of a network for which torchvision has ImageNet weights."""

    FILES: ClassVar = ("weights",)

    weights: str = Field(
        "download",
        description="download: torchvision's IMAGENET1K_V1; or the path of a file of that format; "
        "or none: random weights, which the stage pretrain trains",
    )


def imagenet_trunk(name: str) -> Trunk:
    """torchvision's residual network ``name``, without its classifier and with random weights."""
    from torchvision import models

    network = models.get_model(name)
    features = network.fc.in_features
    network.fc = nn.Identity()
    return Trunk(network, features)


def imagenet(name: str, settings: ImageNet) -> Pretrained | None:
    """The same with its weights; None if the stage pretrain is to train it."""
    from torchvision import models

    if settings.weights == "none":
        return None
    if settings.weights == "download":
        path = download(models.get_model_weights(name).IMAGENET1K_V1.url)
    else:
        path = Path(settings.weights)
    return pretrained(imagenet_trunk(name), path, classifier="fc")


def published(name: str, settings: ImageNet) -> tuple[str, int, Path] | None:
    """Address, bytes and path of the file that `imagenet` downloads; None if it downloads none."""
    from torchvision import models

    if settings.weights != "download":
        return None
    found = models.get_model_weights(name).IMAGENET1K_V1
    size = round(found.meta["_file_size"] * 2**20)  # torchvision states it in MiB
    return found.url, size, _cached(found.url)


def _cached(url: str) -> Path:
    """Where torch keeps the file of an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def origin(path: Path) -> dict[str, str]:
    """The file's name and SHA-256; not its folder, since model.json goes to other machines."""
    with path.open("rb") as file:
        return {"file": path.name, "sha256": file_digest(file, "sha256").hexdigest()}


def fingerprint(backbone: nn.Module) -> str:
    """The SHA-256 of a backbone's tensors: names, types, shapes and bytes, sorted by name.

    The same for the same weights, whether they come from a file, a download, timm's hub or the
    network of a project. How many batches a norm layer has seen is left out: no feature depends on
    it, and old files lack it.
    """
    found = sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            found.update(f"{name} {tensor.dtype} {(*tensor.shape,)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def take_linear(state: State, name: str) -> tuple[Tensor, Tensor] | None:
    """Remove the linear layer ``name`` from ``state``; returns weight and bias (or zeros)."""
    if f"{name}.weight" not in state:
        return None
    weight = state.pop(f"{name}.weight")
    return weight, state.pop(f"{name}.bias", torch.zeros(len(weight)))


def _need_linear(state: State, name: str, path: Path) -> None:
    """Refuse a ``name`` that is no linear layer of the file; the message lists those that are."""
    ending = ".weight"
    known = [k.removesuffix(ending) for k, v in state.items() if k.endswith(ending) and v.ndim == 2]
    if name not in known:
        raise UserError(
            f"backbone.classifier: got {name!r}, which is no linear layer of {path} (those are: "
            f"{some(sorted(known)) or 'none'}): name one of them, or leave classifier empty"
        )


def renamed(state: State, rename: Mapping[str, str], path: Path) -> State:
    """``state`` with every regular expression of ``rename`` replaced in its keys, in order.

    Two keys that become one are a ``UserError``, and so is a replacement without its group.
    """
    new: State = {}
    for key, tensor in state.items():
        name = key
        for old, with_ in rename.items():
            try:
                name = re.sub(old, with_, name)
            except (re.error, IndexError) as error:
                raise UserError(f"backbone.rename: {old!r}: {with_!r}: {error}") from error
        if name in new:
            raise UserError(f"backbone.rename: {path}: two keys become {name!r}, {key!r} the last")
        new[name] = tensor
    return new


def read(path: Path) -> State:
    """The named tensors of a safetensors file, or of a .pt or .pth file.

    From a checkpoint with more in it, takes its ``state_dict`` or ``model``. A pickle with anything
    but tensors is a ``UserError``.
    """
    if not path.is_file():
        raise UserError(f"backbone.weights: {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            held: Any = load(path.read_bytes())
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  a foreign file may fail in any way
        # torch's message advises to run the file's code; the last paragraph but one is the cause
        paragraphs = [part.strip() for part in str(error).split("\n\n") if part.strip()]
        cause = paragraphs[-2] if len(paragraphs) > 1 else (paragraphs or [type(error).__name__])[0]
        raise UserError(
            f"{path}: not a readable file of weights ({cause.splitlines()[0][:200]}); give a "
            "safetensors file, or a .pt or .pth file of plain tensors: uotft runs no code from a "
            "pickle"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    if not isinstance(held, dict) or not all(isinstance(v, Tensor) for v in held.values()):
        raise UserError(f"{path}: holds a {type(held).__name__}, not named tensors")
    return dict(held)


def fit(network: nn.Module, state: State, path: Path) -> None:
    """Load ``state`` into ``network``; a ``UserError`` if names or shapes differ."""
    own = network.state_dict()
    # files from before 2018 have no num_batches_tracked
    missing = [k for k in own.keys() - state.keys() if not k.endswith("num_batches_tracked")]
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    found = {
        "missing": missing,
        "unexpected": state.keys() - own.keys(),
        "of another shape": [f"{k} {(*state[k].shape,)} for {(*own[k].shape,)}" for k in wrong],
    }
    if any(found.values()):
        differences = "; ".join(
            f"{what}: {some(sorted(keys), 4)}" for what, keys in found.items() if keys
        )
        raise UserError(f"{path}: these weights do not fit this backbone; {differences}")
    network.load_state_dict(state, strict=False)


def download(url: str) -> Path:
    """The file at torchvision's address ``url``, from torch's cache or downloaded.

    Checks a download against the start of its SHA-256, which is part of the file name. A broken
    download resumes. If it fails, a ``UserError`` says how to use a file from elsewhere.
    """
    path = _cached(url)
    if path.is_file():
        return path
    stated = HASH.search(path.name)
    if stated is None:
        raise UserError(f"backbone.weights: {url}: the file name has no SHA-256 to check")
    busy = f"backbone.weights: another process is downloading {path}; wait for it"
    try:
        with locks.exclusive(path.with_name(f".{path.stem}.lock"), busy):
            wanted = downloads.sized(Archive(path.name, "", 0, stated[1], (url,)), path.parent)
            return downloads.fetch(wanted, path.parent, track)
    except UserError as error:
        raise UserError(f"{error}\n{WITHOUT_NETWORK}") from error
