"""Writing to Feast's Redis online store: all of a view at one moment, newest value kept.

Rows are first staged in a list of their own, some at a time, where no reader looks. Then one script, which Redis runs
as a whole or not at all, moves them into Feast's hashes, passing over those that hold a newer event. A process killed
while it stages leaves a list that expires; one killed later leaves a script that finishes without it.

A cluster keeps its keys on several machines, and no script reaches them all: there each row is a script of its own, by
the same rule. A row is whole or absent, a view that is being written is not; writing it again completes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig, RedisType, _versioned_fv_name
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from asof.unwritten import not_written
from asof.wire_columns import joined, lengths, moments, slices

if TYPE_CHECKING:
    from redis import Redis
    from redis.cluster import RedisCluster

    from asof.stored import Rows

_FORGOTTEN_AFTER = 3600
"""Seconds until what a killed process had staged is dropped."""

_ROWS_PER_ELEMENT = 128
"""Of what is staged. The script holds 16 elements at a time."""

_AWAY = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterDownError,
    exceptions.RedisClusterException,
)

_TIMES = """
local function varint(text, at)
  local value, scale = 0, 1
  local start = at
  while true do
    local byte = string.byte(text, at)
    at = at + 1
    if byte < 128 then return value + byte * scale, at end
    if at - start == 10 then break end
    value, scale = value + (byte - 128) * scale, scale * 128
  end
end

local function seconds(text, at)
  if string.byte(text, at + 9) ~= 1 or #text < at + 9 then return varint(text, at) end
  local value, scale = 0, 1  -- ten bytes: before 1970, in two's complement
  for place = at, at + 8 do
    local byte = string.byte(text, place)
    if byte < 128 then return varint(text, at) end
    value, scale = value + (255 - byte) * scale, scale * 128
  end
  return -value - 1, at + 10
end

local function moment(text)
  local whole, nanos, at = 0, 0, 1
  while at <= #text do
    if string.byte(text, at) == 8 then whole, at = seconds(text, at + 1)
    else nanos, at = varint(text, at + 1) end
  end
  return whole, nanos
end

-- Whether a row of the time `new` may take the place of one of the time `old`: an equal one may have been corrected.
local function newest(old, new)
  if not old or old == new then return true end
  local old_whole, old_nanos = moment(old)
  local whole, nanos = moment(new)
  return whole > old_whole or (whole == old_whole and nanos >= old_nanos)
end

-- The times are serialised protobuf Timestamps. Lua's stack takes some thousands of values at once.
local function put(key, keep, cells, first, last)
  for from = first, last, 4000 do
    redis.call('hset', key, unpack(cells, from, math.min(from + 3999, last)))
  end
  if keep > 0 then redis.call('expire', key, keep) end
end
"""

_APPLY = f"""{_TIMES}
local staged, keep, stamp = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local fields = #ARGV - 2

