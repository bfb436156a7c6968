"""A run in files until MLflow has it, so that a training waits for no server and loses nothing.

    unsent/ID.N/run.json       which run it is, and of which store
    unsent/ID.N/points.jsonl   what is measured; the workers write it
    unsent/ID.N/events.jsonl   begin, tag, table, files, model, test, end
    unsent/ID.N/files/         the artifacts, linked: what replaces them later leaves these

ID is ours, since MLflow numbers its runs itself; N counts how often the run was begun or gone on
with. `delivery` sends such a folder and removes it: from the beginning on in a process of its own
(`sender`), or at the end, of what is over in a moment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from uotft.core import jsonl, locks, storage
from uotft.core.errors import Interrupted, Pruned
from uotft.tracking.store import home

UNSENT = "unsent"
RUN, POINTS, EVENTS, SENT = "run.json", "points.jsonl", "events.jsonl", "sent.json"
OWNER = ".owner.lock"  # held by the process that writes the events
PATIENCE_S = 120  # how long a sender may make no progress once its run has ended
_inside: list[str] = []  # the runs that this process is inside of, outermost first


class Run:
    """One run; what is said of it is a line in its journal, and MLflow has it as soon as it can.

    ``open`` are the descriptors by which a sender knows that somebody may write more.
    """

    def __init__(self, folder: Path, ident: str, keep: Sequence[int] = ()) -> None:
        self.folder, self.id, self.points, self.open = folder, ident, folder / POINTS, keep
        self.kept = 0

    def begin(
        self, params: dict[str, Any], tags: dict[str, str], data: dict[str, str] | None = None
    ) -> None:
        """Say what it is. ``data`` are the data sets that it reads, {role: name}.

        Of these count those that ``tags`` have a version of.
        """
        paths = {role: f"data/{name}.npz" for role, name in (data or {}).items()}
        inputs = [
            {"name": name, "path": paths[role], "md5": tags[f"dvc.{paths[role]}"], "role": role}
            for role, name in (data or {}).items()
            if f"dvc.{paths[role]}" in tags
        ]
        self.say("begin", params={k: str(v) for k, v in params.items()}, tags=tags, data=inputs)

    def log(self, points: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Numbers by step, (step, {name: value}); the first one of a name and a step counts."""
        for step, numbers in points:
            jsonl.append(self.points, {"step": step, "numbers": numbers})

    def tag(self, tags: dict[str, str]) -> None:
        """Set tags."""
        self.say("tag", tags=tags)

    def table(self, rows: list[dict[str, Any]], columns: tuple[str, ...], name: str) -> None:
        """A table artifact, which the MLflow page shows as one; one that is there stays."""
        self.say("table", columns={c: [row[c] for row in rows] for c in columns}, name=name)

    def files(self, folder: Path, name: str | None = None) -> None:
        """Every file of a folder as an artifact."""
        self.say("files", kept=self._keep(folder), name=name)

    def model(self, folder: Path) -> None:
        """The folder's weights as a model that MLflow loads."""
        self.say("model", kept=self._keep(folder))

    def test(self, numbers: dict[str, float], folder: Path) -> None:
        """Test metrics, and the files about them."""
        self.say("test", numbers=numbers, kept=self._keep(folder))

    def say(self, do: str, **words: Any) -> None:
        """One more event."""
        jsonl.append(self.folder / EVENTS, {"do": do, **words})

    def _keep(self, folder: Path) -> str:
        """The files of a folder as they are now, at no cost where the disk knows links."""
        self.kept += 1
        name = f"files/{self.kept}"
        shutil.copytree(folder, self.folder / name, copy_function=_link)
        return name


@contextmanager
def run(
    root: Path, experiment: str, name: str, *, run_id: str = "", watched: bool = False
) -> Iterator[Run]:
    """A run: FINISHED at the end, KILLED when interrupted, FAILED on any other exception.

    A new one, or the one that had our ``run_id``, which goes on if the store still has it. Inside
    the block of another one it is that one's child. ``watched``: it is sent from now on.
    """
    ident = run_id or uuid4().hex
    about = {"id": ident, "experiment": experiment, "name": name, "parent": ["", *_inside][-1]}
    with written(root, about) as folder, _sent(root, folder, watched) as keep:
        made, status = Run(folder, ident, keep), "FAILED"
        _inside.append(ident)
        try:
            yield made
            status = "FINISHED"
        except (KeyboardInterrupt, Interrupted, Pruned):
            status = "KILLED"
            raise
        finally:
            _inside.remove(ident)
            made.say("end", status=status)


@contextmanager
def written(root: Path, about: dict[str, str]) -> Iterator[Path]:
    """The folder of a new journal, there with its description or not at all, and its owner's."""
    unsent = home(root) / UNSENT
    unsent.mkdir(mode=0o700, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".", dir=unsent))
    with locks.alone(made / OWNER, f"{made}: it has an owner"):
        storage.write_json(made / RUN, about | {"store": os.environ.get("MLFLOW_TRACKING_URI", "")})
        before = [int(path.suffix[1:]) for path in unsent.glob(f"{about['id']}.*")]
        yield made.rename(unsent / f"{about['id']}.{max(before, default=0) + 1}")


@contextmanager
def _sent(root: Path, folder: Path, watched: bool) -> Iterator[Sequence[int]]:
    """Send a journal while the block writes it, or after it, as far as the store takes it."""
    if not watched:
        try:
            yield ()
        finally:
            from uotft.tracking.delivery import send

            _say_what_is_left(folder, send(root, folder))
        return
    here, keep = os.pipe()
    # a session of its own: neither Ctrl-C nor the end of this process ends it before it has sent
    command = [sys.executable, "-m", "uotft.tracking.sender", str(root), str(folder)]
    sender = subprocess.Popen(command, stdin=here, start_new_session=True)
    os.close(here)
    try:
        yield [keep]
    finally:
        os.close(keep)
        _await(sender, folder)
        _say_what_is_left(folder)


def _await(sender: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the sender to end, as long as it makes progress; a second Ctrl-C ends it, too."""
    sent, before, now = folder / SENT, -1, 0
    try:
        while before != now:
            try:
                sender.wait(PATIENCE_S)
                return
            except subprocess.TimeoutExpired:
                before, now = now, sent.stat().st_mtime_ns if sent.exists() else 0
    finally:
        sender.kill()
        sender.wait()


def _say_what_is_left(folder: Path, why: str = "") -> None:
    if folder.is_dir():
        said = f"uotft: {why + '; ' if why else ''}what MLflow does not have yet is in {folder}: "
        print(f"{said}`uotft sync` sends it", file=sys.stderr)  # noqa: T201


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
