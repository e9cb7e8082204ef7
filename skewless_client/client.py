"""The two clients, one that waits and one for an event loop; what they share is in `_Call`."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from skewless_client.answers import Answer, Refused, ServerFailed, TimedOut, Unavailable, parsed
from skewless_client.retries import AGAIN, Retries, retry_after

Row = Mapping[str, Any]
"""Entity keys and request fields by name: text, numbers, booleans, None, and datetimes with a time zone."""


class Client:
    """Asks one server; may be used from several threads. Close it, or use it in a `with` block.

    Args:
        url: base of the server, such as `http://127.0.0.1:8000`.
        token: sent as bearer token, when given.
        timeout: seconds for a whole call, retries and waits included; an attempt may take what is left of it to
            connect, and as much to be answered.
        retries: how a call is repeated when the server is busy or not there.
        transport: another way to the server than a socket.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 10.0,
        retries: Retries = Retries(),  # noqa: B008  frozen
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._timeout = timeout
        self._retries = retries
        self._http = httpx.Client(base_url=url, headers=_headers(token), transport=transport)

    def predict(
        self, task: str, rows: Sequence[Row], *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """Predictions of one row or more, in their order.

        Args:
            task: its name.
            rows: what is asked about.
            request_id: names the question; asking under it again gives the first answer. A new one when None.
            timeout: seconds for this call, instead of the client's.

        Raises:
            Refused: the request is wrong; says which field.
            ServerFailed: the model or an on-demand view failed on it.
            Unavailable: nobody answered, or only "not now", at every attempt; or a certificate is not to be trusted.
            TimedOut: the time is over.
            ValueError: a row holds what JSON cannot (NaN, a datetime without time zone).
        """
        call = _Call(task, rows, request_id, timeout or self._timeout, self._retries)
        while True:
            try:
                response = self._http.post(call.path, content=call.body, **call.attempt())
            except httpx.TransportError as error:
                time.sleep(call.failed(error))
                continue
            answer, wait = call.answered(response)
            if answer is not None:
                return answer
            time.sleep(wait)

    def ready(self) -> bool:
        """Whether the server answers for all of its tasks."""
        try:
            return self._http.get("/readyz", timeout=self._timeout).status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for an event loop: the same arguments, methods and errors, awaited; used in an `async with` block."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 10.0,
        retries: Retries = Retries(),  # noqa: B008  frozen
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout = timeout
        self._retries = retries
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(token), transport=transport)

    async def predict(
        self, task: str, rows: Sequence[Row], *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """See `Client.predict`."""
        call = _Call(task, rows, request_id, timeout or self._timeout, self._retries)
        while True:
            try:
                response = await self._http.post(call.path, content=call.body, **call.attempt())
            except httpx.TransportError as error:
                await asyncio.sleep(call.failed(error))
                continue
            answer, wait = call.answered(response)
            if answer is not None:
                return answer
            await asyncio.sleep(wait)

    async def ready(self) -> bool:
        """Whether the server answers for all of its tasks."""
        try:
            return (await self._http.get("/readyz", timeout=self._timeout)).status_code == 200
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Call:
    """One question through its attempts: the same body under the same id each time, until time or attempts run out."""

    def __init__(
        self, task: str, rows: Sequence[Row], request_id: str | None, seconds: float, retries: Retries
    ) -> None:
        self.request_id = request_id or uuid.uuid4().hex
        self.path = f"/v1/tasks/{quote(task, safe='')}/predict"
        content = {"request_id": self.request_id, "rows": [dict(row) for row in rows]}
        self.body = json.dumps(content, default=_plain, allow_nan=False).encode()
        self._retries = retries
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._attempt = 0

    def attempt(self) -> dict[str, Any]:
        """Time for the attempt that begins now, told to the server too: what nobody waits for need not be computed.

        Raises TimedOut when there is none left.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._over()
        self._attempt += 1
        return {"timeout": left, "headers": {"x-request-deadline-ms": str(math.ceil(1000 * left))}}

    def failed(self, error: httpx.TransportError) -> float:
        """Seconds to wait after an attempt that got no answer; raises when it was the last."""
        if isinstance(error, httpx.TimeoutException) and time.monotonic() >= self._deadline:
            raise self._over() from error
        if (reason := _untrusted(error)) is not None:
            raise Unavailable(
                f"The server's certificate is not trusted: {reason}. Give SSL_CERT_FILE the certificate of who signed "
                "it, or ask under a name that it is made for.",
                request_id=self.request_id,
                attempts=self._attempt,
                retry_after=None,
            ) from error
        return self._wait(f"{type(error).__name__}: {error}", None, error)

    def answered(self, response: httpx.Response) -> tuple[Answer | None, float]:
        """The answer, or None and the seconds to wait; raises what the answer says went wrong."""
        if response.status_code == 200:
            return parsed(response.json()), 0.0
        error = _error(response)
        message = error.get("message") or f"HTTP {response.status_code}"
        if response.status_code in AGAIN:
            return None, self._wait(message, retry_after(response.headers.get("retry-after")), None)
        if 400 <= response.status_code < 500:
            raise Refused(message, request_id=self.request_id, status=response.status_code, error=error)
        raise ServerFailed(message, request_id=self.request_id)

    def _wait(self, message: str, asked: float | None, cause: Exception | None) -> float:
        wait = self._retries.wait(self._attempt, asked)
        if wait is None or time.monotonic() + wait >= self._deadline:
            told = f"{message} (after {self._attempt} {'attempt' if self._attempt == 1 else 'attempts'})"
            raise Unavailable(told, request_id=self.request_id, attempts=self._attempt, retry_after=asked) from cause
        return wait

    def _over(self) -> TimedOut:
        return TimedOut(f"No answer within {self._seconds:g} s.", request_id=self.request_id)


def _headers(token: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    return headers | ({"authorization": f"Bearer {token}"} if token is not None else {})


def _untrusted(error: BaseException | None) -> str | None:
    """What is wrong with a certificate, if that is the cause of an error: another attempt would find the same."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


def _plain(value: Any) -> Any:
    """A value that JSON has no word for."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; give it one.")
        return value.isoformat()
    item = getattr(value, "item", None)  # a number of NumPy's
    if callable(item):
        return item()
    raise ValueError(f"{value!r} is a {type(value).__name__}, which a request cannot hold.")


def _error(response: httpx.Response) -> Mapping[str, Any]:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {"message": f"HTTP {response.status_code}: {response.text[:200]}"}
    return error if isinstance(error, dict) else {"message": str(error)}