-- What every row is written with: its time, then each field; the values change.
local cells = {{stamp}}
for field = 1, fields do cells[2 * field + 1] = ARGV[field + 2] end
local last, written = 2 * fields + 2, 0
while true do
  local blocks = redis.call('lrange', staged, 0, 15)
  if #blocks == 0 then break end
  redis.call('ltrim', staged, #blocks, -1)
  for place = 1, #blocks do
    local block, at, key, new = blocks[place], 1, nil, nil
    while at <= #block do
      key, new, at = struct.unpack('<I4c0I4c0', block, at)
      cells[2] = new
      for cell = 4, last, 2 do cells[cell], at = struct.unpack('<I4c0', block, at) end
      if newest(redis.call('hget', key, stamp), new) then
        put(key, keep, cells, 1, last)
        written = written + 1
      end
    end
  end
end
return written
"""

_APPLY_ROW = f"""{_TIMES}
if not newest(redis.call('hget', KEYS[1], ARGV[2]), ARGV[3]) then return 0 end
put(KEYS[1], tonumber(ARGV[1]), ARGV, 2, #ARGV)
return 1
"""


def write(
    config: RepoConfig, store: RedisOnlineStore, view: FeatureView, names: Sequence[str], rows: Iterable[Rows]
) -> int:
    """Upsert rows of one view, all or nothing unless they are spread over a cluster; see `asof.online.Writer`.

    Raises:
        StoreNotWritten: nobody answers, or not in time.
    """
    settings = config.online_store
    try:
        client, name = _client(store, settings), _versioned_fv_name(view, config)
        head = [settings.key_ttl_seconds or 0, f"_ts:{name}"]
        fields = [_mmh3(f"{name}:{feature}") for feature in names]
        if settings.redis_type == RedisType.redis_cluster:
            return sum(_write_spread(part, client, config, head, fields) for part in rows)
        return _write_together(rows, client, config, head, fields)
    except _AWAY as error:
        nodes, _ = store._parse_connection_string(settings.connection_string)
        where = ", ".join(f"{node['host']}:{node['port']}" for node in nodes)
        fact = (
            f"none of the Sentinels knows a master {settings.sentinel_master!r} that is up"
            if isinstance(error, MasterNotFoundError)  # its own text describes Python's objects
            else str(error)
        )
        raise not_written([view.name], "Redis", where, fact) from error


def _client(store: RedisOnlineStore, settings: RedisOnlineStoreConfig) -> Any:
    client = store._get_client(settings)
    if settings.redis_type == RedisType.redis_sentinel:
        # Where one Sentinel is away the next is asked: redis-py would try each again for up to half a minute.
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            sentinel.set_retry(Retry(NoBackoff(), 0))
    return client


def _write_together(
    rows: Iterable[Rows], client: Redis, config: RepoConfig, head: Sequence[Any], fields: Sequence[bytes]
) -> int:
    """Upsert rows at one moment; how many were new.

    Args:
        rows: of one view, in parts.
        client: of the server.
        config: of the repository.
        head: seconds to keep a key, or 0, and the field of the time.
        fields: of the features.
    """
    staged = f"asof:staged:{config.project}:{uuid.uuid4().hex}"
    parts = iter(rows)
    part = next(parts, None)
    while part is not None:
        after = next(parts, None)
        pipe = client.pipeline(transaction=True)
        pipe.rpush(staged, *_elements(part, config))
        pipe.expire(staged, _FORGOTTEN_AFTER)
        if after is None:
            # With the last rows, so that a small write is one round trip.
            pipe.eval(_APPLY, 1, staged, *head, *fields)
            return int(pipe.execute()[-1])
        pipe.execute()
        part = after
    return 0


def _write_spread(
    rows: Rows, client: RedisCluster, config: RepoConfig, head: Sequence[Any], fields: Sequence[bytes]
) -> int:
    """Upsert some rows one by one, those of a node together; see `_write_together`."""
    columns = [_keys(rows, config), moments(rows.events), *(feature.stored() for feature in rows.features)]
    listed = list(zip(*(column.to_pylist() for column in columns), strict=True))
    for last in (False, True):
        script = client.script_load(_APPLY_ROW)
        pipe = client.pipeline()
        for key, moment, *values in listed:
            cells = chain.from_iterable(zip(fields, values, strict=True))
            # The pipeline's own `evalsha` is switched off because a script may have keys on several nodes.
            pipe.execute_command("EVALSHA", script, 1, key, *head, moment, *cells)
        try:
            return sum(pipe.execute())
        except exceptions.NoScriptError:  # a node has joined, or was started again, since the script was loaded
            if last:
                raise
    raise AssertionError("unreachable")


def _keys(rows: Rows, config: RepoConfig) -> pa.LargeBinaryArray:
    return joined(rows.entities(config.entity_key_serialization_version), config.project.encode())


def _elements(rows: Rows, config: RepoConfig) -> list[bytes]:
    """Of each row its key, its time and its values, each behind its length; some rows to an element."""
    columns = [_keys(rows, config), moments(rows.events), *(feature.stored() for feature in rows.features)]
    sized = [part for column in columns for part in (lengths(column, "<u4"), column)]
    return slices(joined(*sized), _ROWS_PER_ELEMENT)
