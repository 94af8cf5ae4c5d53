#!/usr/bin/env python3
"""Peers that are gone without a word: their connections are closed, and what was held for them is free again.

Usage: keepalive.py BUILD     BUILD: build/<preset>

A stopped process still acknowledges what its kernel receives, as a proxy does that swallows everything: only HTTP/2's pings
tell that nobody is there. Hand-written peers that answer no ping, and a real client that is stopped by SIGSTOP. Standard
library only.
"""
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from abuse import (DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RECOMMEND, SETTINGS, Connection, data_frames,  # noqa: E402
                   field, frame, grpc_message, headers)
from server_process import TINY_MODEL, ServerProcess  # noqa: E402

KEEPALIVE_MS = 1000
STREAM = "/tim4rec.v1.Recommender/StreamInteractions"
PATIENCE_S = 60


def metric(server, name):
    return float(re.search(rf"^{name} (\S+)$", server.scrape(), re.MULTILINE)[1])


def wait_until(what, holds):
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_S} s: {what}")
        time.sleep(0.05)


def ends(connection):
    """Whether the server closes it; no ping and nothing else is answered meanwhile."""
    try:
        for _ in connection.frames():
            pass
    except ConnectionError:
        pass
    return True


def batch(users):
    """A StreamInteractionsRequest: one event each."""
    event = field(1, b"item1") + field(2, 1_700_000_000_000)
    return grpc_message(b"".join(field(2, field(1, b"u%d" % u) + field(2, event)) for u in range(users)))


def open_stream(address):
    """A stream that lets the server send nothing: its answers stay there."""
    connection = Connection(address, settings=struct.pack(">HI", 4, 0))
    connection.send(frame(HEADERS, END_HEADERS, 1, headers(STREAM)))
    return connection


def silent_peers_are_dropped(server):
    """One without a call, one in the midst of a message, one that does not read its answers."""
    idle = Connection(server.address)
    half = open_stream(server.address)
    half.send(data_frames(1, batch(5)[:-3], False))
    unread = open_stream(server.address)
    for _ in range(20):  # the first answer fits no window; those behind it are never written
        unread.send(data_frames(1, batch(200), False))
    wait_until("memory is held for batches", lambda: metric(server, "tim4rec_stream_bytes") > 0)
    for name, connection in (("idle", idle), ("half a message", half), ("unread answers", unread)):
        if not ends(connection):
            raise AssertionError(f"{name}: still open")
        connection.close()
    wait_until("that memory is free", lambda: metric(server, "tim4rec_stream_bytes") == 0)


def a_peer_that_answers_stays(server):
    """A connection without calls, ten times as long as one that does not answer pings."""
    connection = Connection(server.address)
    pings, until = 0, time.monotonic() + 10 * KEEPALIVE_MS / 1000
    for kind, flags, _, payload in connection.frames():
        if kind == GOAWAY:
            raise AssertionError("closed though it answers pings")
        if kind == SETTINGS and not flags & 1:
            connection.send(frame(SETTINGS, 1, 0))
        if kind == PING and not flags & 1:
            pings += 1
            connection.send(frame(PING, 1, 0, payload))
            if time.monotonic() > until:
                break
    else:
        raise AssertionError("closed though it answers pings")
    connection.send(frame(HEADERS, END_HEADERS, 1, headers(RECOMMEND)) +
                    data_frames(1, grpc_message(field(1, b"u")), True))
    for kind, flags, stream, _ in connection.frames():
        if kind == PING and not flags & 1:
            continue
        if stream == 1 and kind == DATA:
            break
        if stream == 1 and flags & END_STREAM:
            raise AssertionError("not answered after a long silence")
    connection.close()
    print(f"{pings} pings answered")


def a_stopped_client_is_dropped(server, build, descriptors):
    """The load generator in the midst of streams and calls, by SIGSTOP."""
    for scenario in ("stream", "recommend"):
        client = subprocess.Popen([build / "bin" / "tim4rec-loadgen", "--target", server.address, "--scenario", scenario,
                                   "--model", TINY_MODEL, "--users", "50", "--batch-users", "20", "--history", "0", "--duration", "600"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until("the client is connected", lambda: metric(server, "process_open_fds") > descriptors)
            wait_until("it is served", lambda: f'code="OK",method="{"StreamInteractions" if scenario == "stream" else "Recommend"}"'
                       in server.scrape())
            client.send_signal(signal.SIGSTOP)
            wait_until(f"the stopped client's connections are closed ({scenario})",
                       lambda: metric(server, "process_open_fds") <= descriptors)
        finally:
            client.kill()
            client.wait()
        wait_until("its memory is free", lambda: metric(server, "tim4rec_stream_bytes") == 0)


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder, "server.yaml")
        config.write_text(f"server: {{keepalive_ms: {KEEPALIVE_MS}}}\n")
        with ServerProcess(build, f"{folder}/data", "--config", str(config)) as server:
            metric(server, "process_open_fds")
            descriptors = metric(server, "process_open_fds")
            silent_peers_are_dropped(server)
            a_peer_that_answers_stays(server)
            a_stopped_client_is_dropped(server, build, descriptors)
            wait_until("all descriptors are free", lambda: metric(server, "process_open_fds") <= descriptors)
            if (code := server.stop()) != 0:
                raise AssertionError(f"the server ended with {code}: {server.errors()[-2000:]}")


if __name__ == "__main__":
    main()
