"""What stops the stages before DVC starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.projects import tiny_params, workspace, write_params
from support.repository import REPOSITORY
from uotft.core.errors import UserError
from uotft.runs import job


def test_params_of_an_older_version_are_refused_with_the_lines_to_add(tmp_path: Path) -> None:
    params = tiny_params()
    del params["controls"]
    write_params(tmp_path, params)
    shutil.copy(REPOSITORY / "src/uotft/presets/project/pipeline.yaml", tmp_path / "dvc.yaml")
    with pytest.raises(UserError, match="of older versions do: add `controls: {}`"):
        job._repro(workspace(tmp_path), ["units"])
    assert not (tmp_path / "dvc.lock").exists()
