"""Hosts on one network, made of Linux namespaces: own addresses, names and processes, shared files.

Each has a cable to one switch, a bridge in a namespace of its own. Nothing of this machine's own
network is touched, and everything is gone when the block ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic

import pytest

READY = "ready"
SPACES = ("unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")


@dataclass(frozen=True)
class Host:
    """One host: the process id, out here, of its process 1, and its place in the network."""

    init: int
    name: str
    address: str
    switch: int
    port: str

    def command(self, *words: str, cwd: Path = Path("/")) -> list[str]:
        """A command line that runs ``words`` on this host, in the folder ``cwd``."""
        return [*_enter(self.init), f"--wd={cwd}", *words]

    def start(self, *words: str, cwd: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
        """Start a command on this host, whose output the caller reads."""
        return subprocess.Popen(
            self.command(*words, cwd=cwd), env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def cut(self) -> None:
        """Pull the cable out of the switch: packets vanish, and nobody is told."""
        _run(*_enter(self.switch), "ip", "link", "set", self.port, "down")

    def die(self) -> None:
        """Kill every process of this host at once."""
        os.kill(self.init, signal.SIGKILL)

    def processes(self) -> list[int]:
        """The processes of this host but its first, by their numbers out here."""
        space = os.readlink(f"/proc/{self.init}/ns/pid")
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "ns/pid") == space and int(entry.name) != self.init:
                    found.append(int(entry.name))
            except OSError:  # it has just ended
                continue
        return found


@contextmanager
def network(*names: str) -> Iterator[list[Host]]:
    """Hosts of these names, 10.77.0.1 and so on; skips the test where that is forbidden."""
    if why := forbidden():
        pytest.skip(f"no hosts from namespaces here: {why}")
    with ExitStack() as stack:
        switch = stack.enter_context(_space("switch"))
        inside = _enter(switch)
        _run(*inside, "ip", "link", "add", "name", "bridge0", "type", "bridge")
        _run(*inside, "ip", "link", "set", "bridge0", "up")
        hosts = []
        for number, name in enumerate(names, 1):
            init, port = stack.enter_context(_space(name)), f"port{number}"
            host = Host(init, name, f"10.77.0.{number}", switch, port)
            _run("ip", "link", "add", "name", port, "netns", str(switch), "type", "veth",
                 "peer", "name", "cable", "netns", str(init))  # fmt: skip
            _run(*inside, "ip", "link", "set", port, "master", "bridge0", "up")
            _run(*host.command("ip", "address", "add", f"{host.address}/24", "dev", "cable"))
            _run(*host.command("ip", "link", "set", "cable", "up"))
            hosts.append(host)
        yield hosts


@cache
def forbidden() -> str:
    """Why this machine cannot make hosts, or ""."""
    try:
        with _space("first") as one, _space("second") as other:
            _run("ip", "link", "add", "name", "a", "netns", str(one), "type", "veth",
                 "peer", "name", "b", "netns", str(other))  # fmt: skip
            _run(*_enter(one), "ip", "link", "add", "name", "c", "type", "bridge")
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return " ".join(said.split())
    return ""


@contextmanager
def _space(name: str) -> Iterator[int]:
    """A host without a network, called ``name``; the process id of its process 1."""
    begin = f"hostname {name} && ip link set lo up && echo {READY} && exec sleep infinity"
    process = subprocess.Popen(
        [*SPACES, "sh", "-c", begin], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    try:
        if process.stdout.readline().strip() != READY:
            raise RuntimeError(process.stderr.read())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        yield int(children.read_text().split()[0])
    finally:
        process.kill()  # and the kernel all inside
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _enter(init: int) -> list[str]:
    return ["nsenter", "--target", str(init), "--net", "--uts", "--pid", "--mount"]


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=30)


def ended(started: Sequence[subprocess.Popen[str]], seconds: float) -> list[str]:
    """What commands printed that must end within ``seconds``; they are killed if one does not."""
    until, said = monotonic() + seconds, []
    try:
        for process in started:
            said.append(process.communicate(timeout=max(1, until - monotonic()))[0])
    except subprocess.TimeoutExpired as error:
        for process in started:
            process.kill()
        raise AssertionError([*said, *map(_so_far, started[len(said) :])]) from error
    return said


def _so_far(process: subprocess.Popen[str]) -> str:
    """What a killed command has printed; what it started on its host may hold its output open."""
    try:
        return process.communicate(timeout=5)[0]
    except subprocess.TimeoutExpired as error:
        return (error.output or b"").decode()
