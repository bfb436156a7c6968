"""What tracking costs a training step: with a store, and with servers that do not answer.

python benchmarks/tracking.py PROJECT --repeats 7

PROJECT is a clone in which `dvc repro` or `uotft train` has been run. Sides take turns: a worker
that nobody tracks, then `uotft train` with a store in a file, a server that refuses connections,
one that takes them and never answers, and one that answers 500. The time is the worker's, from its
first logged step to its last one, so that starting and ending are not in it. Last comes what a
worker does for tracking at all, a line in a file: microseconds a line, in turns of 2,000.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from uotft.core import jsonl

SEED = "90"
SIDES = ("untracked", "store", "refused", "hangs", "answers 500")


class Bad(BaseHTTPRequestHandler):
    """Answers 500 below /broken, and nothing at all elsewhere."""

    def do_GET(self) -> None:  # noqa: N802
        if self.path.startswith("/broken"):
            self.send_error(500)
        else:
            threading.Event().wait(600)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def bad_server() -> Iterator[str]:
    """Its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bad)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def step_ms(project: Path, side: str, steps: int, processes: int, address: str) -> float:
    """Milliseconds a step of one training."""
    stores = {
        "refused": "http://127.0.0.1:9",
        "hangs": address,
        "answers 500": f"{address}/broken",
    }
    changes = [f"train.recipe.steps={steps}", "train.recipe.eval_every=0"]
    changes += ["train.recipe.checkpoint_every=0"]
    with tempfile.TemporaryDirectory(prefix="uotft-") as folder:
        store = stores.get(side, f"sqlite:///{folder}/runs.db")
        environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "OMP_NUM_THREADS": "1"}
        if side == "untracked":
            journal = Path(folder) / "journal.jsonl"
            words = ["uotft.runs.worker", str(journal), "train", "digits", "uot", SEED, *changes]
        else:
            words = ["uotft", "train", "--dataset", "digits", "--seed", SEED, "--current"]
            words += [part for change in changes for part in ("--set", change)]
            words += ["--num-processes", str(processes)]
        command = [sys.executable, "-m", *words]
        subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)
        if side == "store":
            times = logged(store)
        elif side == "untracked":
            times = [line["at"] for line in jsonl.read(journal)[0]]
        else:
            [left] = (project / "unsent").iterdir()
            times = [line["at"] for line in jsonl.read(left / "points.jsonl")[0]]
            shutil.rmtree(left)
    return (max(times[:-1]) - min(times)) / (steps - 10)  # the last one is a validation


def logged(store: str) -> list[int]:
    """When the steps of the only training in a store were logged, in ms."""
    import mlflow

    mlflow.set_tracking_uri(store)
    [run] = mlflow.search_runs(experiment_names=["digits"], output_format="list")
    client = mlflow.MlflowClient()
    names = "learning_rate", "val/top1"
    return sorted(p.timestamp for n in names for p in client.get_metric_history(run.info.run_id, n))


def append_us() -> float:
    """Microseconds that one line of a training's usual numbers takes."""
    numbers = {"loss/target": 1.25, "loss/source": 0.75, "learning_rate": 0.04}
    with tempfile.TemporaryDirectory(prefix="uotft-") as folder:
        path, begin = Path(folder) / "points.jsonl", time.perf_counter()
        for step in range(2000):
            jsonl.append(path, {"step": step, "numbers": numbers})
        return (time.perf_counter() - begin) / 2000 * 1e6


def spread(values: list[float], digits: int) -> str:
    """Median, and smallest to largest."""
    middle, low, high = (
        f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def main() -> None:
    """Take turns, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    given = parser.parse_args()
    found: dict[str, list[float]] = {side: [] for side in given.sides}
    with bad_server() as address:
        step_ms(given.project, "store", given.steps, given.processes, address)  # selects, too
        for _ in range(given.repeats):
            for side in given.sides:
                ms = step_ms(given.project, side, given.steps, given.processes, address)
                found[side].append(ms)
                print(f"{side}: {ms:.2f} ms", file=sys.stderr, flush=True)
    base = found[given.sides[0]]
    for side, times in found.items():
        ratios = [t / b for t, b in zip(times, base, strict=True)]
        print(f"| {side} | {spread(times, 2)} | {spread(ratios, 3)} |")
    each = statistics.median(append_us() for _ in range(max(5, given.repeats)))
    print(f"a line in the journal: {each:.0f} microseconds")


if __name__ == "__main__":
    main()
