"""OpenSSH's server on loopback, with keys of its own: a place for files."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.ports import free_port
from support.team_server import answers


@dataclass
class Host:
    """A machine that ``address`` names, for a user with this private ``key`` and this ``home``."""

    address: str
    key: Path
    home: Path  # its .ssh/known_hosts has another key of the server: DVC does not look there


@contextmanager
def ssh_server(folder: Path) -> Iterator[Host]:
    """A server that runs as this user; skips the test where OpenSSH's is not installed."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None:
        pytest.skip("OpenSSH's server (sshd) is not installed")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # it does not start as root without
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    port, home = free_port(), folder / "home"
    (home / ".ssh").mkdir(parents=True)
    known = f"[127.0.0.1]:{port} {(folder / 'user.pub').read_text()}"
    (home / ".ssh/known_hosts").write_text(known)
    settings = folder / "sshd_config"
    settings.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "Subsystem sftp internal-sftp\n"
    )
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", str(settings)], stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert process.poll() is None, (folder / "sshd.log").read_text()
            assert time.monotonic() < deadline, "sshd does not answer"
            time.sleep(0.05)
        yield Host(f"ssh://{getpass.getuser()}@127.0.0.1:{port}", folder / "user", home)
    finally:
        process.terminate()
        process.wait(60)
