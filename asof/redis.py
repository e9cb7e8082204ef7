"""Writing to Feast's Redis online store: all of a view at one moment, newest value kept.

Rows are first staged in a list of their own, some at a time, where no reader looks. Then one script, which Redis runs
as a whole or not at all, moves them into Feast's hashes, passing over those that hold a newer event. A process killed
while it stages leaves a list that expires; one killed later leaves a script that finishes without it. A cluster keeps
its keys on several machines, where no script reaches them all: that one is written through Feast, row by row.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.redis import RedisOnlineStore, RedisType, _versioned_fv_name
from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from asof.stored import Rows

_FORGOTTEN_AFTER = 3600
"""Seconds until what a killed process had staged is dropped."""

_ELEMENTS_AT_ONCE = 100_000
"""Redis takes about a million arguments to a command."""

_APPLY = """
local staged, keep, stamp = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local fields = #ARGV - 2
local width = fields + 2

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

local written = 0
while true do
  local rows = redis.call('lrange', staged, 0, width * 128 - 1)
  if #rows == 0 then break end
  redis.call('ltrim', staged, #rows, -1)
  for at = 1, #rows, width do
    local key, new, old = rows[at], rows[at + 1], nil
    old = redis.call('hget', key, stamp)
    local newer = true
    if old then
      local old_whole, old_nanos = moment(old)
      local whole, nanos = moment(new)
      newer = whole > old_whole or (whole == old_whole and nanos >= old_nanos)
    end
    if newer then
      local cells = {stamp, new}
      for field = 1, fields do
        cells[#cells + 1] = ARGV[field + 2]
        cells[#cells + 1] = rows[at + 1 + field]
        if #cells >= 4000 then redis.call('hset', key, unpack(cells)); cells = {} end
      end
      if #cells > 0 then redis.call('hset', key, unpack(cells)) end
      if keep > 0 then redis.call('expire', key, keep) end
      written = written + 1
    end
  end
end
return written
"""


def writable(config: RepoConfig) -> bool:
    """Whether one script reaches every key."""
    return config.online_store.redis_type != RedisType.redis_cluster


def write(
    config: RepoConfig, store: RedisOnlineStore, view: FeatureView, names: Sequence[str], rows: Iterable[Rows]
) -> int:
    """Upsert rows of one view, all or nothing; see `asof.online.Writer`."""
    client = store._get_client(config.online_store)
    name = _versioned_fv_name(view, config)
    staged = f"asof:staged:{config.project}:{uuid.uuid4().hex}"
    fields = [_mmh3(f"{name}:{feature}") for feature in names]
    arguments = [config.online_store.key_ttl_seconds or 0, f"_ts:{name}", *fields]
    parts = iter(rows)
    part = next(parts, None)
    while part is not None:
        after = next(parts, None)
        pipe = client.pipeline(transaction=True)
        elements = _elements(part, config)
        for first in range(0, len(elements), _ELEMENTS_AT_ONCE):
            pipe.rpush(staged, *elements[first : first + _ELEMENTS_AT_ONCE])
        pipe.expire(staged, _FORGOTTEN_AFTER)
        if after is None:
            # With the last rows, so that a small write is one round trip.
            pipe.eval(_APPLY, 1, staged, *arguments)
            return int(pipe.execute()[-1])
        pipe.execute()
        part = after
    return 0


def _elements(rows: Rows, config: RepoConfig) -> list[bytes]:
    """Of each row its key, its time and its values, one after the other."""
    project = config.project.encode()
    keys = [entity + project for entity in rows.entities(config.entity_key_serialization_version)]
    columns = [keys, [_stamp(event) for event in rows.events], *(feature.stored() for feature in rows.features)]
    return list(chain.from_iterable(zip(*columns, strict=True)))


@functools.lru_cache(maxsize=1 << 12)
def _stamp(event: int) -> bytes:
    seconds, micros = divmod(event, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000).SerializeToString()
