"""MLflow's command line in a process that ends, with all that it starts, with its starter.

    python -m uotft.tracking.mlflow_command server --port 5000

MLflow's server is a process of its own below `mlflow server`, and would go on if `uotft ui` is
killed. Standard input must be a pipe from the starter.
"""

from __future__ import annotations

from runpy import run_module

from uotft.core import signals

if __name__ == "__main__":
    signals.end_with_starter()
    run_module("mlflow", run_name="__main__", alter_sys=True)
