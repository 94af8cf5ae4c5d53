"""Recommendations for the users of a Spark DataFrame, from running servers, at low priority. Needs `tim4rec[spark]`.

    from tim4rec import Query, spark

    users = session.read.parquet("users.parquet")
    lists = spark.recommend(users, ["tim4rec-0:50051", "tim4rec-1:50051"], Query(k=10))
    lists.write.parquet("lists")

Every partition asks all servers, each user of the server that holds the user. The servers do the work: more partitions at a
time keep them busy, more executors than that change nothing. On each executor the package has to be installed.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from tim4rec._core import Tls
from tim4rec.batch import SCHEMA, Shards, pinned, table_of
from tim4rec.types import Query

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

_TYPES = {pa.string(): "string", pa.int32(): "int", pa.float32(): "float"}


def recommend(users: DataFrame, servers: Sequence[str], query: Query = Query(), *, column: str = "user_id",
              token: str | Callable[[], str] | None = None, tls: Tls | None = None) -> DataFrame:
    """A row per recommended item: user_id, rank (from 1), item_id, score, tier, model, error.

    A user who could not be answered has one row with rank 0 and `error`. Nothing is asked before the result is used; the
    model that serves and the time are fixed now, so that a task that Spark runs again gives the same rows. servers: the
    shards by the names that the router knows them by. token and tls go to the executors with the task; a function is
    called there. CallError: the first server cannot be reached.
    """
    if column not in users.columns:
        raise ValueError(f"no column {column!r}; there are {users.columns}")
    asked = pinned(query, servers[0], token=token, tls=tls)

    def answer(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        with Shards(servers, token=token, tls=tls) as shards:
            for frame in frames:
                if frame[column].isna().any():
                    raise ValueError(f"column {column!r}: a user id is null")
                yield table_of(shards.answer(frame[column].tolist(), asked)).to_pandas()
    text = users.select(users[column].cast("string").alias(column))
    return text.mapInPandas(answer, ", ".join(f"{f.name} {_TYPES[f.type]}" for f in SCHEMA))
