"""`as_of` in many processes: keys are split by hash, each part is answered by the same `as_of`, answers keep the order.

    session = Session(elsewhere=Shards(8, workers))     # from here on as_of(..., session) is computed in 8 parts

Views with the same keys are split together. A shard reads the events of its keys alone: the hash is a predicate of its
scan. A transformation in Python sees all rows of its source, as it does in one process: it runs once, and its result is
split. Views without entities have one key and are computed here. Who the workers are is `asof.cluster`'s business.

Grain: N = one row of the spine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from asof import latest
from asof.definition import Feature, Key, Shard, View
from asof.engine import Answer, Spine, check, evaluate, key_columns
from asof.errors import AsofError
from asof.session import Session
from asof.source import Source

Ints = NDArray[np.int64]


class WorkerMismatch(AsofError, RuntimeError):
    """A worker runs another DuckDB, whose hashes may differ."""


class Workers(Protocol):
    """Processes that run functions; handles stand for what they will return."""

    def start(self, function: Callable[..., Any], *arguments: Any, pieces: int = 1) -> list[Any]:
        """Run a function of `asof` somewhere; a handle for each of the `pieces` it returns.

        An argument that is a handle arrives as what it stands for. Code that only this process can import goes along.
        """

    def finished(self, handles: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(place, result) of each handle as they come; on an error the rest is given up."""


@dataclass(frozen=True)
class Failure:
    """What a worker has to say instead of an answer: an error crosses as a value, so it arrives as it was raised."""

    error: AsofError


@dataclass(frozen=True)
class Part:
    """What one shard is asked."""

    views: tuple[View, ...]
    spine: Spine
    """Its rows of the spine."""
    expire: bool
    since: int | None
    settings: dict[str, Any]
    """Of the worker's session."""
    duckdb: str = duckdb.__version__


@dataclass
class _Group:
    """Views with the same keys, and how the spine is split for them."""

    places: list[int] = field(default_factory=list)
    """Of the views among those asked for."""
    rows: list[Ints] = field(default_factory=list)
    """Rows of the spine of each part that has any."""
    handles: list[Any] = field(default_factory=list)
    """One per part in `rows`."""


class Shards:
    """Splits questions over workers.

    Args:
        count: parts to split the keys into; more than there are workers makes each smaller.
        workers: run them.
        settings: of the sessions that workers open, see `Session`.
    """

    def __init__(self, count: int, workers: Workers, settings: dict[str, Any] | None = None) -> None:
        self._count = count
        self._workers = workers
        self._settings = settings or {}

    def as_of(
        self, views: Sequence[View], spine: Spine, session: Session, *, expire: bool = True, since: int | None = None
    ) -> list[Answer]:
        """See `asof.engine.as_of`: the same arguments, the same answers, bit for bit.

        Raises:
            AsofError: what one process would raise; of several shards that fail, the first to say so.
        """
        for view in views:
            if not _runs_python(view.source):
                check(view, session)
        groups: dict[tuple[tuple[str, str], ...], _Group] = {}
        for place, view in enumerate(views):
            if view.keys and len(spine.at):
                groups.setdefault(tuple((k.column, str(k.dtype)) for k in view.keys), _Group()).places.append(place)
        for group in groups.values():
            self._start(group, views, spine, session, expire, since)
        answers: dict[int, Answer] = {}
        split = {place for group in groups.values() for place in group.places}
        here = [place for place in range(len(views)) if place not in split]
        for place, answer in zip(
            here, evaluate([views[p] for p in here], spine, session, expire=expire, since=since), strict=True
        ):
            answers[place] = answer
        handles = [(group, number) for group in groups.values() for number in range(len(group.handles))]
        parts: dict[int, dict[int, list[Answer]]] = {id(group): {} for group in groups.values()}
        for place, result in self._workers.finished([group.handles[number] for group, number in handles]):
            if isinstance(result, Failure):
                raise result.error
            group, number = handles[place]
            parts[id(group)][number] = result
        for group in groups.values():
            ordered = [parts[id(group)].pop(number) for number in range(len(group.rows))]
            for column, place in enumerate(group.places):
                answers[place] = _joined(views[place], [part[column] for part in ordered], group.rows, len(spine.at))
        return [answers[place] for place in range(len(views))]

    def _start(
        self,
        group: _Group,
        views: Sequence[View],
        spine: Spine,
        session: Session,
        expire: bool,
        since: int | None,
    ) -> None:
        keys = key_columns(views[group.places[0]], spine)
        by_hash = all(latest.is_plain(key.dtype) for key in views[group.places[0]].keys)
        count = self._count if by_hash else 1
        part = _parts(keys, views[group.places[0]].keys, self._count, session)
        bare = [_bare(views[place]) for place in group.places]
        pieces = {
            place: self._workers.start(
                transformed, view, _pieces(view, count), self._settings, pieces=_pieces(view, count)
            )
            for place, view in enumerate(bare)
            if _runs_python(view.source)
        }
        order = np.argsort(part, kind="stable")
        edges = np.searchsorted(part[order], np.arange(self._count + 1))
        names = list(dict.fromkeys(key.column for key in bare[0].keys))
        for number in range(self._count):
            rows = order[edges[number] : edges[number + 1]]
            if not len(rows):
                continue
            own = tuple(replace(view, shard=Shard(number, self._count) if by_hash else None) for view in bare)
            asked = Spine(spine.keys.select(names).take(pa.array(rows)), spine.at[rows], spine.asked[rows])
            supplied = [each[number % len(each)] for each in pieces.values()]
            group.rows.append(rows)
            group.handles += self._workers.start(
                answered, Part(own, asked, expire, since, self._settings), tuple(pieces), *supplied
            )


