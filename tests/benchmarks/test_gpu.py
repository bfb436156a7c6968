"""The benchmark for GPUs: its dry run, its time limits, its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from support.repository import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "gpu.py"
PARTS = "machine solver training k-means resume fp16 nccl crops features tests".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def harness() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPT.parent))
    from on_gpu import harness

    yield harness
    sys.path.remove(str(SCRIPT.parent))


@pytest.mark.slow
def test_the_dry_run_has_every_part_and_none_fails(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--device", "cpu", "--tiny", "--out", tmp_path]
    page = tmp_path / "page.md"
    page.write_text("as it was")
    done = subprocess.run(
        [*map(str, command), "--docs", str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert page.read_text() == "as it was", "a CPU's figures are none of a GPU"
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [part["name"] for part in found["parts"]] == PARTS
    assert {part["status"] for part in found["parts"]} == {"ok"}
    figures = [figure for part in found["parts"] for figure in part["figures"]]
    assert len(figures) == 9
    assert all(figure["ratio"] > 0 and len(figure["medians"]) >= 2 for figure in figures)
    checks = [check["name"] for part in found["parts"] for check in part["checks"]]
    assert "bf16: resumed = uninterrupted, to the bit" in checks
    assert {"torch", "python", "commit"} <= set(found["facts"])
    table = (tmp_path / "gpu.md").read_text()
    assert all(figure["name"] in table for figure in figures)
    head, _, rest = (REPOSITORY / "docs" / "benchmarks.md").read_text().partition("<!-- written")
    around = f"{head}{rest.partition('<!-- end')[2]}".count("\n")
    more = 4  # a GPU trains a second network, in three modes, and may have k-means twice
    assert around + table.count("\n") + more <= 148, "a page has 150 lines at most"


def run(harness: ModuleType, function: str, seconds: float = 20.0) -> dict:
    return harness.run_part(harness.Part("probe", "probe", function, seconds), "cpu", True, seconds)


@pytest.fixture
def probe(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that go wrong; a fork has them too."""
    module = ModuleType("on_gpu.probe")

    def fails(bench) -> None:  # noqa: ANN001
        bench.check("first", True, "")
        raise MemoryError("CUDA out of memory")

    def hangs(bench) -> None:  # noqa: ANN001
        bench.note("begun")
        time.sleep(60)

    def poor(bench) -> None:  # noqa: ANN001
        def lacks() -> float:
            raise MemoryError("not enough")

        bench.compare("a", {"ours": lambda: 2.0, "theirs": lacks}, unit="s", aim=1.0)
        bench.compare("b", {"ours": lacks, "theirs": lambda: 2.0}, unit="s")
        bench.compare("c", {"ours": lambda: 2.0, "theirs": lambda: 3.0}, unit="s", aim=2.0)
        bench.compare("d", {"ours": lambda: 2.0, "theirs": lambda: 4.0}, unit="images/s", rate=True)

    module.fails, module.hangs, module.poor = fails, hangs, poor
    module.dies = lambda bench: os._exit(9)
    monkeypatch.setitem(sys.modules, "on_gpu.probe", module)
    monkeypatch.setattr(harness, "GRACE", 5.0)
    # another test may have looked for a GPU; a new interpreter would lack the module above
    monkeypatch.setattr(harness, "_forks", lambda: True)


@pytest.mark.usefixtures("probe")
def test_a_part_that_goes_wrong_is_recorded(harness: ModuleType) -> None:
    found = run(harness, "fails")
    assert (found["status"], found["error"]) == ("failed", "MemoryError: CUDA out of memory")
    assert [check["name"] for check in found["checks"]] == ["first"]
    assert run(harness, "dies")["error"] == "its process ended with code 9"
    assert "no attribute 'missing'" in run(harness, "missing")["error"]
    start = time.monotonic()
    hung = run(harness, "hangs", 1.0)
    assert (hung["status"], hung["error"]) == ("failed", "took longer than 1 s")
    assert hung["notes"] == ["begun"]
    assert time.monotonic() - start < 20


@pytest.mark.usefixtures("probe")
def test_a_rival_that_lacks_memory_is_left_out(harness: ModuleType) -> None:
    from on_gpu import table

    found = run(harness, "poor")
    a, b, c, d = found["figures"]
    assert (a["medians"], a["ratio"], found["notes"]) == (
        {"ours": 2.0},
        None,
        ["theirs left out: MemoryError: not enough"],
    )
    assert b["error"] == "MemoryError: not enough"
    assert found["error"] == "see b"
    assert (c["ratio"], d["ratio"]) == (1.5, 0.5), "how many times as fast as the rival"
    whole = {"facts": {"device": "H"}, "date": "today", "seconds": 1, "command": "c"}
    shown = table.markdown({**whole, "parts": [found]})
    assert "| a, 2 turns only | 2 s (ours) |  |  | 1 s: missed |" in shown
    assert "| c, 2 turns only | 2 s (ours) | theirs: 3 s | 1.50 | 2 s: met |" in shown
    assert "| b | failed: MemoryError: not enough | | | |" in shown


def test_the_page_holds_the_table_of_the_last_run(harness: ModuleType, tmp_path: Path) -> None:
    """benchmarks/gpu.json, if there was one: else the page says that there was none."""
    from on_gpu import table

    page = REPOSITORY / "docs" / "benchmarks.md"
    made = tmp_path / "page.md"
    made.write_text(page.read_text())
    record = SCRIPT.parent / "gpu.json"
    table.put(made, json.loads(record.read_text()) if record.exists() else None)
    assert made.read_text() == page.read_text()


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--parts", "solver", "--out", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    machine, solver = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert machine["status"] == "failed"
    assert (solver["status"], solver["error"]) == ("not run", "the device cannot be used")


@pytest.mark.usefixtures("harness")
def test_time_that_runs_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu

    monkeypatch.setattr(gpu, "preload", lambda: None)
    monkeypatch.setattr(gpu, "surroundings", lambda device, tiny: None)
    found = gpu.run("cpu", True, 0.0, None)
    assert [part["name"] for part in found["parts"]] == PARTS
    assert {(part["status"], part["error"]) for part in found["parts"]} == {
        ("not run", "no time was left")
    }
