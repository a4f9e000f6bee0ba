"""A table of cells as Parquet, where pyarrow is installed (extra ``parquet``)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.optional import require
from edgekd.errors import InputError

MAGIC = b"PAR1"
_KEY = b"edgekd.trace"


def need() -> tuple[ModuleType, ModuleType]:
    """pyarrow and its Parquet.

    Raises:
        EnvironmentLacksError: it is not installed.
    """
    arrow = require("pyarrow", "parquet", "read and write Parquet")
    return arrow, require("pyarrow.parquet", "parquet", "read and write Parquet")


def write_table(path: Path, names: list[str], rows: list[list[str]], content: str) -> None:
    """Write a table that appears whole.

    Args:
        names: of the columns; the last one holds text, ``tiles`` whole numbers, others numbers.
        rows: cells as in a CSV; an empty one is null.
        content: kept in the schema's metadata.

    Raises:
        OutputError: it cannot be written.
    """
    arrow, parquet = need()

    def column(place: int, name: str) -> Any:
        cells = [row[place] for row in rows]
        if place == len(names) - 1:
            return arrow.array(cells, arrow.string())
        kind = arrow.int64() if name == "tiles" else arrow.float64()
        numbers = [None if cell == "" else float(cell) for cell in cells]
        return arrow.array(numbers, arrow.float64()).cast(kind)

    columns = [column(place, name) for place, name in enumerate(names)]
    # a name may stand twice in a trace, but not in Parquet
    labels = [f"{n}:{name}" if names.count(name) > 1 else name for n, name in enumerate(names)]
    table = arrow.table(columns, names=labels).replace_schema_metadata({_KEY: content.encode()})
    with publish_file(path) as part:
        parquet.write_table(table, part)


def read_table(path: Path) -> tuple[list[list[str]], str | None]:
    """The columns' cells as in a CSV, and what was kept beside them; None: nothing of ours.

    Raises:
        InputError: damaged.
    """
    arrow, parquet = need()

    def cell(value: Any) -> str:
        return "" if value is None else value if isinstance(value, str) else repr(value)

    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as err:
        raise InputError(f"{path} is damaged: {' '.join(str(err).split())[:120]}") from err
    content = (table.schema.metadata or {}).get(_KEY)
    columns = [[cell(value) for value in column.to_pylist()] for column in table.columns]
    return columns, None if content is None else content.decode("utf-8", errors="replace")
