"""A trained network -> one file for other programs: ONNX, or torch's exported program.

Both take uint8 pixels, as many images as they are given, and return the target's logits: scaling
and channels are inside. An export is run on random pixels before its file gets its name.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import torch
from torch import Tensor, nn

from uotft.core.errors import UserError
from uotft.models.inputs import to_input
from uotft.models.network import Network

#: Largest difference from the network's own logits, as a share of the largest of them.
TOLERANCE = 1e-4
SIZES = (1, 5)  # images in the batches of the check: neither is the example's number


class Classifier(nn.Module):
    """uint8 (n, H, W) or (n, H, W, 3) -> logits (n, classes) of the target head."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.head("target")
        self.channels = network.channels

    def forward(self, pixels: Tensor) -> Tensor:
        """Scale the pixels, then backbone and head."""
        logits: Tensor = self.head(self.backbone(to_input(pixels, self.channels)))
        return logits


def to_torch(model: Classifier, example: Tensor) -> bytes:
    """An exported program (`torch.export.load`)."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that share memory, which these do not
        torch.export.save(_program(model, example), file)
    return file.getvalue()


def to_onnx(model: Classifier, example: Tensor) -> bytes:
    """An ONNX model with the input ``pixels`` and the output ``logits``."""
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UserError(
            "export --format onnx needs the extra: pip install 'uotft[onnx]'"
        ) from error

    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # of operators of packages that are not installed
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        made = torch.onnx.export(
            _program(model, example), input_names=["pixels"], output_names=["logits"], dynamo=True
        )
    assert made is not None
    content: bytes = made.model_proto.SerializeToString()
    return content


def run_torch(content: bytes) -> Callable[[Tensor], Tensor]:
    """The exported program in these bytes."""
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda pixels: module(pixels)


def run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    """The ONNX model in these bytes, run by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.as_tensor(session.run(None, {"pixels": pixels.numpy()})[0])


FORMATS = {"onnx": (to_onnx, run_onnx), "torch": (to_torch, run_torch)}


@torch.no_grad()
def export(network: Network, shape: list[int], form: str) -> tuple[bytes, float]:
    """The file's bytes, checked, and the largest difference of its logits from the network's."""
    write, load = FORMATS[form]
    model = Classifier(network).eval()
    content = write(model, _pixels(2, shape))
    return content, difference(model, load(content), shape)


@torch.no_grad()
def difference(model: Classifier, exported: Callable[[Tensor], Tensor], shape: list[int]) -> float:
    """Largest |logit - logit| over the largest |logit|, on random pixels; at most TOLERANCE."""
    worst = 0.0
    for n in SIZES:
        pixels = _pixels(n, shape)
        wanted, got = model(pixels), exported(pixels)
        share = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
        if not share <= TOLERANCE:  # NaN neither
            raise RuntimeError(
                f"the exported model's logits differ by {share:.1e} of the largest, more than "
                f"{TOLERANCE:g}: nothing was written"
            )
        worst = max(worst, share)
    return worst


def _program(model: Classifier, example: Tensor) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("images", min=1)}
    return torch.export.export(model, (example,), dynamic_shapes=(batch,))


def _pixels(n: int, shape: list[int]) -> Tensor:
    """Random pixels, the same on every call."""
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
