"""`torch.distributed.run` that ends with its workers' exit code, and without tracebacks of its own.

python -m uotft.launcher --standalone --nproc-per-node N -m uotft.worker …
"""

from __future__ import annotations

import logging
import sys


def main(arguments: list[str]) -> int:
    """Run the workers; returns the exit code of the one that failed first."""
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from uotft.errors import killed
    from uotft.processes import INTERRUPTED

    # all have finished by then; machine 0, which holds what they wait by, may be the first to leave
    agent = logging.getLogger("torch.distributed.elastic.agent.server.api")
    agent.addFilter(lambda record: "exit barrier" not in record.getMessage())
    try:
        run.main(arguments)
    except SignalException:  # it has asked the workers to stop, and waited for them
        return INTERRUPTED
    except DistError as error:
        print(f"uotft: the machines did not meet: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except ChildFailedError as error:  # the worker has said why
        rank, first = error.get_first_failure()
        code: int = first.exitcode
        if code < 0:
            who = f"worker {rank} of them, process {first.pid},"
            print(f"uotft: {killed(who, -code)}", file=sys.stderr)  # noqa: T201
        return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
