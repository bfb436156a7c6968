"""A soak: trainings are started, killed, started again for MINUTES; nothing grows, all is exact.

python tests/faults/soak.py [MINUTES] [FOLDER]    (`make soak`; writes FOLDER/soak.csv, soak.txt)

For the last three quarters `uotft train` is started as a user does, with one worker or two, and
ended at a random moment: SIGKILL of the process that the user started, SIGKILL of a worker,
SIGTERM, Ctrl-C. When a training has finished, its files must be those of one without a stop. The
first quarter is one process that trains, is stopped and goes on, for what stays in a process.
Less than 20 minutes soak the tiny project of the tests, more the repository's own settings.
"""

from __future__ import annotations

import csv
import gc
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.commands import call, users_environment  # noqa: E402
from support.projects import clone  # noqa: E402
from support.repository import REPOSITORY  # noqa: E402
from support.watched_commands import MADE, WORDS, inside, running  # noqa: E402

LEFT, CELL = Path("unfinished/models/digits/uot/0"), Path("models/digits/uot/0")
KINDS = ("SIGKILL of the watcher", "SIGKILL of a worker", "SIGTERM", "Ctrl-C")
COLUMNS = tuple(f"{who} {what}" for who in ("watcher", "worker", "process")
                for what in ("MiB", "files", "threads"))  # fmt: skip
FITTED = (*COLUMNS, "project MiB")
COLUMNS += ("number of processes", "unfinished KiB", "unfinished files", "slots", "project MiB")
AGE_S = 4.0  # after the first new checkpoint, when all is imported, a training is measured
QUIET_S = 40  # in which all processes of a training that was ended are gone
EVERY = 20  # steps between checkpoints


def main(minutes: float, out: Path) -> int:
    """Soak; returns the exit code."""
    began, end = time.monotonic(), time.monotonic() + 60 * minutes
    folder = Path(tempfile.mkdtemp(prefix="uotft-soak-"))
    rows: list[dict[str, object]] = []
    try:
        project = clone(folder / "project")
        prepare(project, tiny=minutes < 20)
        whole = {1: uninterrupted(project, 1)}
        last = time.monotonic()
        whole[2] = uninterrupted(project, 2)
        last = time.monotonic() - last  # what the last training of all may take
        print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
        params, seconds = (project / "params.yaml").read_text(), (end - time.monotonic()) / 4
        seconds = max(seconds, 20)
        words = [sys.executable, str(Path(__file__)), "--inside", str(seconds)]
        lived = subprocess.run(
            words, cwd=project, env=users_environment(), stdout=subprocess.PIPE, text=True,
            timeout=60 * minutes + 600, check=True,
        )  # fmt: skip
        (project / "params.yaml").write_text(params)
        rows += list(csv.DictReader(lived.stdout.splitlines()))
        outside(project, whole, end - last - QUIET_S, lambda row: rows.append(row | hours(began)))
    finally:
        for pid in inside(folder / "project"):  # of a soak that has failed
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (out / "soak.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    lines, good = summary(rows)
    (out / "soak.txt").write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")
    return 0 if good else 1


def hours(began: float) -> dict[str, float]:
    return {"hours": round((time.monotonic() - began) / 3600, 5)}


def prepare(project: Path, *, tiny: bool) -> None:
    """Everything up to the selection, of a training of some hundred steps."""
    path = project / "params.yaml"
    if not tiny:
        shutil.copy(REPOSITORY / "params.yaml", path)
    params = yaml.safe_load(path.read_text())
    params |= {"strategies": ["uot"], "seeds": [0]}
    steps = {"steps": 2400 if tiny else 600, "log_every": 1, "eval_every": 100}
    params["train"]["recipe"] |= {**steps, "checkpoint_every": EVERY}
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    done = call("dvc", "repro", "select", "overlap", cwd=project, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]


def start(project: Path, world: int) -> subprocess.Popen[bytes]:
    """Start a training as DVC does, with what is upstream up to date."""
    command = [sys.executable, "-m", "uotft", *WORDS, "--num-processes", str(world)]
    environment = users_environment() | {"DVC_STAGE": "train"}
    with (project / "soak.log").open("ab") as log:
        return subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)


