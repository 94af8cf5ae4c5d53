#!/usr/bin/env python3
"""Reads interactions from a growing file and records them: at least once, and, as the server knows repeats, exactly once.

Usage: tail_interactions.py FILE --servers HOST:PORT[,HOST:PORT…] [--once] [--ca FILE …] [--token-file FILE]

FILE has a JSON object per line: {"user_id": "ada", "item_id": "50", "timestamp_ms": 1700000000000}, and an "event_id"
where the same item may come twice in a millisecond. The servers are the shards by the names that the router knows them
by; each user's events go to the shard that holds the user. FILE.offset holds how far the file is stored on disk, synced;
kill the program, or a server, at any moment: the next run goes on from there, and what it sends twice counts once.

--once ends at the end of the file instead of waiting for more. SIGTERM and Ctrl-C end it after the current batch.
Lines that are no interaction, and interactions that a server rejects, are told on stderr and not tried again.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator

from tim4rec import BatchAck, Client, Interaction, InteractionStream, Retry, Ring, Tls

LINES_PER_BATCH = 500
BATCHES_PER_COMMIT = 20
WAIT_S = 0.2
REPORT_S = 5.0
FOR_EVER = Retry(attempts=1_000_000)  # a shard that is away comes back with its volume


def parse(line: bytes) -> tuple[str, Interaction]:
    """(user id, interaction) of a line. ValueError, KeyError or TypeError for one that is none."""
    event = json.loads(line)
    user, item, time_ms, name = event["user_id"], event["item_id"], event["timestamp_ms"], event.get("event_id", "")
    if not (isinstance(user, str) and isinstance(item, str) and isinstance(name, str) and type(time_ms) is int):
        raise TypeError("user_id, item_id and event_id are strings, timestamp_ms is an integer")
    return user, Interaction(item, time_ms, name)


class Shards:
    """A stream to each server."""

    def __init__(self, servers: list[str], stack: contextlib.ExitStack, tls: Tls | None,
                 token: Callable[[], str] | None) -> None:
        self._ring = Ring(servers)
        self._streams: dict[str, InteractionStream] = {}
        for server in servers:
            client = stack.enter_context(Client(server, retry=FOR_EVER, tls=tls, token=token))
            self._streams[server] = stack.enter_context(contextlib.closing(client.stream(durable=True)))
        self.stored = self.repeated = self.rejected = 0

    def send(self, events: list[tuple[str, Interaction]]) -> None:
        by_server: dict[str, dict[str, list[Interaction]]] = {}
        for user, event in events:
            by_server.setdefault(self._ring.server_of(user), {}).setdefault(user, []).append(event)
        for server, users in by_server.items():
            self._count(self._streams[server].send(users))

    def flush(self) -> None:
        for stream in self._streams.values():
            self._count(stream.flush())

    def _count(self, acks: list[BatchAck]) -> None:
        for ack in acks:
            self.stored += ack.applied + ack.late_refolded + ack.unknown_items
            self.repeated += ack.duplicates + ack.expired
            for user, event, reason in ack.rejected:
                self.rejected += 1
                print(f"rejected: {user!r} {event}: {reason}", file=sys.stderr)


def batches(path: pathlib.Path, offset: int) -> Iterator[tuple[list[tuple[str, Interaction]], int]]:
    """Batches of complete lines, each with the offset behind it; an empty one where there is no line yet."""
    with path.open("rb") as file:
        file.seek(offset)
        while True:
            events: list[tuple[str, Interaction]] = []
            while len(events) < LINES_PER_BATCH:
                line = file.readline()
                if not line.endswith(b"\n"):  # the end, or a line that is being written
                    file.seek(offset)
                    break
                offset += len(line)
                try:
                    events.append(parse(line))
                except (ValueError, KeyError, TypeError) as error:
                    print(f"no interaction: {line!r}: {error!r}", file=sys.stderr)
            yield events, offset


def commit(mark: pathlib.Path, offset: int) -> None:
    """Replaces the mark; a crash leaves the old one or the new one."""
    new = mark.with_suffix(mark.suffix + ".new")
    with new.open("w") as file:
        file.write(str(offset))
        file.flush()
        os.fsync(file.fileno())
    new.replace(mark)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--ca", type=pathlib.Path, help="PEM file of who signed the servers' certificates: speaks TLS")
    parser.add_argument("--server-name", default="", help="in the servers' certificates, if not the name that is dialled")
    parser.add_argument("--certificate", type=pathlib.Path, help="PEM file of our own, if the servers ask for one")
    parser.add_argument("--key", type=pathlib.Path, help="PEM file with its key")
    parser.add_argument("--token-file", type=pathlib.Path, help="with the token that the servers ask for; read for every call")
    arguments = parser.parse_args()
    tls: Tls | None = None
    token: Callable[[], str] | None = None
    if arguments.ca or arguments.certificate or arguments.key or arguments.server_name:
        tls = Tls.from_files(arguments.ca, arguments.certificate, arguments.key, arguments.server_name)
    if arguments.token_file:
        token = lambda: str(arguments.token_file.read_text().strip())
    mark = arguments.file.with_name(arguments.file.name + ".offset")
    done = int(mark.read_text()) if mark.exists() else 0
    if done > arguments.file.stat().st_size:
        sys.exit(f"{arguments.file} is shorter than what was read of it ({done} bytes): another file? remove {mark}")

    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    with contextlib.ExitStack() as stack:
        shards = Shards(arguments.servers.split(","), stack, tls, token)
        began = reported = time.monotonic()
        unsaved = 0
        for events, offset in batches(arguments.file, done):
            shards.send(events)
            unsaved += 1
            at_end = not events or stopped
            if at_end or unsaved == BATCHES_PER_COMMIT:
                shards.flush()
                if offset != done:
                    commit(mark, offset)
                done, unsaved = offset, 0
            now = time.monotonic()
            if now - reported > REPORT_S or (at_end and (arguments.once or stopped)):
                size = arguments.file.stat().st_size
                rate = (shards.stored + shards.repeated) / max(now - began, 1e-9)
                print(f"{shards.stored} stored, {shards.repeated} repeated, {shards.rejected} rejected; {rate:.0f}/s; "
                      f"{done} of {size} bytes", flush=True)
                reported = now
            if stopped or (not events and arguments.once):
                break
            if not events:
                time.sleep(WAIT_S)


if __name__ == "__main__":
    main()
