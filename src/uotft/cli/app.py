"""The command line: all commands under one name, errors as exit codes, -v and -q.

Heavy imports wait until a command needs them: `uotft --help` takes 0.1 s.

uotft --help
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from uotft.cli import bank, data, experiment, models, pipeline, project
from uotft.core import environment, messages, signals
from uotft.core.errors import Interrupted, UserError, WorkerFailed

logger = logging.getLogger(__name__)


class _Commands(typer.core.TyperGroup):
    """All commands; Typer itself would end a command silently on Ctrl-C and SIGTERM."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, ImportError) as error:
            if not _is_interrupt(error):
                raise
            raise Interrupted("interrupted; no file is half written") from error


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what an extension module that was being imported made of it."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,  # help in 0.1 s instead of 0.5 s
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Fine-tune image models on the target and on the pre-training data that helps.",
)
#: In the order of `uotft --help`.
for command in (
    project.init,
    pipeline.prepare,
    pipeline.pretrain,
    pipeline.embed,
    pipeline.units,
    pipeline.select,
    pipeline.forecast,
    pipeline.train,
    pipeline.evaluate,
    pipeline.search,
    pipeline.compare,
    models.predict,
    models.export,
    models.register,
    project.sync,
    project.ui,
    project.doctor,
):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(bank.app, name="bank")
app.add_typer(experiment.app, name="experiment")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"uotft {version('uotft')}")
        raise typer.Exit


@app.callback()
def _loudness(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also show details, and where errors come from.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show only warnings and errors, no progress.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options before the command."""
    if verbose and quiet:
        raise UserError("-v and -q contradict each other: choose one")
    if verbose or quiet:
        messages.setup("DEBUG" if verbose else "WARNING")


def main() -> None:
    """Run a command; a user's mistake is one message and exit code 2."""
    signals.install_as_ctrl_c()
    try:
        environment.prepare()
        messages.setup()
        app()
    except UserError as error:
        _fail(error, 2)
    except WorkerFailed as error:
        _fail(error, error.code)
    except Interrupted as error:
        _fail(error, 130)
    except OSError as error:  # a folder without permission to write, a full disk
        if error.filename is None:
            raise
        _fail(error, 2, f"{os.fsdecode(error.filename)}: {error.strerror}")


def _fail(error: Exception, code: int, message: str = "") -> None:
    """Print in one message why the command failed; with -v also where."""
    logger.debug("this is where the error comes from:", exc_info=error)
    typer.echo(f"uotft: {message or error}", err=True)
    sys.exit(code)
