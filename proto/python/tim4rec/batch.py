"""tim4rec-batch: recommendations for many users into Parquet files, from running servers, at low priority.

Usage: tim4rec-batch USERS OUT --servers HOST:PORT[,HOST:PORT...] [--k 10] [--as-of-ms MS] ...

USERS is a Parquet or CSV file with a column of user ids (--column), or a text file with one id per line: for everybody
`tim4rec users --store BACKUP >USERS`. OUT is a folder:
it gets part-00000.parquet and so on, --part-users users each, in the order of USERS, a row per recommended item: user_id,
rank (from 1), item_id, score, tier, model; and for a user who could not be answered one row with rank 0 and `error`.

Run it again with the same OUT after it was stopped, however: parts that are there are kept, the rest is made with the same
model and the same as_of_ms, which OUT/batch.json holds. Other options than the first run's are refused.

With several servers each user is asked of the server that holds the user, by the names that the router has for them.
--shard I answers the users of the I-th of them only (from 0): one job per shard, a folder for each.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tim4rec._core import Tls
from tim4rec.client import Client
from tim4rec.errors import CallError
from tim4rec.frames import RECOMMENDATIONS
from tim4rec.retry import Retry
from tim4rec.ring import Ring
from tim4rec.types import Query, UserRecommendation

SCHEMA = RECOMMENDATIONS.append(pa.field("error", pa.string()))
PATIENT = Retry(attempts=200)  # a server that restarts is waited for, some minutes
BAR_WIDTH = 30
PLAIN_INTERVAL_S = 15.0


def read_users(path: pathlib.Path, column: str) -> Iterator[str]:
    """The user ids of a file, in order, in bounded memory. ValueError names what is wrong with it."""
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        if column not in file.schema_arrow.names:
            raise ValueError(f"{path}: no column {column!r}; it has {file.schema_arrow.names}")
        batches = file.iter_batches(columns=[column])
    elif path.suffix == ".csv":
        options = pa.csv.ConvertOptions(include_columns=[column], column_types={column: pa.string()})
        try:
            batches = pa.csv.open_csv(path, convert_options=options)
        except pa.ArrowKeyError as error:
            raise ValueError(f"{path}: {error}") from None
    else:
        with path.open(encoding="utf-8") as lines:
            yield from (line.rstrip("\n") for line in lines)
        return
    for batch in batches:
        users = batch.column(0)
        if users.null_count:
            raise ValueError(f"{path}: a user id is null")
        yield from users.cast(pa.string()).to_pylist()


def count_users(path: pathlib.Path, column: str) -> int:
    """How many: from the footer of a Parquet file, else by reading."""
    if path.suffix == ".parquet":
        return int(pq.ParquetFile(path).metadata.num_rows)
    return sum(1 for _ in read_users(path, column))


def table_of(answers: Sequence[UserRecommendation]) -> pa.Table:
    """The rows of a part."""
    columns: list[list[Any]] = [[] for _ in SCHEMA]
    for answer in answers:
        found = answer.recommendation
        if found is None:
            rows: Iterator[tuple[Any, ...]] = iter([(answer.user_id, 0, None, None, None, None, str(answer.error))])
        else:
            tier, model = found.provenance.tier.name, found.provenance.model
            rows = ((answer.user_id, rank, item.item_id, item.score, tier, model, None)
                    for rank, item in enumerate(found.items, 1))
        for row in rows:
            for values, value in zip(columns, row):
                values.append(value)
    return pa.table([pa.array(v, f.type) for v, f in zip(columns, SCHEMA)], schema=SCHEMA)


def pinned(query: Query, server: str, **options: Any) -> Query:
    """The query with the model that `server` serves now and this moment where it names none, so that all answers are alike."""
    with Client(server, retry=PATIENT, **options) as client:
        model = client.recommend("-", Query(k=1, model=query.model)).provenance.model
    return dataclasses.replace(query, as_of_ms=query.as_of_ms or int(time.time() * 1000), model=model)


class Shards:
    """Asks every user of the server that holds the user, by the names that the router has for the servers.

    only: the one server to ask; the others' users are left out. options: of each Client. Close it.
    """

    def __init__(self, servers: Sequence[str], only: str | None = None, **options: Any) -> None:
        self._ring, self._servers = Ring(servers), list(servers)
        self._clients = {s: Client(s, retry=PATIENT, **options) for s in servers if only in (None, s)}
        self._pool = concurrent.futures.ThreadPoolExecutor(len(self._clients))

    def answer(self, users: Sequence[str], query: Query) -> list[UserRecommendation]:
        """In the order of `users`; every server at the same time. CallError: a server could not be had."""
        places: dict[str, list[int]] = {s: [] for s in self._servers}
        for place, user in enumerate(users):
            places[self._ring.server_of(user)].append(place)

        def ask(server: str) -> list[UserRecommendation]:
            return list(self._clients[server].recommend_batch((users[p] for p in places[server]), query))
        answers: list[UserRecommendation | None] = [None] * len(users)
        for server, found in zip(self._clients, self._pool.map(ask, self._clients)):
            for place, one in zip(places[server], found):
                answers[place] = one
        return [a for a in answers if a is not None]

    def close(self) -> None:
        self._pool.shutdown()
        for client in self._clients.values():
            client.close()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_part(out: pathlib.Path, number: int, answers: Sequence[UserRecommendation]) -> None:
    """A part is there whole, or not at all."""
    part = part_of(out, number)
    new = part.with_suffix(".new")
    pq.write_table(table_of(answers), new)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(part)


def part_of(out: pathlib.Path, number: int) -> pathlib.Path:
    return out / f"part-{number:05d}.parquet"


class Bar:
    """How far it is, how fast, how long still; on a terminal in place, else a line now and then."""

    def __init__(self, total: int) -> None:
        self._total, self._began = total, time.monotonic()
        self._made = 0
        self._last = self._began

    def show(self, done: int, made: int) -> None:
        """done: users behind us; made: those of them that this run answered."""
        now = time.monotonic()
        last = done >= self._total
        if not (sys.stderr.isatty() or last or now - self._last > PLAIN_INTERVAL_S):
            return
        self._last = now
        rate = made / max(now - self._began, 1e-9)
        left = (self._total - done) / rate if rate > 0 else 0.0
        filled = BAR_WIDTH * done // max(self._total, 1)
        end = "\n" if last or not sys.stderr.isatty() else ""
        start = "\r\033[K" if sys.stderr.isatty() else ""
        print(f"{start}batch [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done}/{self._total} users  {rate:.0f}/s  "
              f"{int(left) // 60}:{int(left) % 60:02d} left", end=end, file=sys.stderr, flush=True)


def client_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """TLS and token of the command line. The token's file is read for every call, so that it may be replaced."""
    options: dict[str, Any] = {}
    if arguments.ca or arguments.certificate or arguments.key or arguments.server_name:
        options["tls"] = Tls.from_files(arguments.ca, arguments.certificate, arguments.key, arguments.server_name)
    if arguments.token_file:
        options["token"] = lambda: arguments.token_file.read_text().strip()
    return options


