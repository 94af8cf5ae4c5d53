#!/usr/bin/env python3
"""A server at three times its capacity: goodput, latency, memory, recovery.

Makes a random model of 64 dimensions, starts tim4rec-server over it and drives it with tim4rec-loadgen
(Recommend), each round:

  capacity   closed loops of 8 to 64 calls in flight: the most calls per second that are answered
  unloaded   a tenth of the capacity in an open loop: the p99
  overload   three times the capacity in an open loop: what is answered, its p99, what is refused
  recovery   as unloaded, for one second right after it

and prints their ratios. Every call counts from when it was due. Server and client
share the machine, and two thirds of the calls are refused, which costs the two of them 100 us and more each
on cores that have other work. Hence the large catalogue, and one worker less than there are cores: gRPC's
threads and the client have that one, as if the client were another machine. Needs the targets
tim4rec-server, tim4rec-loadgen and backfill.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_model(bin_dir, work, items):
    """A model package over "item0" ..., made once per size."""
    model = work / f"model_{items}"
    if (model / "config.json").exists():
        return model
    interactions = work / "items.inter"
    with interactions.open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for item in range(items):
            file.write(f"u\titem{item}\t{1_600_000_000 + item}\n")
    model.mkdir(parents=True, exist_ok=True)
    subprocess.run([bin_dir / "backfill", "--write-model", model, interactions], check=True)
    return model


class Server:
    """tim4rec-server, and the most memory that it was seen to use."""

    def __init__(self, bin_dir, model, data, flags):
        self.process = subprocess.Popen(
            [bin_dir / "tim4rec-server", "--model", model, "--data", data, "--listen", "127.0.0.1:0",
             "--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", *flags],
            stdout=subprocess.PIPE, text=True)
        self.address = None
        for line in self.process.stdout:
            if line.startswith("listening on "):
                self.address = line.split()[2]
                break
        if self.address is None:
            raise SystemExit("overload.py: the server did not start")
        self.most_kb = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def rss_kb(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        return 0

    def _watch(self):
        while self.process.poll() is None:
            try:
                self.most_kb = max(self.most_kb, self.rss_kb())
            except OSError:
                return
            time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)


def load(arguments, server, items, **options):
    """One run of the load generator; its only result."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [arguments.build / "bin/tim4rec-loadgen", "--target", server.address, "--scenario",
                   "recommend", "--items", items, "--users", arguments.users, "--k", 10, "--json", out.name]
        for name, value in {"history": 0, **options}.items():
            command += ["--" + name.replace("_", "-"), value]
        subprocess.run([str(word) for word in command], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=False)  # refusals make it exit with 1
        return json.load(open(out.name, encoding="utf-8"))["runs"][0]


def p99(run):
    return run["latency_us"]["Recommend"]["p99"] / 1000


def round_of(arguments, server, items):
    """The figures of one round."""
    rate = max(load(arguments, server, items, duration=arguments.calm / 2, in_flight=calls)["calls_per_second"]
               for calls in (8, 16, 32, 64))
    calm = load(arguments, server, items, duration=arguments.calm, rate=rate / 10, in_flight=100_000)
    before_kb = server.rss_kb()
    server.most_kb = before_kb
    over = load(arguments, server, items, duration=arguments.duration, rate=3 * rate, in_flight=100_000)
    after = load(arguments, server, items, duration=1, rate=rate / 10, in_flight=100_000)
    refused = over["errors"].get("RESOURCE_EXHAUSTED", 0)
    others = {code: n for code, n in over["errors"].items() if code != "RESOURCE_EXHAUSTED"}
    return {
        "capacity/s": rate,
        "goodput/s": over["calls"] / max(arguments.duration, over["seconds"]),
        "goodput/capacity": over["calls"] / max(arguments.duration, over["seconds"]) / rate,
        "refused/s": refused / arguments.duration,
        "unloaded p99 ms": p99(calm),
        "overload p99 ms": p99(over),
        "p99 ratio": p99(over) / p99(calm),
        "memory growth MB": (server.most_kb - before_kb) / 1024,
        "recovery p99 ms": p99(after),
        "errors after": sum(after["errors"].values()),
        "other errors": others,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/overload")
    parser.add_argument("--items", type=int, default=1_000_000, help="of the catalogue")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--duration", type=float, default=60, help="seconds of overload, each round")
    parser.add_argument("--calm", type=float, default=10, help="seconds of the other runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=max(1, os.cpu_count() - 1), help="pipeline.workers")
    parser.add_argument("--queue-delay-ms", type=int, default=15,
                        help="pipeline.queue_delay_ms: about what a single call takes at its p99; who is taken "
                             "waits for the batch before, and for his own: about twice as long")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = write_model(arguments.build / "bin", arguments.work, arguments.items)
    items = arguments.work / "items.txt"
    items.write_text("".join(f"item{i}\n" for i in range(min(arguments.items, 10_000))))
    config = arguments.work / "overload.yaml"
    config.write_text(f"pipeline: {{queue_delay_ms: {arguments.queue_delay_ms}, workers: {arguments.workers}}}\n")
    with tempfile.TemporaryDirectory(dir=arguments.work) as data:
        server = Server(arguments.build / "bin", model, data, ["--config", config])
        try:
            load(arguments, server, items, duration=1, history=20, in_flight=4)
            rounds = []
            for number in range(arguments.rounds):
                rounds.append(round_of(arguments, server, items))
                print(f"round {number + 1}: " + "  ".join(
                    f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in rounds[-1].items()), flush=True)
        finally:
            code = server.stop()
    for name, goal in (("goodput/capacity", ">= 0.9"), ("p99 ratio", "<= 3"),
                       ("memory growth MB", "bounded"), ("errors after", "0")):
        values = [one[name] for one in rounds]
        print(f"{name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}), goal {goal}")
    return code


if __name__ == "__main__":
    sys.exit(main())
