"""A client that costs little: one thread, raw sockets, requests made beforehand. Run in a process of its own.

    python benchmarks/http_load.py '{"port": …, "path": …, "bodies": FILE, "clients": 8, "seconds": 3, "rate": null}'

Closed loop: each client sends its next request when it has its answer. Open loop (`rate` a second): requests are due by
the clock, and a late one's time counts from when it was due, so that a server that stalls is not asked less.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections import Counter, deque
from pathlib import Path

import numpy as np


class Connection:
    """One client's connection and the answer it waits for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self.received = b""

    def send(self, request: bytes, began: float) -> None:
        self.began, self.received = began, b""
        self.socket.sendall(request)

    def status(self) -> int:
        """Read what is there; the answer's status when it is whole, 0 before."""
        self.received += self.socket.recv(262_144)
        head, split, body = self.received.partition(b"\r\n\r\n")
        if not split:
            assert self.received, "the server closed the connection"
            return 0
        lower = head.lower()
        if b"chunked" in lower:
            return int(head[9:12]) if self.received.endswith(b"0\r\n\r\n") else 0
        length = int(lower.partition(b"content-length:")[2].split(b"\r\n")[0])
        return int(head[9:12]) if len(body) >= length else 0


def requests(path: str, bodies: list[bytes]) -> list[bytes]:
    head = "POST {} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
    return [head.format(path, len(body)).encode() + body for body in bodies]


def run(port: int, asked: list[bytes], *, clients: int, seconds: float, rate: float | None = None) -> dict:
    """Latencies (ms) and answers a second."""
    selector = selectors.DefaultSelector()
    idle = deque(Connection(port) for _ in range(clients))
    for each in idle:
        selector.register(each.socket, selectors.EVENT_READ, each)
    taken: list[float] = []
    statuses: Counter[int] = Counter()
    sent, began = 0, time.perf_counter()
    until = began + seconds
    due: deque[float] = deque()
    while True:
        now = time.perf_counter()
        if now >= until and len(idle) == clients and not due:
            break
        if rate is None:
            while idle and now < until:
                idle.popleft().send(asked[sent % len(asked)], time.perf_counter())
                sent += 1
            wait = None
        else:
            while (at := began + sent / rate) <= min(now, until):
                due.append(at)
                sent += 1
            while due and idle:
                idle.popleft().send(asked[len(taken) % len(asked)], due.popleft())
            wait = max(0.0, at - time.perf_counter()) if now < until else None
        if len(idle) == clients:
            time.sleep(wait or 0)
            continue
        for key, _ in selector.select(wait):
            status = key.data.status()
            if status:
                taken.append(1000 * (time.perf_counter() - key.data.began))
                statuses[status] += 1
                idle.append(key.data)
    spent = time.perf_counter() - began
    for each in idle:
        each.socket.close()
    p50, p95, p99 = np.quantile(taken, [0.5, 0.95, 0.99])
    bad = {str(status): count for status, count in statuses.items() if status != 200}
    return {"rps": len(taken) / spent, "p50": p50, "p95": p95, "p99": p99, "n": len(taken), "bad": bad}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    bodies = Path(asked.pop("bodies")).read_bytes().split(b"\n")
    port, made = asked.pop("port"), requests(asked.pop("path"), bodies)
    warm_up = asked.pop("warm_up", 0.5)
    run(port, made, clients=asked["clients"], seconds=warm_up)
    print(json.dumps(run(port, made, **asked)))
