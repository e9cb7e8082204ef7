"""Asks an HTTP endpoint on a schedule that does not wait for answers, and measures from the instant a request was due.

A caller that sends its next request when the last one is answered asks less of a slow server, and measures none of the
waiting its users would do (coordinated omission). Here every request has an instant of its own, drawn in advance; if it
goes out late, or the server stalls, that time is part of its latency.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

_MOST_CONNECTIONS = 256
_LONGEST_S = 10.0
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Driven:
    """What became of N requests, in the order they were due."""

    due_s: np.ndarray
    """float64 [N], since the beginning."""
    latency_ms: np.ndarray
    """float64 [N], from due to the whole answer; of a request without an answer, to when it was given up."""
    late_ms: np.ndarray
    """float64 [N], from due until the caller had a connection and sent it: what is the caller's own doing."""
    status: np.ndarray
    """int [N], 0 where there was no answer."""
    canary: np.ndarray
    """bool [N]: answered by the challenger."""
    seconds: float
    """From the first due instant to the last answer."""
    began: float
    """What `due_s` counts from, by `time.perf_counter`."""


def poisson_schedule(rate: float, count: int, seed: int) -> np.ndarray:
    """Instants in seconds, float64 [count], of requests that come independently of each other, `rate` a second."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def drive(
    url: str,
    bodies: Sequence[bytes],
    due_s: np.ndarray,
    *,
    token: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Driven:
    """POST every body at its instant.

    Args:
        url: whole, http or https.
        bodies: JSON, one a request.
        due_s: rising, one a request.
        token: sent as a bearer token.
        progress: told (answered, all) now and then.
    """
    return asyncio.run(_Driver(url, token).run(bodies, due_s, progress))


class _Driver:
    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        self._host, self._path = parts.hostname or "", parts.path
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        bearer = f"authorization: Bearer {token}\r\n" if token else ""
        self._head = f"POST {self._path} HTTP/1.1\r\nhost: {parts.netloc}\r\n{bearer}content-type: application/json\r\n"
        self._idle: list[_Connection] = []
        self._room = asyncio.Semaphore(_MOST_CONNECTIONS)

    async def run(self, bodies: Sequence[bytes], due_s: np.ndarray, progress: Callable[[int, int], None]) -> Driven:
        count, done = len(bodies), 0
        latency, late = np.zeros(count), np.zeros(count)
        status, canary = np.zeros(count, int), np.zeros(count, bool)
        await self._warm_up()
        began = time.perf_counter() + 0.05

        async def one(i: int) -> None:
            nonlocal done
            due = began + due_s[i]
            try:
                async with asyncio.timeout(_LONGEST_S):
                    status[i], answer, sent = await self._ask(bodies[i])
                late[i] = 1000 * (sent - due)
                canary[i] = b'"variant":"canary"' in answer
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                late[i] = np.nan
            latency[i] = 1000 * (time.perf_counter() - due)
            done += 1
            if done % 100 == 0 or done == count:
                progress(done, count)

        async with asyncio.TaskGroup() as group:
            for i in range(count):
                wait = began + due_s[i] - time.perf_counter()
                if wait > 0:
                    await asyncio.sleep(wait)
                group.create_task(one(i))
        seconds = time.perf_counter() - began - due_s[0]
        for _, writer in self._idle:
            writer.close()
        return Driven(due_s, latency, late, status, canary, seconds, began)

    async def _warm_up(self) -> None:
        """A few connections are open before the clock starts: an application has them too."""
        self._idle = [await self._open() for _ in range(8)]

    async def _open(self) -> _Connection:
        return await asyncio.open_connection(self._host, self._port, ssl=self._tls)

    async def _ask(self, body: bytes) -> tuple[int, bytes, float]:
        async with self._room:
            connection = self._idle.pop() if self._idle else await self._open()
            reader, writer = connection
            try:
                sent = time.perf_counter()
                writer.write(f"{self._head}content-length: {len(body)}\r\n\r\n".encode() + body)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                at = head.index(b"content-length:")
                answer = await reader.readexactly(int(head[at + 15 : head.index(b"\r\n", at)]))
            except BaseException:
                writer.close()
                raise
            if b"connection: close" in head:
                writer.close()
            else:
                self._idle.append(connection)
            return int(head[9:12]), answer, sent
