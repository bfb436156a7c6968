"""Files of weights as other projects write them, with random numbers inside."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


def torchvision_file(name: str, folder: Path, **options: object) -> tuple[nn.Module, Path]:
    """A network with random weights, running statistics too, and its file in torchvision's form."""
    import torchvision

    torch.manual_seed(2)
    network = getattr(torchvision.models, name)(**options)
    for key, buffer in network.named_buffers():
        if "running" in key:
            buffer.uniform_(0.5, 1.5) if "var" in key else buffer.uniform_(-0.1, 0.1)
    torch.save(network.state_dict(), folder / f"{name}.pth")
    return network.eval(), folder / f"{name}.pth"


def moco_file(folder: Path, dimensions: int = 128) -> tuple[nn.Module, Path]:
    """A checkpoint as MoCo's main_moco.py writes it."""
    import torchvision

    torch.manual_seed(4)
    query = torchvision.models.resnet50(num_classes=dimensions)
    query.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), query.fc)
    state = {f"module.encoder_q.{k}": v for k, v in query.state_dict().items()}
    state |= {f"module.encoder_k.{k}": v for k, v in query.state_dict().items()}
    state |= {"module.queue": torch.rand(dimensions, 16), "module.queue_ptr": torch.zeros(1)}
    path = folder / "moco.pth.tar"
    torch.save(
        {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}, path
    )
    return query.eval(), path
