"""Tables in and out: pandas and pyarrow. Needs `pip install tim4rec[arrow]`, or `tim4rec[pandas]`."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from tim4rec.types import Interaction, Recommendation

if TYPE_CHECKING:
    import pandas as pd

RECOMMENDATIONS = pa.schema([("user_id", pa.string()), ("rank", pa.int32()), ("item_id", pa.string()),
                             ("score", pa.float32()), ("tier", pa.string()), ("model", pa.string())])


def batches(table: pa.Table | pd.DataFrame, *, user: str = "user_id", item: str = "item_id",
            time: str = "timestamp_ms", event: str | None = None,
            rows: int = 1000) -> Iterator[dict[str, list[Interaction]]]:
    """Interactions of a table, `rows` at a time, by user: what `Client.stream().send` takes.

    user, item, event: columns of strings, or of what a string is made from. time: integers are unix milliseconds;
    timestamps are converted, those without a time zone being UTC, and what is finer than a millisecond is cut off.
    ValueError names a missing column, a wrong type or the row of a null.
    """
    if rows < 1:
        raise ValueError(f"rows: {rows} is below 1")
    table = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)
    columns = [_text(table, user), _text(table, item), _milliseconds(table, time)]
    if event is not None:
        columns.append(_text(table, event))
    chosen = pa.table(columns, names=[str(i) for i in range(len(columns))])
    for start in range(0, chosen.num_rows, rows):
        by_user: dict[str, list[Interaction]] = {}
        for row in zip(*(column.to_pylist() for column in chosen.slice(start, rows).columns)):
            by_user.setdefault(row[0], []).append(Interaction(*row[1:]))
        yield by_user


def to_arrow(recommendations: Iterable[tuple[str, Recommendation]]) -> pa.Table:
    """One row per recommended item: user_id, rank (from 1), item_id, score, tier, model."""
    columns: list[list[object]] = [[] for _ in RECOMMENDATIONS]
    for user_id, answer in recommendations:
        for rank, scored in enumerate(answer.items, 1):
            for column, value in zip(columns, (user_id, rank, scored.item_id, scored.score,
                                               answer.provenance.tier.name, answer.provenance.model)):
                column.append(value)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, RECOMMENDATIONS)], schema=RECOMMENDATIONS)


def to_pandas(recommendations: Iterable[tuple[str, Recommendation]]) -> pd.DataFrame:
    """As `to_arrow`, as a DataFrame."""
    return to_arrow(recommendations).to_pandas()


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise ValueError(f"no column {name!r} in the table; it has {table.column_names}")
    column = table.column(name)
    if column.null_count:
        row = pc.index(pc.is_null(column, nan_is_null=True), True).as_py()
        raise ValueError(f"column {name!r}: row {row} is null")
    return column


def _text(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = _column(table, name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        raise ValueError(f"column {name!r}: {column.type} makes no ids; give integers or strings")
    return column.cast(pa.string())


def _milliseconds(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = _column(table, name)
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ms", column.type.tz), safe=False).cast(pa.int64())
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    raise ValueError(f"column {name!r}: {column.type} is no time; give timestamps or unix milliseconds")
