"""One cast for every path: what a declared Feast type does to a column.

Feast enforces declared types online only, so a double declared `Int64` is 1.7 offline and 1 online. Here the same cast
runs wherever a feature is computed: floats become integers by dropping the fraction (what is not finite becomes null),
and times become whole seconds, which is all Feast's online value can hold.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from asof.errors import AsofError


class TypeMismatch(AsofError, TypeError):
    """A value does not fit the declared type."""


def cast(column: pa.ChunkedArray | pa.Array, dtype: pa.DataType | None, where: str) -> pa.ChunkedArray | pa.Array:
    """The column in the declared type.

    Args:
        column: values as the source holds them.
        dtype: Arrow type to give; None leaves the column as it is.
        where: names view and feature in the error.

    Raises:
        TypeMismatch: for example text that is no number.
    """
    found = column.type
    if dtype is None:
        return column
    try:
        if pa.types.is_timestamp(dtype):
            return _seconds(column).cast(dtype)
        if found == dtype:
            return column
        if pa.types.is_dictionary(found):
            return cast(column.cast(found.value_type), dtype, where)
        if pa.types.is_decimal(found) and pa.types.is_floating(dtype):
            return cast(column.cast(pa.float64()), dtype, where)
        if pa.types.is_decimal(found) and pa.types.is_integer(dtype):
            return pc.trunc(column).cast(dtype)  # not by way of a float, which has no place for every whole number
        if pa.types.is_floating(found) and pa.types.is_integer(dtype):
            whole = pc.if_else(pc.is_finite(column), pc.trunc(column), pa.scalar(None, found))
            return whole.cast(dtype)
        if pa.types.is_map(dtype) or pa.types.is_struct(dtype):
            return column  # keys and fields stay as the source has them
        # Narrowing a float rounds, which safe casts already allow; integers that do not fit are refused.
        return column.cast(dtype, safe=not pa.types.is_floating(dtype) and not pa.types.is_list(dtype))
    except pa.ArrowException as error:
        raise TypeMismatch(
            f"{where}: declared {dtype}, found {found} that does not fit: {error}.",
            hint="Correct the declared type, or the source.",
        ) from error


def _seconds(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64()).cast(pa.timestamp("s", tz="UTC"))
    if pa.types.is_timestamp(column.type) and column.type.tz is None:
        column = column.cast(pa.timestamp(column.type.unit, tz="UTC"))
    return column.cast(pa.timestamp("us", tz="UTC")).cast(pa.timestamp("s", tz="UTC"), safe=False)
