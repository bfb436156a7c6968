"""The dvc.yaml of `uotft init` is the clone's without its code. `make golden` rewrites it."""

from __future__ import annotations

import os

from support.repository import REPOSITORY

FILE = REPOSITORY / "src/uotft/presets/project/pipeline.yaml"
OF_CODE = " Each stage depends on all code that decides its result: `make graph` writes it."


def outside_a_clone(text: str) -> str:
    """Without dependencies on src/: of a data set, its images alone are left."""
    assert OF_CODE in text
    text = text.replace(OF_CODE, "")
    return "".join(line for line in text.splitlines(True) if "- src/uotft/" not in line)


def test_the_pipeline_of_a_project_is_that_of_the_clone() -> None:
    made = outside_a_clone((REPOSITORY / "dvc.yaml").read_text())
    if os.environ.get("UOTFT_GOLDEN") == "write":
        FILE.write_text(made)
    assert FILE.read_text() == made
    assert "src/" not in made
