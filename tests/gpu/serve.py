#!/usr/bin/env python3
"""The whole service on a GPU machine, from a bundle: cuda and cpu alternate on one store, A B B A.

Usage: serve.py BUNDLE [--backends cuda,cpu] [--seconds S] [--users N]

Each server goes on from the states of the one before, so every state moves between the two; a checkpoint that does not
match the log, a state that is lost, or a request that is not answered well ends the run with 1. Prints throughput and
latency of each scenario by backend, medians over the rounds.
"""
import argparse
import atexit
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import urllib.request

SCENARIOS = {
    "recommend": ["--scenario", "recommend"],
    "record": ["--scenario", "record", "--ack", "applied"],
    "stream": ["--scenario", "stream", "--batch-users", "256"],
}


class Server:
    def __init__(self, bundle, data, backend):
        self.process = subprocess.Popen(
            [bundle / "bin/tim4rec-server", "--model", bundle / "model", "--data", data, "--backend", backend, "--listen",
             "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
            env=os.environ | {"TIM4REC_PIPELINE_QUEUE_DELAY_MS": "10000"},  # a sync on a busy disk is no overload here
            stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)  # whatever ends this
        self.addresses = {}
        for line in self.process.stdout:
            if found := re.match(r"(listening|admin|metrics) on (\S+)", line):
                self.addresses[found[1]] = found[2]
            if len(self.addresses) == 3:
                return
        sys.exit(f"serve: the server with --backend {backend} did not start: exit {self.process.wait()}")

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.addresses['metrics']}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))

    def stop(self):
        self.process.terminate()
        self.process.stdout.read()
        if self.process.wait(timeout=120) != 0:
            sys.exit("serve: the server did not drain")


def load(bundle, server, folder, arguments, users):
    report = pathlib.Path(folder, "report.json")
    report.unlink(missing_ok=True)
    done = subprocess.run([bundle / "bin/tim4rec-loadgen", "--target", server.addresses["listening"], "--model",
                           bundle / "model", "--users", str(users), "--json", report] + arguments,
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"serve: {arguments}\n{done.stdout}{done.stderr}")
    return json.loads(report.read_text())["runs"][0]


def verify(bundle, folder):
    """Every state against its log, if the bundle has the CLI."""
    if not (bundle / "bin/tim4rec").exists():
        return
    done = subprocess.run([bundle / "bin/tim4rec", "verify", "--store", f"{folder}/data", "--model", bundle / "model"],
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"serve: verify\n{done.stdout}{done.stderr}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--backends", default="cuda,cpu", type=lambda text: text.split(","))
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--users", type=int, default=20000)
    arguments = parser.parse_args()
    first, second = arguments.backends
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for round_, backend in enumerate([first, second, second, first]):
            server = Server(arguments.bundle, f"{folder}/data", backend)
            if round_ == 0:
                load(arguments.bundle, server, folder, ["--scenario", "recommend", "--history", "20", "--duration", "0.5"],
                     arguments.users)
            for name, flags in SCENARIOS.items():
                run = load(arguments.bundle, server, folder,
                           flags + ["--history", "0", "--duration", str(arguments.seconds)], arguments.users)
                figures.setdefault((name, backend), []).append(run)
            faults = {"checkpoints not used": server.metric("tim4rec_stale_checkpoints_total"),
                      "corrupt states": server.metric("tim4rec_corrupt_states"),
                      "devices lost": server.metric("tim4rec_device_lost"),
                      "devices without states": float(backend == "cuda" and server.metric("tim4rec_device_states") == 0)}
            if any(faults.values()):
                sys.exit(f"serve: {backend}: {faults}")
            server.stop()
            verify(arguments.bundle, folder)
    for (name, backend), runs in figures.items():
        rate = statistics.median(r["events_per_second"] or r["calls_per_second"] for r in runs)
        latency = "  ".join(f"{call} us: p50 {v['p50']:.0f} p99 {v['p99']:.0f}" for call, v in runs[0]["latency_us"].items())
        print(f"{name:10} {backend:6} {rate:12,.0f} /s   {latency}")
    print("every state moved between the backends and matched its log")


if __name__ == "__main__":
    main()
