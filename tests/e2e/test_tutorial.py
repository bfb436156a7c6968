"""docs/tutorial.md, run as a reader would: its commands, its settings, and what they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from support.commands import call
from support.image_folders import pictures
from support.repository import REPOSITORY

PAGE = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?ms)^```(console|yaml)\n(.*?)^```$", PAGE)


def _photos(folder: Path) -> None:
    """The two folders of the page, with the names that it lists."""
    listed = re.findall(r"(?m)^[├└]── (\w+)/ +((?:\w+/ +)+)(\d+) pictures each$", PAGE)
    assert [name for name, *_ in listed] == ["birds", "old"]
    for seed, (name, classes, each) in enumerate(listed):
        labels = [label.strip().rstrip("/") for label in classes.split()]
        drawn = pictures(folder / "photos" / name, len(labels), int(each), seed=seed)
        for number, label in enumerate(labels):
            (drawn / f"class {number}").rename(drawn / label)


def _merge(old: dict, new: dict) -> dict:
    """``old`` with the settings of ``new`` put into its sections."""
    both = {
        name: _merge(old[name], value) if isinstance(value, dict) else value
        for name, value in new.items()
    }
    return old | both


def _pattern(line: str) -> re.Pattern[str]:
    """A line of the page as a pattern: any number for a number, anything for an ellipsis."""
    return re.compile(".*".join(re.escape(part) for part in _plain(line).split("…")))


def _plain(text: str) -> str:
    """Numbers as N, and one space for many."""
    return re.sub(r"[ \t]+", " ", re.sub(r"[+-]?\d[\d.,]*", "N", text)).strip()


@pytest.mark.slow
def test_the_tutorial_runs_as_printed(tmp_path: Path) -> None:
    _photos(tmp_path)
    where, printed, commands = tmp_path, [], 0
    for kind, block in BLOCKS:
        if kind == "yaml":
            params = where / "params.yaml"
            settings = _merge(yaml.safe_load(params.read_text()), yaml.safe_load(block))
            params.write_text(yaml.safe_dump(settings, sort_keys=False))
            continue
        for line in block.splitlines():
            if not line.startswith("$ "):
                assert any(_pattern(line).fullmatch(seen) for seen in printed), (line, printed)
                continue
            commands += 1
            words = line[2:].split()
            if words[0] == "cd":
                where = where / words[1]
                continue
            done = call(*words, cwd=where, timeout=500)
            assert done.returncode == 0, line + done.stdout[-2000:] + done.stderr[-2000:]
            printed = [_plain(seen) for seen in (done.stdout + "\n" + done.stderr).splitlines()]
    assert commands >= 8
    for made in ("sheet.png", "reports/index.html"):
        assert (where / made).is_file()
