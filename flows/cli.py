"""The ``gmem`` command: wires the commands of flows/commands together and turns errors into one sentence."""

from __future__ import annotations

import logging
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cancelling import INTERRUPTED, SAID
from flows.cluster.limits import bound_threads
from flows.commands import (
    bank,
    doctor,
    experiments,
    explore,
    logs,
    measure,
    pretrain,
    published,
    recipe,
    run,
    sample,
    store,
)
from flows.refusals import REFUSALS
from flows.runlog import recorded
from storage.errors import StoreUnreachable

# Set before any of the libraries is imported by a command. Nothing is sent to the outside; and a `click.py` or `types.py`
# in the folder where somebody works is not taken for the library of that name by a process that we start.
ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
OURS = ("127.0.0.1", "localhost")
"""Where Prefect's temporary server, an embedded Ray and MLflow on this machine are."""

TEMPORARY_SERVER = "ephemeral Prefect API server"
"""How Prefect calls the server that it starts for a run where none is named."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Memory-based image generation: from pictures to a measured generator.",
)
app.command("run")(run.run)
app.command("stage")(run.stage)
app.command("plan")(run.plan)
app.command("status")(run.status)
app.command("sample")(sample.sample)
app.command("explore")(explore.explore)
app.command("evaluate")(measure.evaluate)
app.command("compare")(measure.compare)
app.command("compare-arms")(experiments.compare_arms)
app.command("sweep")(experiments.sweep)
app.command("adapt")(experiments.adapt)
app.command("results")(experiments.results)
app.command("doctor")(doctor.doctor)
app.command("logs")(logs.logs)
app.add_typer(recipe.app, name="recipe")
app.add_typer(bank.app, name="bank")
app.add_typer(store.app, name="store")
app.add_typer(pretrain.app, name="pretrain")
app.add_typer(published.imports, name="import")
app.add_typer(published.exports, name="export")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("gmem-pipeline"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command. Exit codes: 0 done, 1 failed while running, 2 cannot be done as asked, 130 interrupted."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    _reach_own_servers()
    bound_threads()
    signal.signal(signal.SIGTERM, _terminate)
    with recorded(sys.argv[1:]) as log:
        try:
            app()
        except SystemExit as end:
            if end.code == INTERRUPTED:  # typer ends so on Ctrl-C, without a word
                _say(SAID)
            raise
        except (*REFUSALS, OSError) as error:
            _say(str(error))
            _keep_traceback(error)
            sys.exit(2)
        except Exception as error:  # noqa: BLE001 - a traceback is no user interface
            _keep_traceback(error)
            _say(_failure(error, log.path))
            sys.exit(1)


def _reach_own_servers() -> None:
    """A proxy for the outside is asked for nothing that is on this machine, also where NO_PROXY was forgotten."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    for name in ("no_proxy", "NO_PROXY"):
        direct = [host for host in os.environ.get(name, "").split(",") if host]
        if "*" not in direct:
            os.environ[name] = ",".join(dict.fromkeys([*direct, *OURS]))


def _keep_traceback(error: Exception) -> None:
    """In the command's log (flows/runlog.py), and not on the screen."""
    logging.getLogger("traceback").error("%s", type(error).__name__, exc_info=error)


def _failure(error: Exception, log: Path) -> str:
    """What failed while running: a store or a cluster in its own words; the rest is a defect, and kept for a report."""
    from flows.cluster.errors import ClusterError

    if isinstance(error, StoreUnreachable | ClusterError):
        return str(error)
    if TEMPORARY_SERVER in str(error):
        return "Prefect's temporary server did not start in time; run again when this machine is less busy, or start one by 'prefect server start' and name it by PREFECT_API_URL"
    words = (str(error).strip().splitlines() or ["no further words"])[0][:200]
    return f"a defect of gmem, not of what you asked for ({type(error).__name__}: {words}); its traceback is in {log}"


def _terminate(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    from rich.text import Text

    from flows.console import tell

    tell(Text.assemble(("gmem:", "red"), " ", text))


if __name__ == "__main__":
    main()
