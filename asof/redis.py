"""Writing to Feast's Redis online store: all of a view at one moment, newest value kept.

Rows are first staged in a list of their own, some at a time, where no reader looks. Then one script, which Redis runs
as a whole or not at all, moves them into Feast's hashes, passing over those that hold a newer event. A process killed
while it stages leaves a list that expires; one killed later leaves a script that finishes without it. A cluster keeps
its keys on several machines, where no script reaches them all: that one is written through Feast, row by row.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.redis import RedisOnlineStore, RedisType, _versioned_fv_name

from asof.wire_columns import joined, lengths, moments, slices

if TYPE_CHECKING:
    from asof.stored import Rows

_FORGOTTEN_AFTER = 3600
"""Seconds until what a killed process had staged is dropped."""

_ROWS_PER_ELEMENT = 128
"""Of what is staged. The script holds 16 elements at a time."""

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

-- What every row is written with: its time, then each field; the values change.
local cells = {stamp}
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
      local old, newer = redis.call('hget', key, stamp), true
      if old and old ~= new then
        local old_whole, old_nanos = moment(old)
        local whole, nanos = moment(new)
        newer = whole > old_whole or (whole == old_whole and nanos >= old_nanos)
      end
      if newer then
        for first = 1, last, 4000 do
          redis.call('hset', key, unpack(cells, first, math.min(first + 3999, last)))
        end
        if keep > 0 then redis.call('expire', key, keep) end
        written = written + 1
      end
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
        pipe.rpush(staged, *_elements(part, config))
        pipe.expire(staged, _FORGOTTEN_AFTER)
        if after is None:
            # With the last rows, so that a small write is one round trip.
            pipe.eval(_APPLY, 1, staged, *arguments)
            return int(pipe.execute()[-1])
        pipe.execute()
        part = after
    return 0


def _elements(rows: Rows, config: RepoConfig) -> list[bytes]:
    """Of each row its key, its time and its values, each behind its length; some rows to an element."""
    key = joined(rows.entities(config.entity_key_serialization_version), config.project.encode())
    columns = [key, moments(rows.events), *(feature.stored() for feature in rows.features)]
    sized = [part for column in columns for part in (lengths(column, "<u4"), column)]
    return slices(joined(*sized), _ROWS_PER_ELEMENT)
