"""`skewless console`: the project's one web page, on loopback."""

from __future__ import annotations

import contextlib
import errno
import socket

import click

from contracts.clock import SystemClock
from contracts.errors import SkewlessError
from loop.command import told
from loop.project import Project

HOST = "127.0.0.1"


class ConsolePortTaken(SkewlessError, OSError):
    """Something else listens where the console was to listen."""


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="On 127.0.0.1; 0: any.")
@click.option("--mlflow", metavar="URL", help="An MLflow server on this project's tracking store, to link runs to.")
@click.pass_obj
@told
def console(project: Project, port: int, mlflow: str | None) -> None:
    """One web page: champions and challengers, performance, drift, skew, alerts to acknowledge, decisions and why."""
    import uvicorn

    from loop.console import build_console

    project.task_file(None if len(project.task_names()) < 2 else project.task_names()[0])
    listening = _listen(port)
    app = build_console(project, SystemClock(), mlflow=mlflow)
    url = f"http://{HOST}:{listening.getsockname()[1]}"
    click.echo(f"console on {url}   (Ctrl-C stops)")
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)
    with contextlib.suppress(KeyboardInterrupt):  # raised again after it has shut down
        uvicorn.Server(config).run([listening])


def _listen(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()  # whoever opens the address as soon as it is printed waits rather than is refused
    except OSError as error:
        listening.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise ConsolePortTaken(
            f"Port {port} on {HOST} is in use.", hint="name another with --port, or --port 0 for any that is free."
        ) from error
    return listening