def made(project: Path) -> list[str]:
    """The SHA-256 of what a training made, which is removed."""
    files = [project / CELL / name for name in MADE]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    shutil.rmtree(project / CELL)
    return digests


def uninterrupted(project: Path, world: int) -> list[str]:
    assert start(project, world).wait(3600) == 0, (project / "soak.log").read_text()[-3000:]
    return made(project)


def outside(
    project: Path, whole: dict[int, list[str]], end: float, note: Callable[[dict], None]
) -> None:
    """Start, end, start again, until the time has come; the training under way is let finish."""
    cycle, resumed = 0, 0
    while time.monotonic() < end or not cycle:
        world, done = 1 + (cycle > 0 and random.random() < 0.5), False
        while not done:
            cycle, before = cycle + 1, step(project)
            # towards the end of the time nothing is ended any more
            kind = random.choice(KINDS) if time.monotonic() < end else "none"
            row = one(project, world, kind, before)
            done = (project / CELL / MADE[-1]).exists() and not (project / LEFT).exists()
            resumed += before > 0
            row |= {"part": "outside", "cycle": cycle, "processes": world, "resumed at": before}
            if done:
                exact = made(project) == whole[world]
                row |= {"finished": 1, "exact": int(exact), "resumes": resumed}
                resumed = 0
            note(row)


def step(project: Path) -> int:
    """The step of the newest checkpoint."""
    steps = [int(p.parent.name[5:]) for p in (project / LEFT).glob("step-*/state.json")]
    return max(steps, default=0)


def one(project: Path, world: int, kind: str, before: int) -> dict[str, object]:
    """One start, measured AGE_S after its first checkpoint, and ended at a random moment."""
    process, begun, early = start(project, world), time.monotonic(), random.random() < 0.25
    row: dict[str, object] = {"kind": kind}
    first: float | None = None
    wait = random.uniform(0, 10) if early else None  # in imports, or while it is being restored
    while process.poll() is None:
        if wait is not None and time.monotonic() - begun > wait:
            break
        if first is None and step(project) > before:
            first = time.monotonic()
            wait = first - begun + random.uniform(0, 2 * AGE_S) if kind != "none" else None
        if first and "age s" not in row and time.monotonic() > first + AGE_S:
            row |= measure(project, process.pid) | {"age s": round(time.monotonic() - begun, 1)}
        time.sleep(0.01)
    workers = running(project, "uotft.runs.worker")
    row["ended at"] = step(project)
    if process.poll() is None and kind != "none":
        pid = random.choice(workers) if "worker" in kind and workers else process.pid
        number = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}.get(kind, signal.SIGKILL)
        os.kill(pid, number)
    code, asked = process.wait(QUIET_S + 20 if kind != "none" else 3600), time.monotonic()
    while (left := inside(project)) and time.monotonic() < asked + QUIET_S:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    files = [p for p in (project / "unfinished").rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in project.rglob("*") if p.is_file())
    return row | {
        "code": code, "orphans": len(left), "unfinished files": len(files),
        "unfinished KiB": sum(p.stat().st_size for p in files) // 1024,
        "slots": len([*(project / LEFT).glob("step-*")]),
        "project MiB": round(size / 2**20, 2),
    }  # fmt: skip


def measure(project: Path, watcher: int) -> dict[str, object]:
    """Peak memory, open files and threads of the watcher and of its first worker."""
    pids = inside(project)
    workers = [pid for pid in running(project, "uotft.runs.worker") if pid != watcher]
    if not workers:  # it has just ended
        return {}
    row: dict[str, object] = {"number of processes": len(pids)}
    for name, pid in (("watcher", watcher), ("worker", max(workers))):
        for what, value in of(pid, "VmHWM").items():
            row[f"{name} {what}"] = value
    return row


