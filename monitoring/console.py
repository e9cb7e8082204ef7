"""The console's web application: one page, the alerts' forms, and the model cards. Reads stored state on every request.

    app = console("flights", engine, tasks, elsewhere, clock=SystemClock(), hosts=("127.0.0.1", "localhost"))

Three things keep other web sites from acting through a person's browser: a request must name a host that is ours (else
a name that was pointed here could read the page), a form must come from this origin, and it must send back the token
that only this page's reader can know.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from urllib.parse import parse_qs, urlsplit

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from contracts.clock import Clock
from contracts.errors import SkewlessError
from contracts.registry import ModelVersion
from contracts.task import Task
from monitoring.alerts import InvalidNote, UnknownAlert, acknowledge
from monitoring.console_page import Message, Note, console_page
from monitoring.console_state import Elsewhere, read_task

_LONGEST_FORM = 16 * 1024
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def console(
    project: str,
    engine: Engine,
    tasks: Callable[[], Sequence[Task]],
    elsewhere: Elsewhere,
    *,
    clock: Clock,
    hosts: Sequence[str] | None,
    runs: Callable[[ModelVersion], str] | None = None,
    secret: str | None = None,
) -> ASGIApp:
    """The application, to be served by itself or mounted below a path.

    Args:
        project: how the project is called.
        engine: the shared state.
        tasks: reads the project's tasks; asked on every request. A SkewlessError is shown in the place of the page.
        elsewhere: what other stages keep.
        clock: says when an alert was acknowledged.
        hosts: names, without port, under which it may be asked for; None: any, for where a password stands before it
            (a browser sends that to the name it was given for, and to no other).
        runs: a version's run in a tracking server.
        secret: the forms' token; one of this process when None. Give one where several processes answer.
    """
    return _Guarded(
        _Console(project, engine, tasks, elsewhere, clock, runs, secret or secrets.token_urlsafe(32)), hosts
    )


class _Console:
    def __init__(
        self,
        project: str,
        engine: Engine,
        tasks: Callable[[], Sequence[Task]],
        elsewhere: Elsewhere,
        clock: Clock,
        runs: Callable[[ModelVersion], str] | None,
        token: str,
    ) -> None:
        self._project, self._engine, self._tasks = project, engine, tasks
        self._elsewhere, self._clock, self._runs, self._token = elsewhere, clock, runs, token
        self.routes = [
            Route("/", self.page),
            Route("/alerts/{number:int}/acknowledge", self.acknowledge, methods=["POST"]),
            Route("/tasks/{task}/versions/{version:int}/card", self.card),
        ]

    async def page(self, request: Request) -> Response:
        number = request.query_params.get("acknowledged", "")
        said = Message("good", f"Alert {number} is acknowledged.") if number.isdecimal() else None
        return await run_in_threadpool(self._draw, request, said)

    async def acknowledge(self, request: Request) -> Response:
        number: int = request.path_params["number"]
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _LONGEST_FORM:
                return PlainTextResponse("The form is too long: write a shorter note.\n", 413)
        fields = parse_qs(body.decode("utf-8", "replace"))
        note, sent = fields.get("note", [""])[0], fields.get("token", [""])[0]
        return await run_in_threadpool(self._acknowledge, request, number, note, sent)

    def _acknowledge(self, request: Request, number: int, note: str, sent: str) -> Response:
        kept = Note(number, note)
        if not hmac.compare_digest(sent.encode(), self._token.encode()):
            said = Message("warn", "Nothing was changed: that page was older than this console. Send it once more.")
            return self._draw(request, said, kept, status=403)
        try:
            acknowledge(self._engine, number, note=note, now=self._clock.now())
        except InvalidNote as error:
            return self._draw(request, Message("bad", f"{error.fact} Hint: {error.hint}"), kept, status=400)
        except UnknownAlert as error:
            return self._draw(request, Message("bad", f"{error.fact} Hint: {error.hint}"), status=404)
        return RedirectResponse(f"{_base(request)}/?acknowledged={number}", status_code=303)

    async def card(self, request: Request) -> Response:
        name, version = request.path_params["task"], request.path_params["version"]
        return await run_in_threadpool(self._card, request, name, version)

    def _card(self, request: Request, name: str, version: int) -> Response:
        task = next((task for task in self._tasks() if task.name == name), None)
        page = None if task is None else self._elsewhere.card(task, version)
        if page is None:
            said = Message("bad", f"There is no card of {name}@{version}. `skewless card {name}` says where one is.")
            return self._draw(request, said, status=404)
        return HTMLResponse(page)

    def _draw(
        self, request: Request, message: Message | None = None, note: Note | None = None, *, status: int = 200
    ) -> Response:
        states = []
        try:
            states = [read_task(self._engine, task, self._elsewhere) for task in self._tasks()]
        except SkewlessError as error:
            status, message = 500, Message("bad", f"{error.fact} {error.hint}")
        except DBAPIError as error:
            told = f"The project's state cannot be read: {error.orig}."
            status, message = 500, Message("bad", f"{told} Is its disk full, or was it made by another version?")
        states.sort(key=lambda state: (not state.waiting, state.served is None, not state.task.default))
        page = console_page(
            self._project,
            states,
            base=_base(request),
            token=self._token,
            runs=self._runs,
            message=message,
            note=note,
        )
        return HTMLResponse(page, status)


def _base(request: Request) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/")


class _Guarded:
    """Refuses what another web site may have sent, and says on every answer what a browser may do with it."""

    def __init__(self, console: _Console, hosts: Sequence[str] | None) -> None:
        self._app = Starlette(routes=console.routes)
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Request(scope))

        async def with_headers(event: dict[str, object]) -> None:
            if event["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                event = {**event, "headers": [*list(event["headers"]), *own]}  # type: ignore[call-overload]
            await send(event)

        await (refusal or self._app)(scope, receive, with_headers)  # type: ignore[arg-type]

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if self._hosts is not None and (urlsplit(f"//{host}").hostname or "") not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            return PlainTextResponse(f"This console answers to {known}, not to {host!r}.\n", 421)
        if request.method in ("GET", "HEAD"):
            return None
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none") or (origin is not None and urlsplit(origin).netloc != host):
            return PlainTextResponse("A form of this console must be sent from its own page.\n", 403)
        return None
