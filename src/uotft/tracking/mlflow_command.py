"""MLflow's command line in a process that ends, with all that it starts, with its starter.

    python -m uotft.tracking.mlflow_command server --port 5000

MLflow's server is a process of its own below `mlflow server`, and would go on if `uotft ui` is
killed. Standard input must be a pipe from the starter.
"""

from __future__ import annotations

from uotft.core import signals

if __name__ == "__main__":
    signals.end_with_starter()

    from mlflow.cli import cli  # seconds, in which the starter may end already

    cli(prog_name="mlflow")