def of(pid: int, memory: str) -> dict[str, float]:
    """Memory, open files and threads of a process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return {}
    words = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    mib = round(int(words.get(memory, "0 kB").split()[0]) / 1024, 1)
    return {"MiB": mib, "files": files, "threads": int(words["Threads"])}


def long_lived(seconds: float) -> None:
    """Train, be stopped and go on in this one process; writes CSV to standard output."""
    from support.tiny_training import train  # the same cell: digits, uot, seed 0
    from uotft.core.errors import Interrupted

    root, began, whole, resumes = Path.cwd(), time.monotonic(), [], 0
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["train"]["recipe"] |= {"steps": 120, "checkpoint_every": 10}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    writer, cycle = None, 0
    while time.monotonic() < began + seconds or resumes:
        over = time.monotonic() > began + seconds
        asked = iter(range(10**9 if over else random.randint(1, 80)))
        try:
            train(root, stop=lambda asked=asked: next(asked, None) is None)
        except Interrupted:
            finished = False
            resumes += 1
        else:
            finished = True
        exact = None
        if finished:
            digests = made(root)
            whole = whole or digests
            exact = int(digests == whole)
        gc.collect()
        cycle += 1
        row = {
            "part": "inside", "cycle": cycle, "finished": int(finished), "exact": exact,
            "resumes": resumes if finished else None,
            **hours(began), **{f"process {k}": v for k, v in of(os.getpid(), "VmRSS").items()},
        }  # fmt: skip
        resumes = 0 if finished else resumes
        if writer is None:
            writer = csv.DictWriter(sys.stdout, row)
            writer.writeheader()
        writer.writerow(row)
        sys.stdout.flush()


def summary(rows: list[dict]) -> tuple[list[str], bool]:
    """What there is to say, and whether all resumes were exact and nothing was left behind."""
    lines, good = [], True
    for part in ("outside", "inside"):
        own = [row for row in rows if row["part"] == part]
        finished = [row for row in own if str(row.get("finished") or 0) == "1"]
        exact = [row for row in finished if str(row["exact"]) == "1"]
        resumes = sum(int(row["resumes"] or 0) for row in finished)
        sure = sum(int(row["resumes"] or 0) for row in exact)
        good &= len(exact) == len(finished) > 0
        lines.append(
            f"{part}: {len(own)} starts, {len(finished)} trainings finished, {len(exact)} of them "
            f"bit-identical to one without a stop; {sure} of {resumes} resumes exact"
        )
        for name in COLUMNS:
            groups: dict[str, list[dict]] = {}
            for row in own:
                if row.get(name) not in (None, ""):
                    groups.setdefault(str(row.get("processes", "")), []).append(row)
            for world, group in sorted(groups.items()):
                of_world = f" ({world} workers)" if world else ""
                lines.append(f"  {name}{of_world}: {growth(group, name)}")
    ended = [row for row in rows if row.get("kind") not in (None, "", "none")]
    lines += [f"  {kind}: {sum(r['kind'] == kind for r in ended)}" for kind in KINDS]
    orphans = sum(int(row.get("orphans") or 0) for row in rows)
    good &= not orphans
    return [*lines, f"  orphans: {orphans}"], good


def growth(rows: list[dict], name: str) -> str:
    """The values of a column, and the slope of a line through them in percent an hour."""
    x, y = (np.array([float(row[key]) for row in rows]) for key in ("hours", name))
    said = f"{y.min():g} to {y.max():g} in {len(y)}, first {y[0]:g}, last {y[-1]:g}"
    if len(y) < 5 or not y.std() or not x.std() or name not in FITTED:
        return f"{said}: constant" if not y.std() else said
    kept = x >= x.min() + 0.1 * np.ptp(x)  # what a process needs once is there by then
    (slope, _), cov = np.polyfit(x[kept], y[kept], 1, cov=True)
    share = 100 / y.mean()
    return f"{said}: {slope * share:+.2f} ± {1.96 * cov[0, 0] ** 0.5 * share:.2f} %/h"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        long_lived(float(sys.argv[2]))
    else:
        wanted = [*sys.argv[1:], *("60", "reports/soak")[len(sys.argv) - 1 :]]
        sys.exit(main(float(wanted[0]), Path(wanted[1])))
