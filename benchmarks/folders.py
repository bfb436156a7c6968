"""`uotft prepare` of a folder of many small images, beside `dvc add` of the same folder.

prepare hashes (SHA-256), measures and decodes every file and writes its manifest and its pixels;
`dvc add` hashes (MD5), copies every file into its cache and writes a list of them, with
--no-commit it hashes only. A fourth side prepares the same images from shards of 10,000. Each turn
starts without caches, on files that have just been read. The memory is the largest of the process,
and at least that of this script, some 100 MiB; the sides take turns, every second time in reverse.

python benchmarks/folders.py --repetitions 5                # 100,000 PNGs of 32 x 32 pixels
python benchmarks/folders.py --files 10000 --format jpeg
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from uotft.data import shards

REPOSITORY = Path(__file__).parents[1]
CLASSES = 100
SIDES = ("uotft prepare", "dvc add", "dvc add --no-commit", "uotft prepare, shards")
PER_SHARD = 10_000


def make(folder: Path, files: int, side: int, form: str) -> None:
    """Smooth random pictures, as photographs compress, in one folder a class."""
    rng = np.random.default_rng(0)
    for i in range(files):
        place = folder / f"class-{i % CLASSES:03d}"
        place.mkdir(parents=True, exist_ok=True)
        few = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        content = io.BytesIO()
        few.resize((side, side), Image.Resampling.BICUBIC).save(content, form)
        (place / f"{i:07d}.{form}").write_bytes(content.getvalue())


def pack(images: Path, root: Path) -> Path:
    """The same images as shards."""
    files = sorted(path for path in images.rglob("*") if path.is_file())
    folder = root / "shards"
    folder.mkdir()
    for start in range(0, len(files), PER_SHARD):
        some = files[start : start + PER_SHARD]
        pairs = ((p, str(int(p.parent.name[-3:])).encode()) for p in some)
        members = (m for p, c in pairs for m in ((f"{p.stem}.cls", c), (p.name, p.read_bytes())))
        with (folder / f"part-{start // PER_SHARD:03d}.tar").open("wb") as file:
            shards.write(file, members)
    return folder


def project(root: Path, images: Path, side: str, stored: int) -> list[str]:
    """A fresh project in which one side runs; returns its command."""
    if side.startswith("dvc"):
        subprocess.run(
            [sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=root, check=True
        )
        shutil.copytree(images, root / "images")
        return [sys.executable, "-m", "dvc", "add", "-q", "images", *side.split()[2:]]
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    kind, path = ("shards", pack(images, root)) if side == SIDES[3] else ("folder", images)
    params["datasets"]["many"] = {
        "kind": kind,
        "path": str(path),
        "stored": stored,
        "size": stored,
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return [sys.executable, "-m", "uotft", "prepare", "--dataset", "many"]


def measure(command: list[str], root: Path) -> tuple[float, float, float]:
    """(seconds, seconds of all cores, MiB at most) of a command; it may talk on standard error."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=root, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    seconds = time.perf_counter() - start
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Print one line a side: medians, and the ratio of its time to the first side's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=32, help="pixels a side")
    parser.add_argument("--format", choices=["png", "jpeg"], default="png")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    words = parser.parse_args()
    results: dict[str, list[tuple[float, float, float]]] = {side: [] for side in words.sides}
    with tempfile.TemporaryDirectory(prefix="uotft-folders-") as folder:
        images = Path(folder, "images")
        make(images, words.files, words.side, words.format)
        for turn in range(words.repetitions):
            for side in words.sides[:: -1 if turn % 2 else 1]:
                with tempfile.TemporaryDirectory(dir=folder) as root:
                    command = project(Path(root), images, side, words.side)
                    results[side].append(measure(command, Path(root)))
                print(f"{side}, turn {turn}: {results[side][-1]}", file=sys.stderr, flush=True)
    cores = len(os.sched_getaffinity(0))
    print(
        f"{words.files} {words.format} of {words.side} px, {words.repetitions} turns, {cores} cores"
    )
    first = statistics.median(seconds for seconds, *_ in results[words.sides[0]])
    for side, found in results.items():
        seconds, cpu, memory = (statistics.median(column) for column in zip(*found, strict=True))
        ratio = f"x{seconds / first:.2f}"
        print(f"{side}: {seconds:.1f} s, {ratio}, {cpu:.1f} s of cores, {memory:.0f} MiB at most")


if __name__ == "__main__":
    main()
