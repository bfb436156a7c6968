"""What a GPU makes of uotft, in at most 8 minutes: speed beside named rivals, and what must hold.

python benchmarks/gpu.py --docs docs/benchmarks.md    # what `make gpu` runs
python benchmarks/gpu.py --parts solver crops         # some parts alone
python benchmarks/gpu.py --device cpu --tiny          # a dry run, to see that all parts work
python benchmarks/gpu.py --from gpu.json --docs docs/benchmarks.md    # no run, the table alone

It writes gpu.json and gpu.md. It needs this checkout, the packages of requirements.lock, and no
data: all inputs are random. What is missing or fails is recorded, and the rest goes on. Parts come
in the order of their importance, each in a process of its own; what the time was too short for is
named. A figure is the median of five turns, in which the sides alternate; the ratio is the median
of the turns' ratios.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))  # this checkout, also where uotft is not installed

from on_gpu import HEAVY, PARTS, harness, table  # noqa: E402

LEAST = 10.0  # seconds that a part needs to be begun


def settings() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small inputs: a dry run")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS])
    parser.add_argument("--out", type=Path, help="a folder; default: this one, of a dry run none")
    parser.add_argument("--docs", type=Path, help="the page that holds the table")
    parser.add_argument("--from", dest="read", type=Path, help="a gpu.json: no run, its table")
    return parser.parse_args()


def surroundings(device: str, tiny: bool) -> None:
    """Set what libraries read when they are imported, or when they first use the GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looking for a GPU does not begin to use it
    for library in ("JAX", "TENSORFLOW", "CUPY"):  # JAX would take most of the GPU's memory
        os.environ.setdefault(f"POT_BACKEND_DISABLE_{library}", "1")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if tiny:  # on a busy machine threads that wait for each other take minutes
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = "1"


def preload() -> None:
    """Import what takes seconds, once; a part says itself what it lacks."""
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"gpu.py: {error}", file=sys.stderr)


def run(device: str, tiny: bool, minutes: float, names: list[str] | None) -> dict[str, Any]:
    """The records of all parts."""
    began, until = datetime.now(UTC), time.monotonic() + 60 * minutes - harness.GRACE
    surroundings(device, tiny)
    preload()
    records: list[dict[str, Any]] = []
    for part in (p for p in PARTS if not names or p.name in names or p.name == "machine"):
        left = until - time.monotonic()
        if records and records[0]["status"] == "failed":
            records.append(harness.skipped(part, "the device cannot be used"))
        elif left < LEAST:
            records.append(harness.skipped(part, "no time was left"))
        else:
            records.append(harness.run_part(part, device, tiny, min(part.seconds, left)))
        print(table.line(records[-1]), file=sys.stderr, flush=True)
    facts: dict[str, Any] = next((record["facts"] for record in records if "facts" in record), {})
    return {
        "date": began.strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", *sys.argv]),
        "device": device,
        "tiny": tiny,
        "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
        "facts": facts,
        "parts": records,
    }


def main() -> int:
    """Run the parts and write the files; exit code 1 if a part failed."""
    given = settings()
    if given.read:
        found = json.loads(given.read.read_text("utf-8"))
    else:
        found = run(given.device, given.tiny, given.minutes, given.parts)
        real = given.device == "cuda" and not given.tiny
        if folder := given.out or (Path(__file__).parent if real else None):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
            (folder / "gpu.md").write_text(table.markdown(found), "utf-8")
    print(table.markdown(found))
    if given.docs and (found["tiny"] or found["device"] == "cpu" or not found["facts"]):
        print("gpu.py: no run on a GPU, so the page stays as it is", file=sys.stderr)
    elif given.docs:
        table.put(given.docs, found)
    return int(any(record["status"] == "failed" for record in found["parts"]))


if __name__ == "__main__":
    sys.exit(main())