def answered(part: Part, transformed_places: tuple[int, ...], *pieces: pa.Table | Failure) -> list[Answer] | Failure:
    """Run in a worker: the answers of one shard.

    Args:
        part: what is asked.
        transformed_places: which of its views have a Python transformation.
        pieces: of each of those, the transformed rows of this shard.
    """
    try:
        _same_duckdb(part.duckdb)
        with Session(**part.settings) as session:
            for place, piece in zip(transformed_places, pieces, strict=True):
                if isinstance(piece, Failure):
                    return piece
                session.supply(part.views[place].source, piece)
            return evaluate(part.views, part.spine, session, expire=part.expire, since=part.since)
    except AsofError as error:
        return Failure(error)


def transformed(view: View, parts: int, settings: dict[str, Any]) -> Any:
    """Run in a worker: the rows of a Python transformation, split by key; one table when `parts` is 1."""
    try:
        with Session(**settings) as session:
            check(view, session)
            scan = session.scan(view.source)
            keys = [f"cast({scan.require(key.name, 'join key')} as {latest.sql_type(key.dtype)})" for key in view.keys]
            tables = [
                session.arrow(f"select * from {scan.relation} s where {latest.part_of(keys, parts)} = {number}")
                for number in range(parts)
            ]
    except AsofError as error:
        tables = [Failure(error)] * parts
    return tables[0] if parts == 1 else tables


def _pieces(view: View, count: int) -> int:
    """How many pieces transformed rows are split into: one where an event may be told of under several keys."""
    return 1 if view.source.event_id else count


def _same_duckdb(wanted: str) -> None:
    if duckdb.__version__ != wanted:
        raise WorkerMismatch(
            f"A worker runs DuckDB {duckdb.__version__}, the process that asks {wanted}.",
            hint="Install the same constraints.txt on every machine of the cluster.",
        )


def _runs_python(source: Source) -> bool:
    return source.transform is not None and not source.transform.is_sql


def _parts(keys: list[pa.ChunkedArray], kinds: Sequence[Key], count: int, session: Session) -> Ints:
    """The part of each row of the spine."""
    table = session.hold("split", pa.table(keys, [f"k{i}" for i in range(len(keys))]))
    cast = [f"cast(k{i} as {latest.sql_type(kind.dtype)})" for i, kind in enumerate(kinds)]
    # A key with a null in it has no answer and may go anywhere.
    found = session.arrow(f"select cast(coalesce({latest.part_of(cast, count)}, 0) as bigint) as part from {table}")
    session.release(table)
    return found["part"].to_numpy()


def _bare(view: View) -> View:
    """The view without Feast's own objects, which no worker needs to import."""

    def plain(feature: Feature) -> Feature:
        return replace(feature, field=None)  # type: ignore[arg-type]

    return replace(
        view,
        keys=tuple(replace(key, feast_type=None) for key in view.keys),  # type: ignore[arg-type]
        features=tuple(plain(feature) for feature in view.features),
        declared=tuple(plain(feature) for feature in view.declared),
        windows=tuple(replace(window, feature=plain(window.feature)) for window in view.windows),
    )


def _joined(view: View, parts: list[Answer], rows: list[Ints], count: int) -> Answer:
    """One answer from those of the parts, rows in the spine's order."""
    back, event, found = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, bool)
    back[np.concatenate(rows)] = np.arange(count)
    for part, own in zip(parts, rows, strict=True):
        event[own], found[own] = part.event, part.found
    # A part whose every value is missing may not know the type the others have.
    features = pa.concat_tables([part.features for part in parts], promote_options="default").combine_chunks()
    return Answer(view, features.take(pa.array(back)), event, found)
