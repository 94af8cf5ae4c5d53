#!/usr/bin/env python3
"""A server under mixed load for a time: nothing grows, and its store is right at the end. Run it by tests/soak.sh.

Usage: soak.py BUILD MINUTES [--rate 60]

Small limits make everything happen often: evictions, checkpoints, flushes, compactions, cuts of logs. The load: every call
of the API, streams, deleted users, deadlines that pass, new connections. What is compared is the middle third of the time
with the last one, so that what fills at first does not count:
  memory        median of the resident size: at most 4 MiB or 3 % more, whichever is more
  descriptors   median of the open ones: at most 5 more
  latency       lower quartile of the segments' p50 of Recommend and RecordInteractions: at most 1.5 times
  processor     median of the server's processor time per call: at most 1.25 times
At the end the server drains with exit code 0, `tim4rec verify` finds nothing, and no line of the log is an error.
"""
import argparse
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from server_process import TINY_MODEL, ServerProcess  # noqa: E402
from tim4rec import CallError, Client, Interaction, Query  # noqa: E402

CONFIG = """
pipeline: {max_resident_users: 2000, checkpoint_interval_ms: 5000}
store: {max_events_per_user: 30, write_buffer_bytes: 4194304, block_cache_bytes: 8388608}
"""
USERS = 5000
SEGMENT_S = 10  # of single calls; half as long of streams follows
# What a machine that stalls under other work makes of some calls: at most one in a hundred.
BUSY = {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "NOT_SENT"}
STOPPED = "writes are stopped until compaction catches up"
WANTED = {"memory": "MiB", "descriptors": "", "latency": "us", "processor": "us a call"}


def metric(text, name):
    """The sum of a metric's series."""
    return sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))


class OtherCalls(threading.Thread):
    """What the load generator does not send, a few calls a second, over a new connection now and then."""

    def __init__(self, address, seed):
        super().__init__()
        self.address, self.random, self.stopped = address, random.Random(seed), threading.Event()
        self.done, self.busy, self.failed = 0, 0, []

    def run(self):
        while not self.stopped.is_set():
            with Client(self.address) as client:
                for _ in range(50):
                    if self.stopped.wait(0.05):
                        return
                    try:
                        self.call(client, f"load1.{self.random.randrange(USERS)}")
                        self.done += 1
                    except CallError as error:
                        if any(code in repr(error) for code in BUSY):
                            self.busy += 1
                        else:
                            self.failed.append(repr(error))

    def call(self, client, user):
        now = int(time.time() * 1000)
        events = [Interaction(f"item{self.random.randrange(1, 61)}", now - self.random.randrange(10**9))]
        kind = self.random.randrange(6)
        if kind == 0:
            client.get_user(user, max_events=50)
        elif kind == 1:
            client.delete_user(user)
        elif kind == 2:
            client.recommend_for_history(events * 5, Query(k=20))
        elif kind == 3:
            client.record_and_recommend(user, events, durable=True)  # late, most of the time
        elif kind == 4:
            client.recommend(user, Query(k=5, as_of_ms=now))
        else:
            try:
                client.recommend(user, timeout_s=0.0005)
            except CallError:
                pass  # the deadline passed, or not


def load(build, server, folder, scenario, rate, seconds):
    """Runs the load generator; returns its one run and how many calls were BUSY. Raises RuntimeError if one was answered
    worse than that."""
    out = folder / "load.json"
    out.unlink(missing_ok=True)
    done = subprocess.run([str(build / "bin" / "tim4rec-loadgen"), "--target", server.address, "--model", str(TINY_MODEL),
                           "--scenario", scenario, "--rate", str(rate), "--duration", str(seconds), "--users", str(USERS),
                           "--history", "1", "--batch-users", "64", "--json", str(out)], capture_output=True, text=True,
                          check=False)
    report = json.loads(out.read_text()) if out.exists() else {"runs": [{"errors": {"no report": 1}}]}
    errors = {**report.get("history_errors", {}), **report["runs"][0]["errors"]}
    if set(errors) - BUSY:
        raise RuntimeError(f"{scenario}: {done.stdout}{done.stderr}")
    return report["runs"][0], sum(errors.values())


