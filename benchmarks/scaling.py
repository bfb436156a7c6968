"""What grows with the number of source images: processor time, memory and disk of each step.

Synthetic images and features, each case in a process of its own with one thread. Seconds are of the
processor, user and system: other work on the machine hardly changes them. Memory is the most that
the process held (VmHWM), its imports included. An exponent is the slope between the two largest
sizes on a log-log scale: 1 is linear, 0 does not grow.

    python benchmarks/scaling.py --output build/scaling            # all, about 20 minutes
    python benchmarks/scaling.py --parts means select --largest 100000
    python benchmarks/scaling.py --docs docs/scaling.md            # all, written into the page
"""

from __future__ import annotations

import argparse
import functools
import http.server
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, DIMENSIONS, CLUSTERS, TARGETS = 1000, 512, 200, 100
PASSES = 3  # of k-means
PER_TAR = 10_000
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
START, END = "<!-- written by benchmarks/scaling.py -->", "<!-- end of benchmarks/scaling.py -->"


def features(path: Path, rows: int) -> np.ndarray:
    """An npy (rows, 512) float16 around 1000 centres, written block by block; mapped."""
    from uotft.core import storage

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, DIMENSIONS), np.float32)
    made = np.lib.format.open_memmap(path, "w+", np.float16, (rows, DIMENSIONS))
    for start in range(0, rows, PER_TAR):
        part = made[start : start + PER_TAR]
        own = np.arange(start, start + len(part)) % CLASSES
        part[:] = centres[own] + rng.standard_normal(part.shape, np.float32)
    del made
    return storage.mapped(path)


