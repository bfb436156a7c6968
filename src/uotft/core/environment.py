"""Environment variables: the only module that reads them, but for MLflow's own in `tracking`.

It also sets what the tools below uotft find there: no reports to their makers, no shared caches.
What the user has set stays.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from getpass import getuser
from pathlib import Path

from uotft.core.errors import UserError

#: Each tool's own switch; DO_NOT_TRACK is what some agree on.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
SITE_CACHE = "DVC_SITE_CACHE_DIR"
LOG_LEVEL = "UOTFT_LOG_LEVEL"
MIRROR = "UOTFT_MIRROR"

#: glibc returns each large block to the kernel, and gets it back page by page in the next step.
#: With these, read when a process starts, it keeps what a step has used: 1.4 times as many steps
#: a second of EfficientNet-Lite0 on a CPU (benchmarks/allocator.py).
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
#: The same by mallopt(3), for a process that runs already: never mmap, never trim, the same pad.
MALLOPT = ((-4, 0), (-1, -1), (-2, 256 << 20))
DEVICES = Path("/dev")
WORKER_BYTES = 4 << 30  # memory for each worker below which it rather returns what it can


def prepare() -> None:
    """Set what the user has not set, for this process and those that it starts."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    _name_and_home()
    if SITE_CACHE not in os.environ:
        os.environ[SITE_CACHE] = str(site_cache())


def _name_and_home() -> None:
    """Give a name and a home to a user id that has none, as in `docker run --user 12345`.

    DVC, git and MLflow ask for the name; torch, matplotlib, DVC and pooch keep files in the home.
    """
    try:
        getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"
    home = Path(os.path.expanduser("~"))  # stays ~ for such a user
    if not home.is_absolute() or home == Path("/") or not home.is_dir():
        os.environ["HOME"] = str(_own_folder())
    elif "XDG_CACHE_HOME" not in os.environ and not _has_a_cache(home):
        os.environ["XDG_CACHE_HOME"] = str(_own_folder() / "cache")


def _has_a_cache(home: Path) -> bool:
    cache = home / ".cache"
    return os.access(cache if cache.is_dir() else home, os.W_OK | os.X_OK)


def site_cache() -> Path:
    """A folder that only this user can write, for DVC's indexes, which are pickles.

    DVC's default is /var/tmp/dvc, where another user can plant pickles first (CVE-2025-69872).
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uotft"
    try:
        return private(folder) / "dvc"
    except OSError:  # it cannot be written
        return _own_folder() / "dvc"


def _own_folder() -> Path:
    """A folder of this user's alone where temporary files go; it may go with them."""
    return private(Path(tempfile.gettempdir()) / f"uotft-{os.getuid()}")


def private(folder: Path) -> Path:
    """The folder itself, made if need be; an error unless it is this user's, and nobody else's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise UserError(f"{folder}: another user has made it: remove it, or set TMPDIR")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def log_level() -> str:
    """The level of messages that the process which started this one wants, or ""."""
    return os.environ.get(LOG_LEVEL, "")


def set_log_level(level: str) -> None:
    """Hand the level of messages down to the processes that this one starts."""
    os.environ[LOG_LEVEL] = level


def mirror() -> str:
    """The address or folder that UOTFT_MIRROR names, or ""; see `core.user_settings`."""
    return os.environ.get(MIRROR, "")


def config_folder() -> Path:
    """The folder of this user's settings, $XDG_CONFIG_HOME/uotft; it need not exist."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path(os.path.expanduser("~")) / ".config"
    return base / "uotft"


def dvc_stage() -> str:
    """The stage of DVC that started this process, such as ``train@digits-uot-0``, or ""."""
    return os.environ.get("DVC_STAGE", "")


def dvc_experiment() -> dict[str, str]:
    """Name, baseline and project of the DVC experiment that this process is part of, if any.

    Keys are ``name``, ``baseline`` and ``root``: DVC runs queued experiments in copies of the
    project, and names the project itself in DVC_ROOT.
    """
    if "DVC_EXP_NAME" not in os.environ:
        return {}
    names = {"name": "DVC_EXP_NAME", "baseline": "DVC_EXP_BASELINE_REV", "root": "DVC_ROOT"}
    return {key: os.environ[name] for key, name in names.items() if name in os.environ}


def tracking_uri() -> str:
    """The MLflow store that the user names, or ""."""
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def get(name: str) -> str:
    """A variable of another tool, or ""."""
    return os.environ.get(name, "")


