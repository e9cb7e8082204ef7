"""Who may ask: bearer tokens for prediction and for administration, read anew when their file changes, and how often.

A token file has a line for each token: `NAME TOKEN`, or `NAME TOKEN REQUESTS_PER_SECOND`. Names are what logs say; a
token itself is never told.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contracts.errors import SkewlessError

Kind = Literal["prediction", "administration"]
KINDS: tuple[Kind, ...] = ("prediction", "administration")
_VARIABLES: dict[Kind, str] = {"prediction": "SKEWLESS_PREDICTION_TOKEN", "administration": "SKEWLESS_ADMIN_TOKEN"}
_RATE = "SKEWLESS_RATE_LIMIT"
VARIABLES = (*_VARIABLES.values(), _RATE)
"""What the names of the environment's variables begin with."""
_LEAST = 16
_LOOK_SECONDS = 1.0
_log = logging.getLogger(__name__)


class AccessError(SkewlessError, ValueError):
    """Tokens that cannot be used, or are missing where there must be some."""


class Refused(SkewlessError, PermissionError):
    """A request that is not let in.

    Args:
        status: 401, 403 or 429.
        reason: for metrics: `unauthenticated`, `forbidden` or `rate`.
        fact: why.
        retry_seconds: when it is worth asking again.
    """

    def __init__(self, status: int, reason: str, fact: str, retry_seconds: int | None = None) -> None:
        self.status, self.reason, self.retry_seconds = status, reason, retry_seconds
        super().__init__(fact)


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Where tokens come from; made of the environment, once."""

    tokens: Mapping[Kind, str]
    files: Mapping[Kind, Path]
    rate: float = math.inf
    """Requests a second that a token without a rate of its own may make."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> AccessSettings:
        """What the environment names. Raises AccessError for a rate that is no positive number."""
        tokens = {kind: environment[name] for kind, name in _VARIABLES.items() if environment.get(name)}
        files = {k: Path(environment[f"{n}_FILE"]) for k, n in _VARIABLES.items() if environment.get(f"{n}_FILE")}
        return cls(tokens, files, _rate(environment.get(_RATE) or "inf", _RATE))


@dataclass(frozen=True, slots=True)
class _Token:
    name: str
    digest: bytes
    rate: float


