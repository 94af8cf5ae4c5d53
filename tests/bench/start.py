#!/usr/bin/env python3
"""How long a server with many users in its store takes to be ready, after a drain and after kill -9.

Usage: start.py [--build build/release] [--users 1000000] [--events 2] [--rounds 5] [--store DIR]

Fills a store through a running server (backfill of random events on the tiny model of tests/e2e, every user with a
checkpoint), then starts it again and again: from the process's start until /readyz says 200, in seconds. Before the starts
after kill -9 a tenth of the users get another event that no flush has seen. --store keeps the store, or uses one that is
there. Standard library only.
"""
import argparse
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from server_process import ServerProcess  # noqa: E402

START = 1_600_000_000


def write_events(path, users, events, first_second):
    rng = random.Random(first_second)
    with path.open("w") as out:
        out.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in users:
            for e in range(events):
                out.write(f"u{user}\titem{rng.randrange(1, 61)}\t{first_second + 60 * e + user % 50}\n")


def fill(build, server, path):
    done = subprocess.run([str(build / "bin" / "backfill"), server.address, str(path)], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        sys.exit(f"backfill failed: {done.stdout}{done.stderr}")
    print(done.stdout.strip().splitlines()[-1], flush=True)


def timed(build, store):
    """A running server and the seconds it took to be ready."""
    begin = time.monotonic()
    server = ServerProcess(build, store)
    while True:
        try:
            with urllib.request.urlopen(f"http://{server.metrics}/readyz", timeout=10):
                return server, time.monotonic() - begin
        except urllib.error.HTTPError:
            time.sleep(0.005)


def line(name, seconds):
    print(f"{name}: median {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", type=pathlib.Path)
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store or pathlib.Path(folder, "store")
        events = pathlib.Path(folder, "events.inter")
        if not store.exists():
            write_events(events, range(arguments.users), arguments.events, START)
            with ServerProcess(build, store) as server:
                fill(build, server, events)
                server.stop()
        for name, number in (("after a drain", signal.SIGTERM), ("after kill -9", signal.SIGKILL)):
            took = []
            for n in range(arguments.rounds + 1):
                server, seconds = timed(build, store)
                with server:
                    took.append(seconds)
                    if number == signal.SIGKILL:
                        write_events(events, range(0, arguments.users, 10), 1, START + 100_000 * (n + 1))
                        fill(build, server, events)
                    server.kill() if number == signal.SIGKILL else server.stop()
            line(name, took[1:])
        size = sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
        print(f"{arguments.users} users, {size / 1e9:.2f} GB on disk")


if __name__ == "__main__":
    main()