def sample(server, run, cpu_before):
    """One row of figures after a segment, and the processor time and calls so far."""
    text = server.scrape()
    now = (metric(text, "process_cpu_seconds_total"), metric(text, "tim4rec_requests_total"))
    latency = statistics.mean(run["latency_us"][call]["p50"] for call in ("Recommend", "RecordInteractions"))
    return {"memory": metric(text, "process_resident_memory_bytes") / 2**20, "descriptors": metric(text, "process_open_fds"),
            "latency": latency,
            "processor": 1e6 * (now[0] - cpu_before[0]) / max(1, now[1] - cpu_before[1])}, now


def lower_quartile(values):
    return sorted(values)[len(values) // 4]


def growth(rows):
    """Name → (middle third, last third, most that the last may be)."""
    third = len(rows) // 3
    middle, last = rows[third:2 * third], rows[-third:]
    result = {}
    for name in WANTED:
        of = lower_quartile if name == "latency" else statistics.median
        a, b = of([r[name] for r in middle]), of([r[name] for r in last])
        most = {"memory": max(a + 4, 1.03 * a), "descriptors": a + 5, "latency": 1.5 * a, "processor": 1.25 * a}[name]
        result[name] = (a, b, most)
    return result


def soak(build, minutes, rate, folder):
    """Returns (rows, faults)."""
    config = folder / "soak.yaml"
    config.write_text(CONFIG)
    faults, rows, busy = [], [], 0
    with ServerProcess(build, folder / "data", "--config", str(config)) as server:
        other = OtherCalls(server.address, seed=1)
        other.start()
        end, so_far = time.monotonic() + 60 * minutes, (0.0, 0.0)
        try:
            while time.monotonic() < end:
                run, some = load(build, server, folder, "mixed", rate, SEGMENT_S)
                busy += some
                for scenario in ("stream", "batch"):
                    busy += load(build, server, folder, scenario, 10, SEGMENT_S / 4)[1]
                row, so_far = sample(server, run, so_far)
                rows.append(row)
                if len(rows) % 10 == 0:
                    print(f"{len(rows)} segments, {so_far[1]:.0f} calls: " + ", ".join(
                        f"{name} {row[name]:.0f} {unit}".strip() for name, unit in WANTED.items()), flush=True)
        except RuntimeError as error:
            faults.append(str(error))
        other.stopped.set()
        other.join()
        text = server.scrape()
        print(", ".join(f"{name} {metric(text, 'tim4rec_' + name):.0f}" for name in
                        ("requests_total", "dropped_requests_total", "evictions_total", "checkpoints_total",
                                     "removed_events_total")),
              f"other calls {other.done}, busy {busy + other.busy}, times that writes were stopped: {server.errors().count(STOPPED)}")
        faults += other.failed[:5]
        if 100 * (busy + other.busy) > so_far[1]:
            faults.append(f"{busy + other.busy} of {so_far[1]:.0f} calls were refused or late")
        if (code := server.stop()) != 0:
            faults.append(f"the server ended with {code}")
        # A disk or a processor that others use may keep compaction behind; the store says so and goes on.
        faults += [line for line in server.errors().splitlines() if '"level":"error"' in line and STOPPED not in line]
    verify = subprocess.run([str(build / "bin" / "tim4rec"), "verify", "--store", str(folder / "data"), "--model",
                             str(TINY_MODEL)], capture_output=True, text=True, check=False)
    if verify.returncode != 0 or verify.stdout.strip():
        faults.append(f"verify ended with {verify.returncode}: {verify.stdout}{verify.stderr}")
    return rows, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--rate", type=float, default=60, help="single calls per second")
    arguments = parser.parse_args()
    if arguments.minutes < 5:
        parser.error("MINUTES: at least 5, or what fills at first is taken for growth")
    with tempfile.TemporaryDirectory() as folder:
        rows, faults = soak(arguments.build.resolve(), arguments.minutes, arguments.rate, pathlib.Path(folder))
    if len(rows) < 9:
        faults.append(f"{len(rows)} segments, too few to compare thirds")
    else:
        for name, (a, b, most) in growth(rows).items():
            print(f"{name}: {a:.1f} then {b:.1f} {WANTED[name]} (at most {most:.1f})")
            if b > most:
                faults.append(f"{name} grew from {a:.1f} to {b:.1f}, more than to {most:.1f}")
    for fault in faults:
        print(f"FAULT: {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
