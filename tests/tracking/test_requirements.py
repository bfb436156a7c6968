"""A logged model names the packages that it needs, for each backbone."""

from __future__ import annotations

from pathlib import Path

import pytest

from uotft.core import storage
from uotft.tracking import delivery


@pytest.mark.parametrize(
    ("backbone", "timm"),
    [
        ({"name": "resnet18"}, False),
        ({"name": "timm", "model": "test_vit"}, True),
        ({"name": "efficientnet_lite0"}, True),
        ({"name": "state_dict", "architecture": {"name": "efficientnet_lite0"}}, True),
    ],
)
def test_timm_is_needed_where_its_architecture_is(
    backbone: dict, timm: bool, tmp_path: Path
) -> None:
    storage.write_json(tmp_path / "model.json", {"backbone": backbone})
    needed = delivery._requirements(tmp_path)
    assert any(name.startswith("timm==") for name in needed) == timm
