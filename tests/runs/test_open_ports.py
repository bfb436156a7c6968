"""What listens while something runs: nothing that another machine could reach."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.commands import users_environment
from support.open_ports import addresses, descendants

HERE = {"127.0.0.1", "::1"}


def _told(process: int) -> bool:
    """Whether gloo is told the interface: by itself it takes the address of this machine's name."""
    try:
        return b"\0GLOO_SOCKET_IFNAME=lo\0" in Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for sockets in /proc")
def test_two_processes_listen_on_this_machine_alone(fresh: Path) -> None:
    """The command itself listens nowhere, for its workers meet through a file."""
    environment = users_environment()
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        environment.pop(name, None)
    said, seen, told = fresh / "said.txt", dict[int, set[str]](), set[int]()
    command = [sys.executable, "-m", "uotft", "pretrain", "--num-processes", "2"]
    with (
        said.open("wb") as file,
        subprocess.Popen(command, cwd=fresh, env=environment, stdout=file, stderr=file) as training,
    ):
        while training.poll() is None:
            for process in (training.pid, *descendants(training.pid)):
                told |= {process} if _told(process) else set()
                seen[process] = seen.get(process, set()) | addresses(process)
            time.sleep(0.1)
    assert training.returncode == 0, said.read_text()
    assert not seen[training.pid], "only workers listen, for gloo"
    assert len([where for where in seen.values() if where]) == 2, "two workers"
    assert set.union(*seen.values()) <= HERE, seen
    assert len(told) >= 2, "the workers are told the loopback interface"
