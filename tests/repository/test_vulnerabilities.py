"""No version with a hole that is known may be installed; `make audit` asks for new ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from support.download_server import in_a_thread
from support.repository import REPOSITORY

MENDED = {  # package: the first version without the hole
    "CVE-2025-32434": ("torch", "2.6"),
    "CVE-2026-24747": ("torch", "2.10"),
    "CVE-2026-2614": ("mlflow", "3.10"),
    "CVE-2026-2651": ("mlflow", "3.10"),
    "CVE-2026-2652": ("mlflow", "3.10"),
    "CVE-2025-48379": ("pillow", "11.3"),
    "CVE-2026-25990": ("pillow", "12.1.1"),
    "CVE-2023-47248": ("pyarrow", "14.0.1"),
    "CVE-2026-25087": ("pyarrow", "23.0.1"),
    "CVE-2020-14343": ("pyyaml", "5.4"),
    "CVE-2024-5206": ("scikit-learn", "1.5"),
    "CVE-2025-51480": ("onnx", "1.19"),
}
BENEATH = {  # what those bring with them: the lock alone says which
    "CVE-2025-68146": ("filelock", "3.20.1"),
    "CVE-2026-22701": ("filelock", "3.20.3"),
    "CVE-2025-43859": ("h11", "0.16"),
    "CVE-2025-47273": ("setuptools", "78.1.1"),
    "CVE-2025-47081": ("requests", "2.32.4"),
    "CVE-2025-62727": ("starlette", "0.49.1"),
    "CVE-2025-27516": ("jinja2", "3.1.6"),
    "CVE-2025-54886": ("skops", "0.13"),
    "CVE-2025-66418": ("urllib3", "2.6"),
    "CVE-2025-66034": ("fonttools", "4.60.2"),
}


def locked() -> dict[str, list[Version]]:
    """{package: versions of requirements.lock}."""
    found: dict[str, list[Version]] = {}
    text = (REPOSITORY / "requirements.lock").read_text()
    for name, number in re.findall(r"(?m)^([a-z0-9._-]+)(?:\[.*?\])?==([^ ]+)", text):
        found.setdefault(name, []).append(Version(number))
    return found


def least() -> dict[str, Version]:
    """{package: the least version that pyproject.toml admits}."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    wanted = map(Requirement, lines)
    return {
        each.name: max(Version(s.version) for s in each.specifier if s.operator == ">=")
        for each in wanted
    }


@pytest.mark.parametrize("hole", [*MENDED, *BENEATH])
def test_no_version_with_a_known_hole(hole: str) -> None:
    name, mended = (MENDED | BENEATH)[hole]
    assert min(locked()[name]) >= Version(mended)
    assert hole in BENEATH or least()[name] >= Version(mended)


class _Osv(BaseHTTPRequestHandler):
    """OSV's API: every version of the package ``bad`` has a hole."""

    bad = ""
    asked: list[str] = []

    def do_POST(self) -> None:  # noqa: N802
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["package"]["name"]
        self.asked.append(name)
        hole = {
            "id": "GHSA-test", "aliases": ["CVE-2099-1"], "summary": "a hole", "details": "",
            "affected": [{"package": asked["package"], "ranges": [
                {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]}],
        }  # fmt: skip
        body = json.dumps({"vulns": [hole] if name == self.bad else []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def osv(bad: str) -> Iterator[tuple[str, list[str]]]:
    """A list of holes on this machine: its address, and the packages it is asked for."""
    handler = type("Osv", (_Osv,), {"bad": bad, "asked": []})
    with in_a_thread(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}/v1/query", handler.asked


def audit(url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / ".ci/audit.py")],
        env={**os.environ, "OSV_URL": url, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def scanner() -> bool:
    """Whether uv is here, and can get pip-audit."""
    uv = os.environ.get("UV", str(REPOSITORY / ".tools/bin/uv"))
    words = [uv, "tool", "run", "--from", "pip-audit==2.10.1", "pip-audit", "--version"]
    return Path(uv).is_file() and subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.slow
def test_the_audit_both_ways() -> None:
    if not scanner():
        pytest.skip("pip-audit can neither be found nor fetched")
    with osv("") as (url, asked):
        clean = audit(url)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    assert "CVE-2025-69872" in clean.stdout, "what is known and left is said each time"
    assert len(set(asked)) > 150
    with osv("torch") as (url, _):
        found = audit(url)
    assert found.returncode == 1
    assert "torch 2." in found.stdout
    assert "CVE-2099-1 GHSA-test: mended by 999" in found.stdout


@pytest.mark.slow
def test_an_audit_that_reaches_nobody_says_so() -> None:
    done = audit("http://127.0.0.1:9/v1/query")
    assert done.returncode == 3
    assert "could not be reached: not checked" in done.stdout
    done = audit("http://127.0.0.1:9/v1/query", UV="/nowhere/uv")
    assert done.returncode == 3
    assert "could not be reached: not checked" in done.stdout
