"""What is written into SQL: names, strings, files to read."""

from __future__ import annotations

from pathlib import Path


def reading_files(files: tuple[Path, ...], renaming: str = "", more: str = "") -> str:
    """SQL for the rows of Parquet files, renamed, and of one more relation if there is one."""
    # Partition folders are text: guessed from the folders at hand, a column could change its type with their choice.
    read = f"read_parquet([{', '.join(text(str(file)) for file in files)}], hive_types_autocast = false)"
    if more:
        read = f"(select * from {read} union all by name select * from {more})"
    return f"(select *{renaming} from {read})" if renaming else read


def identifier(name: str) -> str:
    """A column or table name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A string, quoted for SQL."""
    return "'" + value.replace("'", "''") + "'"