def plan(arguments: argparse.Namespace, servers: Sequence[str], options: dict[str, Any]) -> Query:
    """The query of this folder: the first run's, or a new one that is then written down. ValueError: they differ."""
    wanted: dict[str, Any] = {
        "users": arguments.users.name, "users_bytes": arguments.users.stat().st_size, "column": arguments.column,
        "part_users": arguments.part_users, "servers": sorted(servers), "shard": arguments.shard, "k": arguments.k,
        "exclude_seen": not arguments.include_seen, "as_of_ms": arguments.as_of_ms, "model": arguments.model}
    path = arguments.out / "batch.json"
    if path.exists():
        plan_of_first = json.loads(path.read_text())
        for name, value in wanted.items():
            if value not in (plan_of_first[name], None, ""):
                raise ValueError(f"{path}: the first run had {name} {plan_of_first[name]!r}, this one has {value!r}")
        wanted = plan_of_first
    else:
        # By the same server whatever the shard.
        asked = pinned(Query(as_of_ms=arguments.as_of_ms or 0, model=arguments.model), servers[0], **options)
        wanted["model"], wanted["as_of_ms"] = asked.model, asked.as_of_ms
        new = path.with_suffix(".new")
        new.write_text(json.dumps(wanted, indent=1) + "\n")
        new.replace(path)
    return Query(k=wanted["k"], as_of_ms=wanted["as_of_ms"], exclude_seen=wanted["exclude_seen"], model=wanted["model"])


def run(arguments: argparse.Namespace) -> int:
    servers = arguments.servers.split(",")
    if arguments.shard is not None and not 0 <= arguments.shard < len(servers):
        raise ValueError(f"--shard {arguments.shard}: there are {len(servers)} servers")
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = client_options(arguments)
    query = plan(arguments, servers, options)
    done = made = failed = 0
    with Shards(servers, None if arguments.shard is None else servers[arguments.shard], **options) as shards:
        bar = Bar(count_users(arguments.users, arguments.column))
        users = read_users(arguments.users, arguments.column)
        for number in itertools.count():
            part = list(itertools.islice(users, arguments.part_users))
            if not part:
                break
            if not part_of(arguments.out, number).exists():
                answers = shards.answer(part, query)
                failed += sum(a.error is not None for a in answers)
                write_part(arguments.out, number, answers)
                made += len(part)
            done += len(part)
            bar.show(done, made)
    if failed:
        print(f"tim4rec-batch: {failed} users could not be answered; see the column `error`", file=sys.stderr)
    return 1 if failed else 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="tim4rec-batch", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("users", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--column", default="user_id", help="of user ids in USERS (default user_id)")
    parser.add_argument("--k", type=int, default=10, help="items per user, 1 to 1000 (default 10)")
    parser.add_argument("--as-of-ms", type=int, help="the time that the lists are for, unix ms (default: the start)")
    parser.add_argument("--include-seen", action="store_true", help="recommend items of the user's history too")
    parser.add_argument("--model", default="", help='"name@fingerprint" (default: the one that serves)')
    parser.add_argument("--part-users", type=int, default=10_000, help="users per file, held in memory (default 10000)")
    parser.add_argument("--shard", type=int, help="only the users of this one of the servers, from 0")
    parser.add_argument("--ca", type=pathlib.Path, help="PEM file of who signed the servers' certificates: speaks TLS")
    parser.add_argument("--server-name", default="", help="in the servers' certificates, if not the name that is dialled")
    parser.add_argument("--certificate", type=pathlib.Path, help="PEM file of our own, if the servers ask for one")
    parser.add_argument("--key", type=pathlib.Path, help="PEM file with its key")
    parser.add_argument("--token-file", type=pathlib.Path, help="with the token that the servers ask for")
    try:
        sys.exit(run(parser.parse_args()))
    except (ValueError, OSError, CallError) as error:
        sys.exit(f"tim4rec-batch: {error}")


if __name__ == "__main__":
    main()