def picture(number: int, side: int) -> bytes:
    """A JPEG of ``side`` pixels: noise in blocks of eight, which gives it the usual bytes."""
    from PIL import Image

    rng, file = np.random.default_rng(number), io.BytesIO()
    small = rng.integers(0, 255, (max(1, side // 8), max(1, side // 8), 3), np.uint8)
    Image.fromarray(small).resize((side, side)).save(file, "JPEG")
    return file.getvalue()


def tars(folder: Path, images: int, per_tar: int, side: int) -> int:
    """Shards of some images with 1000 classes; returns their bytes."""
    from uotft.data import shards

    contents = [picture(number, side) for number in range(64)]

    def members(start: int) -> Iterator[tuple[str, bytes]]:
        for i in range(start, min(start + per_tar, images)):
            # the bytes behind a JPEG's end make every file another one
            yield f"{i:09}.jpg", contents[i % 64] + i.to_bytes(8, "big")
            yield f"{i:09}.cls", b"%d" % (i % CLASSES)

    for number, start in enumerate(range(0, images, per_tar)):
        with (folder / f"web-{number:05}.tar").open("wb") as file:
            shards.write(file, members(start))
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def index(images: int, folder: Path) -> Callable[[], dict[str, float]]:
    """`uotft prepare` of shards, without its pixel cache: headers, SHA-256, sizes, parts."""
    from uotft.core import config, storage
    from uotft.core.records import silently

    tars(folder, images, PER_TAR, 16)
    section = {"kind": "shards", "path": str(folder), "test": 0.0, "val": 0.1}
    module, settings = config.dataset_section(section, "web")

    def step() -> dict[str, float]:
        storage.write_images(folder / "web.npz", module.load(settings, silently, Path()))
        return {"disk": (folder / "web.npz").stat().st_size}

    return step


def means(images: int, folder: Path) -> Callable[[], dict[str, float]]:
    """Class means of features on disk."""
    from uotft.core import storage
    from uotft.selection import features as pools

    points, labels = features(folder / "f.npy", images), np.arange(images) % CLASSES

    def step() -> dict[str, float]:
        pools.class_means(storage.blocks(points), labels, CLASSES)
        return {"disk": (folder / "f.npy").stat().st_size}

    return step


def kmeans(images: int, folder: Path, memory: float = 0) -> Callable[[], dict[str, float]]:
    """200 clusters of features on disk, block by block; at most 3 passes and the last one."""
    from uotft.core.settings import Cluster
    from uotft.selection import clustering

    points = features(folder / "f.npy", images)
    settings = Cluster(clusters=CLUSTERS, iterations=PASSES, memory=memory)
    clustering.kmeans(points[:2000], replace_(settings, clusters=4))  # imports

    def step() -> dict[str, float]:
        found = clustering.kmeans(points, settings)
        return {"objective": found.objective, "passes": found.iterations + 1}

    return step


def replace_(settings: Any, **changes: Any) -> Any:
    """Other settings."""
    return settings.model_copy(update=changes)


def select(units: int, folder: Path) -> Callable[[], dict[str, float]]:
    """UOT between so many source units and 100 target classes, as `uotft select`."""
    from uotft.core.records import ClassBank
    from uotft.pipeline.select import Extras, bank_request, select_means

    rng = np.random.default_rng(1)

    def bank(rows: int) -> ClassBank:
        points = rng.standard_normal((rows, DIMENSIONS), np.float32)
        names = tuple(f"{row:06}" for row in range(rows))
        return ClassBank(points, names, np.ones(rows, np.int64))

    request = bank_request("uot", {}, {"top_k": 100}, 0)
    target, source = bank(TARGETS), bank(units)
    select_means(bank(200), target, "", request, Extras())  # imports

    def step() -> dict[str, float]:
        select_means(source, target, "", request, Extras())
        return {}

    return step


STEPS: dict[str, tuple[Callable[..., Callable[[], dict[str, float]]], list[int]]] = {
    "index": (index, [10_000, 100_000, 1_000_000]),
    "means": (means, [10_000, 100_000, 1_000_000]),
    "k-means": (kmeans, [10_000, 100_000, 1_000_000]),
    "k-means, all in memory": (
        functools.partial(kmeans, memory=64),
        [10_000, 100_000, 1_000_000],
    ),
    "select": (select, [100, 1_000, 10_000, 100_000]),
}
EMBED = {1: [256, 512, 1024], 2: [512]}  # {processes: images}


def peak_mib() -> float:
    """The most memory that this process has held; its start does not inherit the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(part: str, size: int, folder: Path) -> dict[str, float]:
    """Run one step in this process."""
    step = STEPS[part][0](size, folder)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew, without what made the data
    wall, cpu = time.perf_counter(), time.process_time()
    facts = step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"size": size, "cpu": cpu, "wall": wall, "MiB": peak_mib(), **facts}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server of this machine for a folder; its address."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Silent, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  # only sizes asked
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def weights(folder: Path) -> Path:
    """A ResNet-18 with random weights."""
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")
    return folder / "resnet18.pth"


def embed(images: int, processes: int) -> dict[str, float]:
    """`uotft bank make --shards` from a server, 64 images a shard and room for three shards.

    Each process has one thread. Without what starting one takes, measured by no new shard.
    """
    with tempfile.TemporaryDirectory(dir=".") as place:
        folder = Path(place).absolute()
        (folder / "web").mkdir()
        size = tars(folder / "web", images, 64, 300)
        shards = math.ceil(images / 64)
        room = 3.2 * size / shards
        words = [sys.executable, "-m", "uotft", "-q", "bank", "make", "--output", "web.safetensors"]
        words += ["--backbone", f"resnet18:{weights(folder)}", "--room", str(room / 2**30)]
        with serving(folder / "web") as address:
            words += ["--shards", f"{address}/web-{{00000..{shards - 1:05}}}.tar"]
            whole = watched(words, folder, processes)
            alone = watched(words, folder, 1)
    return {
        "size": images, "cpu": whole["cpu"] - processes * alone["cpu"], "MiB": whole["MiB"],
        "wall": whole["wall"] - alone["wall"], "disk": whole["disk"], "tars": size, "room": room,
    }  # fmt: skip


def watched(words: list[str], folder: Path, processes: int) -> dict[str, float]:
    """Run a command so many times at once: what it took, and the most bytes of tars on the disk."""
    began, disk = time.perf_counter(), 0
    running = [subprocess.Popen(words, cwd=folder, env=ALONE) for _ in range(processes)]
    pids, used = {process.pid for process in running}, []
    while pids:
        for pid in [*pids]:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                pids.remove(pid)
                used.append(usage)
                assert status == 0, f"{words}: {status}"
        there = [*folder.glob("web.work/*.tar"), *folder.glob("web.work/.*.part")]
        disk = max(disk, sum(os.stat(p).st_size for p in there if p.exists()))
        time.sleep(0.01)
    return {
        "cpu": sum(u.ru_utime + u.ru_stime for u in used),
        "MiB": max(u.ru_maxrss for u in used) / 1024,
        "wall": time.perf_counter() - began,
        "disk": disk,
    }


def run(parts: list[str], largest: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """{part: one record a size}, medians where a size is repeated."""
    results: dict[str, list[dict[str, float]]] = {}
    for part in parts:
        if part == "embed":
            continue
        for size in [size for size in STEPS[part][1] if size <= largest]:
            found = []
            for _ in range(repeats if size < 1_000_000 else 1):
                with tempfile.TemporaryDirectory(dir=".") as folder:
                    words = [sys.executable, __file__, "--measure", part, str(size), folder]
                    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, env=ALONE)
                found.append(json.loads(done.stdout.splitlines()[-1]))
            middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
            results.setdefault(part, []).append(middle)
            print(f"{part}: {middle}", file=sys.stderr, flush=True)
    for processes, sizes in EMBED.items() if "embed" in parts else ():
        for size in sizes:
            name = f"embed, {processes} process" + "es" * (processes > 1)
            results.setdefault(name, []).append(embed(size, processes))
            print(f"{name}: {results[name][-1]}", file=sys.stderr, flush=True)
    return results


def slope(records: list[dict[str, float]], key: str) -> float:
    """The exponent between the two largest sizes."""
    first, last = records[-2:]
    return math.log(last[key] / first[key]) / math.log(last["size"] / first["size"])


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Rows of Markdown: a part and a size each, and the exponents."""
    rows = ["| step | number | processor | memory | exponent of time, of memory |",
            "|---|---|---|---|---|"]  # fmt: skip
    for part, records in results.items():
        for record in records:
            seconds = f"{record['cpu']:,.2f} s" if record["cpu"] < 10 else f"{record['cpu']:,.0f} s"
            ends = record is records[-1] and len(records) > 1
            grown = f"{slope(records, 'cpu'):.2f}, {slope(records, 'MiB'):.2f}" if ends else ""
            rows.append(f"| {part} | {record['size']:,.0f} | {seconds} | {record['MiB']:,.0f} MiB "
                        f"| {grown} |")  # fmt: skip
    return "\n".join(rows)


def ahead(results: dict[str, list[dict[str, float]]], images: float = 1e9) -> str:
    """Rows of Markdown: what each step would take, in proportion from its largest size."""
    rows = ["| step | processor, an image | of 10^9: one core | memory, an image | of 10^9 |",
            "|---|---|---|---|---|"]  # fmt: skip
    for part, records in results.items():
        if part.startswith("select") or len(records) < 2:
            continue
        before, last = records[-2:]
        each = last["cpu"] / last["size"]
        more = 2**20 * (last["MiB"] - before["MiB"]) / (last["size"] - before["size"])
        grown = f"{more:,.0f} bytes" if more >= 1 else "none"
        memory = f"{last['MiB'] / 1024 + max(0, more) * images / 2**30:,.1f} GiB"
        memory = memory if more >= 1 else f"{last['MiB'] / 1024:,.1f} GiB"
        rows.append(f"| {part} | {1e6 * each:,.1f} µs | {each * images / 3600:,.1f} h | {grown} "
                    f"| {memory} |")  # fmt: skip
    return "\n".join(rows)


def plot(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Time and memory against the number, one line a part."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for part, records in results.items():
        for axis, key in zip(axes, ("cpu", "MiB"), strict=True):
            sizes = [record["size"] for record in records]
            axis.loglog(sizes, [record[key] for record in records], "o-", label=part)
    axes[0].set(xlabel="images (select: units)", ylabel="processor seconds")
    axes[1].set(xlabel="images (select: units)", ylabel="most memory, MiB")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=80, metadata={"Software": None})


def put(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(START)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{START}\n{text}\n{END}{after}", "utf-8")


def main() -> None:
    """Measure, or print the table of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=[*STEPS, "embed"])
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3, help="below a million")
    parser.add_argument("--output", type=Path, help="folder of scaling.json")
    parser.add_argument("--read", type=Path, help="an earlier scaling.json, in place of a run")
    parser.add_argument("--docs", type=Path, help="the page, and images/scaling.png beside it")
    parser.add_argument(
        "--measure", nargs=3, metavar=("PART", "SIZE", "FOLDER"), help="used inside"
    )
    words = parser.parse_args()
    if words.measure:
        part, size, folder = words.measure
        print(json.dumps(measure(part, int(size), Path(folder))))
        return
    results = (
        json.loads(words.read.read_text("utf-8"))
        if words.read
        else run(words.parts, words.largest, words.repeats)
    )
    if words.output:
        words.output.mkdir(parents=True, exist_ok=True)
        (words.output / "scaling.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    proportion = "In proportion, from the two largest numbers of each step:"
    text = "\n\n".join([table(results), proportion, ahead(results)])
    print(text)
    if words.docs:
        put(words.docs, text)
        plot(results, words.docs.parent / "images" / "scaling.png")


if __name__ == "__main__":
    main()
