"""The commands that show what there is, as a user calls them."""

from __future__ import annotations

from pathlib import Path

from support.commands import call
from support.projects import tiny_params, write_params


def test_data_sets_and_experiments_are_listed(tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params())
    for words, shown in (
        (("data", "list"), ("glyphs", "digits", "imagenet")),
        (("experiment", "list"), ("table3", "table4")),
        (("experiment", "show", "table3"), ("Fine-Tune", "UOT", "the paper, ")),
    ):
        done = call("uotft", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not [part for part in shown if part not in done.stdout], done.stdout
