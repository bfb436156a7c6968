"""The outbox: keeps a run on disk until MLflow has it, so that no training waits for a server.

    unsent/ID.N/run.json       the run: id, experiment, name, project, parent, store
    unsent/ID.N/points.jsonl   metrics by step; the workers write it
    unsent/ID.N/events.jsonl   the event log: begin, tag, table, files, model, test, end
    unsent/ID.N/files/         artifacts, as hard links: these stay when the originals are replaced
    unsent/ID.N/sent.json      progress of the sender
    unsent/ID.N/refused.jsonl  parts that MLflow refused for good; the folder then stays

ID is our own id of the run, because MLflow assigns its ids only later. N counts how often the run
was started or resumed. Projects that share a store share its outbox. `session` writes such a
folder; `delivery` sends and removes it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from uotft.core import environment, jsonl, locks, storage

OUTBOX = "unsent"  # the folder keeps this name, since projects have it
RUN, POINTS, EVENTS = "run.json", "points.jsonl", "events.jsonl"
SENT, REFUSED = "sent.json", "refused.jsonl"
OWNER = ".owner.lock"  # held by the process that writes the event log
SENDER = ".sender.lock"  # held by the process that sends the folder
FAILURE = "failure"  # the tag with the reason why a run failed


class Run:
    """One run; each method appends to its folder, and the sender passes that on to MLflow.

    ``open`` are file descriptors that workers inherit: while one is open, the sender waits on.
    """

    def __init__(self, folder: Path, ident: str = "", held: Sequence[int] = ()) -> None:
        self.folder, self.id, self.points, self.open = folder, ident, folder / POINTS, held
        self.kept = 0

    def begin(
        self, params: dict[str, Any], tags: dict[str, str], data: dict[str, str] | None = None
    ) -> None:
        """Record settings, tags and ``data``, {role: name} of the data sets that the run reads.

        A data set is recorded only if ``tags`` has its version.
        """
        inputs = [
            {"name": name, "path": path, "md5": tags[f"dvc.{path}"], "role": role}
            for role, name in (data or {}).items()
            if f"dvc.{(path := f'data/{name}.npz')}" in tags
        ]
        self._event("begin", params={k: str(v) for k, v in params.items()}, tags=tags, data=inputs)

    def log(self, points: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Record metrics, (step, {name: value}); the first value of a name and step counts."""
        for step, numbers in points:
            jsonl.append(self.points, {"step": step, "numbers": numbers})

    def tag(self, tags: dict[str, str]) -> None:
        """Set tags."""
        self._event("tag", tags=tags)

    def table(self, rows: list[dict[str, Any]], columns: tuple[str, ...], name: str) -> None:
        """Record ``rows`` as a table, which MLflow's page displays; an existing table stays."""
        self._event("table", columns={c: [row[c] for row in rows] for c in columns}, name=name)

    def files(self, folder: Path, name: str | None = None) -> None:
        """Record each file of a folder as an artifact."""
        self._event("files", kept=self._keep(folder), name=name)

    def model(self, folder: Path) -> None:
        """Record the folder's weights as a model that MLflow can load."""
        self._event("model", kept=self._keep(folder))

    def test(self, numbers: dict[str, float], folder: Path) -> None:
        """Record test metrics, and the files of ``folder`` with them."""
        self._event("test", numbers=numbers, kept=self._keep(folder))

    def end(self, status: str) -> None:
        """Record the end of the run: FINISHED, FAILED or KILLED."""
        self._event("end", status=status)

    def _event(self, do: str, **fields: Any) -> None:
        jsonl.append(self.folder / EVENTS, {"do": do, **fields})

    def _keep(self, folder: Path) -> str:
        """Keep a folder's files as they are now, by hard links; copies where links do not work."""
        self.kept += 1
        name = f"files/{self.kept}"
        shutil.copytree(folder, self.folder / name, copy_function=_link)
        return name


@contextmanager
def written(home: Path, about: dict[str, str]) -> Iterator[Path]:
    """Make a folder in the outbox, which this process owns during the block.

    The folder appears together with its run.json, so no reader finds one without it.
    """
    folder = home / OUTBOX
    made = storage.new_folder(folder / "new")
    made.chmod(made.stat().st_mode & 0o7770)  # the address of the store may hold a password
    with locks.exclusive(made / OWNER, f"{made}: another process owns it"):
        storage.write_json(made / RUN, about | {"store": environment.tracking_uri()})
        yield _numbered(made, folder, about["id"])


def _numbered(made: Path, folder: Path, ident: str) -> Path:
    """Rename a folder to ID.N, with the first free N after all others of the same id."""
    while True:
        before = [int(path.suffix[1:]) for path in folder.glob(f"{ident}.*")]
        try:
            return made.rename(folder / f"{ident}.{max(before, default=0) + 1}")
        except OSError as error:  # another process was faster: two can test the same weights
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def folders(home: Path) -> list[Path]:
    """The folders that are not sent yet, oldest first."""
    found = []
    for path in (home / OUTBOX).glob("*.*"):
        with suppress(FileNotFoundError):  # another process has just sent it
            if not path.name.startswith("."):
                found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found)]


def close(folder: Path) -> None:
    """Mark a run KILLED if its event log has no end; call this once its processes are gone."""
    events, _ = jsonl.read(folder / EVENTS)
    if events and events[-1]["do"] not in ("end", "test"):
        run = Run(folder)
        run.tag({FAILURE: "the process that ran the training was killed"})
        run.end("KILLED")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the folders are on two disks, or the disk has no hard links
        shutil.copy2(source, target)
