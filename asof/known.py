"""What materialization asks of a view's source at every boundary, answered from memory: which keys have news.

For a source that is kept in a session. A database plans every question anew, and these are asked hour by hour: planning
takes longer than the answer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from asof import latest
from asof.definition import View
from asof.quoting import identifier
from asof.session import Session
from asof.timeline import FOREVER


class KnownKeys:
    """Key and times of every row of a view's source, in the order in which they became known.

    Args:
        view: whose keys; rows with a null in theirs are left out.
        session: reads the source, here and never again.
    """

    def __init__(self, view: View, session: Session) -> None:
        names = [identifier(key.column) for key in view.keys]
        rows = latest.rows_of(
            replace(view, keys=()), session.scan(view.source), "", [key.name for key in view.keys], until=FOREVER
        )
        cells = [f"cast(c{i} as {latest.sql_type(key.dtype)}) as {names[i]}" for i, key in enumerate(view.keys)]
        code = f"dense_rank() over (order by {', '.join(names)}) - 1" if names else "0"
        table = session.arrow(
            f"select {', '.join([*names, 'event', 'known', f'{code} as code'])} "
            f"from (select {', '.join(['event', 'known', *cells])} from ({rows})) "
            f"where {' and '.join(f'{name} is not null' for name in ['known', *names])} order by known"
        )
        self._event, self._known, self._code = (table[name].to_numpy() for name in ("event", "known", "code"))
        _, first = np.unique(self._code, return_index=True)
        self._keys = table.select([key.column for key in view.keys]).take(pa.array(first))

    def live(self, after: int, until: int, since: int | None) -> tuple[pa.Table, int, int]:
        """The keys of which something became known in (after, until] that had not happened before `since`.

        All in microseconds; `since` None is never.

        Returns:
            The keys, columns as in the spine, none where the view has no entities; their number; and the first event
            of theirs, `until` where there are none.
        """
        first, last = np.searchsorted(self._known, [after, until], "right")
        event, code = self._event[first:last], self._code[first:last]
        if since is not None:
            kept = event >= since
            event, code = event[kept], code[kept]
        found = np.unique(code)
        return self._keys.take(pa.array(found)), len(found), int(event.min(initial=until))