def launched() -> tuple[int, int] | None:
    """(rank, number of processes), where torchrun or `accelerate launch` started this process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ["RANK"]), world) if world > 1 and "RANK" in os.environ else None


#: How uotft's own workers meet: through a file, or, of several machines, within so many seconds.
MEETING_FILE = "UOTFT_MEETING_FILE"
MEETING_S = "UOTFT_MEETING_S"


def meeting_file() -> str:
    """The file through which the workers of one machine meet, or ""."""
    return os.environ.get(MEETING_FILE, "")


def meeting_seconds() -> float:
    """How long workers of several machines wait for each other; 0: they are not uotft's own."""
    return float(os.environ.get(MEETING_S, "0"))


def main_address() -> tuple[str, int]:
    """Address and port of machine 0, for a worker of several machines."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def rank() -> int:
    """The number of this process among those of its training."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process among those of its training on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def machine() -> tuple[int, int] | None:
    """(number of this machine, number of machines) of a training on several machines."""
    place, here = launched(), int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if place is None or not here or place[1] <= here or "MASTER_ADDR" not in os.environ:
        return None
    return place[0] // here, place[1] // here


def restarts() -> int:
    """How often torchrun has restarted the processes of this training."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def default(settings: dict[str, str]) -> None:
    """Set what the user has not set, for this process and libraries in it."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def child(changes: dict[str, str], defaults: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a process to start: ours with ``changes``, above ``defaults``."""
    return {**(defaults or {}), **os.environ, **changes}


def handed() -> dict[str, str]:
    """What a process of this command on another machine gets; "" is what the user has not set.

    No password: each machine has its own, where MLflow looks for it.
    """
    return {name: os.environ.get(name, "") for name in (LOG_LEVEL, "MLFLOW_TRACKING_URI")}


def unlaunched(handed: dict[str, str] | None = None) -> dict[str, str]:
    """Our environment without a rank, for a process that takes no part in the training.

    This Python's own commands come first in its PATH. What another machine has ``handed`` replaces
    ours.
    """
    place = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    given = handed or {}
    own = {n: value for n, value in os.environ.items() if n not in (*place, *given)}
    return own | {"PATH": path} | {name: value for name, value in given.items() if value}


def accelerate_uses(way: str) -> bool:
    """Whether `accelerate config` cuts the network in parts: DEEPSPEED, FSDP or MEGATRON_LM."""
    return os.environ.get(f"ACCELERATE_USE_{way}", "").lower() == "true"


def cores() -> int:
    """How many cores this process may use, by its affinity and its container's limit (Linux)."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no limit, or not this kind of container
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
        mine = min(mine, max(1, int(quota) // int(period)))
    return mine


def memory() -> int:
    """Bytes of memory that this machine has, or its container may use; 0 if unknown."""
    found = []
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups 2 and 1
        with suppress(OSError, ValueError):  # no limit, or not this kind of container
            found.append(int(Path("/sys/fs/cgroup", limit).read_text("utf-8")))
    return min(found, default=0)


def allocator(workers: int) -> dict[str, str]:
    """Settings of glibc for so many workers that train here, on the CPU; {} if unfit.

    They are unfit on a GPU, with less than ``WORKER_BYTES`` of memory each, and where the user has
    settings of their own.
    """
    theirs = any(name in os.environ for name in (*ALLOCATOR, "GLIBC_TUNABLES"))
    if theirs or gpus() or sys.platform != "linux" or memory() < workers * WORKER_BYTES:
        return {}
    return dict(ALLOCATOR)


@contextmanager
def memory_kept() -> Iterator[None]:
    """In the block this process keeps memory as such a worker does; the end returns what is free.

    EfficientNet-Lite0 predicts 2.2 times as many images a second (benchmarks/allocator.py).
    """
    import ctypes  # most commands need none

    libc = ctypes.CDLL(None)
    if not allocator(1) or not hasattr(libc, "mallopt"):  # unfit, or another library than glibc
        yield
        return
    for name, value in MALLOPT:
        libc.mallopt(name, value)
    try:
        yield
    finally:
        libc.malloc_trim(0)


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Found without torch, which takes seconds to import. CUDA counts from 0 those that are there: a
    container may have the device file of the host's third GPU alone.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    found = (path.name.removeprefix("nvidia") for path in DEVICES.glob("nvidia[0-9]*"))
    return [str(place) for place in range(sum(number.isdecimal() for number in found))]


def share_of_gpus(place: int, processes: int) -> dict[str, str]:
    """What gives crew number ``place``, of crews of ``processes``, its GPUs; {} without any."""
    every = gpus()
    if not every:
        return {}
    own = [every[(place * processes + number) % len(every)] for number in range(processes)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))}
