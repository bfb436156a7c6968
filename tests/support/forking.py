"""A process that becomes `uotft` commands: it imports their libraries once and forks for each.

A line of JSON on standard input is a command, a line on standard output its exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
import warnings
from importlib import import_module
from pkgutil import walk_packages
from typing import Any


def serve() -> None:
    """Until the end of standard input."""
    import matplotlib.pyplot  # noqa: F401 (once, for all children)
    import torchvision  # noqa: F401

    import uotft

    for module in walk_packages(uotft.__path__, "uotft."):
        if module.name != "uotft.__main__":
            import_module(module.name)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _be(json.loads(line))
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _be(wanted: dict[str, Any]) -> None:
    """Be the command; never returns."""
    code = 1
    try:
        for number, path in enumerate(wanted["files"], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["cwd"])
        sys.argv = list(wanted["arguments"])
        signal.alarm(100)
        warnings.resetwarnings()
        from uotft.cli.app import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (the child must never return into the loop)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