class Access:
    """Lets requests in. May be used from any thread.

    Args:
        settings: where the tokens are.
        now: a clock in seconds.

    Raises:
        AccessError: a token file cannot be read, or a token cannot be used.
    """

    def __init__(self, settings: AccessSettings, now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._now = now
        self._tokens: dict[Kind, list[_Token]] = {}
        self._seen: dict[Kind, object] = {}
        self._looked = now()
        self._buckets: dict[tuple[Kind, str], _Bucket] = {}
        self.refused: dict[tuple[Kind, str], int] = {}
        """Requests not let in, by what they asked for and why."""
        for kind in KINDS:
            if self.guards(kind):
                self._tokens[kind] = self._read(kind)

    def guards(self, kind: Kind) -> bool:
        """Whether a token is needed for this."""
        return kind in self._settings.tokens or kind in self._settings.files

    @property
    def open(self) -> bool:
        """Whether no token is needed for anything."""
        return not any(self.guards(kind) for kind in KINDS)

    def check(self, kind: Kind, authorization: str | None) -> str:
        """The name of who asks, by the value of an Authorization header; empty where no token is needed.

        Raises:
            Refused: nobody known, somebody who may not, or too often.
        """
        try:
            return self._check(kind, authorization)
        except Refused as refused:
            at = kind, refused.reason
            self.refused[at] = self.refused.get(at, 0) + 1
            raise

    def _check(self, kind: Kind, authorization: str | None) -> str:
        if self.open or (kind == "prediction" and not self.guards(kind)):
            return ""
        self._look()
        scheme, _, presented = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            raise Refused(401, "unauthenticated", f"A bearer token for {kind} is needed.")
        digest = _digest(presented.strip())
        found = self._holder(kind, digest)
        if found is None:
            other = next(each for each in KINDS if each != kind)
            if self._holder(other, digest) is not None:
                raise Refused(403, "forbidden", f"This token is for {other}, not for {kind}.")
            raise Refused(401, "unauthenticated", f"The token is not one for {kind}.")
        wait = self._bucket(kind, found).take(self._now())
        if wait:
            raise Refused(429, "rate", f"{found.name!r} asks more than {found.rate:g} times a second.", math.ceil(wait))
        return found.name

    def _holder(self, kind: Kind, digest: bytes) -> _Token | None:
        """Whose token it is. Every token is compared, each in the same time, whichever fits."""
        found = None
        for token in self._tokens.get(kind, ()):
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def _bucket(self, kind: Kind, token: _Token) -> _Bucket:
        bucket = self._buckets.get((kind, token.name))
        if bucket is None or bucket.rate != token.rate:
            bucket = self._buckets[kind, token.name] = _Bucket(token.rate, self._now())
        return bucket

    def _look(self) -> None:
        """Read files again that changed. What cannot be read now leaves the tokens as they were."""
        now = self._now()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for kind, path in self._settings.files.items():
            try:
                if _mark(path) != self._seen.get(kind):
                    self._tokens[kind] = self._read(kind)
                    _log.info("tokens read again", extra={"kind": kind, "tokens": len(self._tokens[kind])})
            except (OSError, AccessError) as error:
                _log.error("token file stays as it was read last: %s", error, extra={"kind": kind})

    def _read(self, kind: Kind) -> list[_Token]:
        found = []
        if kind in self._settings.tokens:
            found.append(_token("environment", self._settings.tokens[kind], self._settings.rate, _VARIABLES[kind]))
        path = self._settings.files.get(kind)
        if path is not None:
            try:
                mark, lines = _mark(path), path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise AccessError(
                    f"Token file {path} cannot be read: {error}.", hint="mend it; see docs/security.md."
                ) from error
            self._seen[kind] = mark
            for number, line in enumerate(lines, 1):
                if line.strip() and not line.lstrip().startswith("#"):
                    found.append(_parsed(line, f"{path}, line {number}", self._settings.rate))
        return found


class _Bucket:
    """A token bucket: as many requests at once as it may make in a second."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._most = max(rate, 1.0)
        self._held, self._at = self._most, now

    def take(self, now: float) -> float:
        """0, or the seconds until there is another."""
        if self.rate == math.inf:
            return 0.0
        self._held = min(self._most, self._held + (now - self._at) * self.rate)
        self._at = now
        if self._held < 1:
            return (1 - self._held) / self.rate
        self._held -= 1
        return 0.0


def need_tokens(host: str, access: Access) -> None:
    """Raise AccessError unless `host` is of this machine alone or prediction needs a token."""
    if not is_loopback(host) and not access.guards("prediction"):
        raise AccessError(
            f"Serving was to listen on {host}, where others can reach it, and no token is needed to ask.",
            hint=f"name a token file in {_VARIABLES['prediction']}_FILE (docs/security.md), or listen on 127.0.0.1.",
        )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parsed(line: str, where: str, otherwise: float) -> _Token:
    parts = line.split()
    if len(parts) not in (2, 3):
        raise AccessError(f"{where} has {len(parts)} words.", hint="NAME TOKEN, or NAME TOKEN REQUESTS_PER_SECOND.")
    return _token(parts[0], parts[1], _rate(parts[2], where) if len(parts) == 3 else otherwise, where)


def _token(name: str, token: str, rate: float, where: str) -> _Token:
    if len(token) < _LEAST:
        raise AccessError(
            f"{where}: the token of {name!r} has {len(token)} characters; it must have {_LEAST} or more.",
            hint='make one: `python -c "import secrets; print(secrets.token_urlsafe(32))"`.',
        )
    return _Token(name, _digest(token), rate)


def _rate(text: str, where: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise AccessError(f"{where}: {text!r} is no rate.", hint="requests a second, a positive number.")
    return rate


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _mark(path: Path) -> object:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino
