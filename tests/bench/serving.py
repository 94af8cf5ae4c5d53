#!/usr/bin/env python3
"""Goals R1 to R3 in one command: a server of its own, the load generator, an empty handler.

    tests/bench/serving.py MODEL [--build build/release] [--rounds N] [--seconds S] [--only R1,R3]

MODEL is a package, for instance what `backfill --write-model DIR INTERACTIONS` writes. Server and clients run on this
machine, the server on a new store with ports of its own and a long pipeline.queue_delay_ms. For each goal: the median
ratio of throughputs (target over empty handler, alternated), and, since other work on the machine moves throughputs far
more than processor time, the microseconds of processor time per call of server, empty handler and client, and the ratio
that they would give on idle cores. R3 also prints what the fold alone takes (fold_ratios, as many users).
"""
import argparse
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
USERS = 1000
GOALS = {
    "R1": ["--scenario", "recommend"],
    "R2 applied": ["--scenario", "record", "--ack", "applied"],
    "R2 durable": ["--scenario", "record", "--ack", "durable"],
    "R3": ["--scenario", "stream", "--batch-users", "256"],
}


def processor_us(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


def start(args, folder):
    """The server's process and its address."""
    server = subprocess.Popen(
        [args.build / "bin/tim4rec-server", "--model", args.model, "--data", f"{folder}/data",
         "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
        env=os.environ | {"TIM4REC_PIPELINE_QUEUE_DELAY_MS": "10000"},  # a sync on a busy disk is no overload here
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in server.stdout:
        if line.startswith("listening on "):
            return server, line.split()[-1]
    sys.exit("serving: the server did not start; run it by hand to see why")


def load(args, folder, address, flags):
    report = pathlib.Path(folder, "report.json")
    report.unlink(missing_ok=True)
    done = subprocess.run([args.build / "bin/tim4rec-loadgen", "--target", address, "--model", args.model, "--users",
                           str(USERS), "--json", report] + flags, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"serving: tim4rec-loadgen {' '.join(flags)}\n{done.stdout}{done.stderr}")
    return json.loads(report.read_text()), done.stdout.strip().splitlines()[-1]


def measure(args, folder, server, address, goal):
    load(args, folder, address, GOALS[goal] + ["--history", "20", "--duration", "0.5"])
    before, children = processor_us(server.pid), resource.getrusage(resource.RUSAGE_CHILDREN)
    report, verdict = load(args, folder, address, GOALS[goal] + [
        "--history", "0", "--empty-handler", "--rounds", str(args.rounds), "--duration", str(args.seconds)])
    after, ended = processor_us(server.pid), resource.getrusage(resource.RUSAGE_CHILDREN)
    runs = {of: [run for run in report["runs"] if run["of"] == of] for of in ("target", "empty_handler")}
    calls = {of: sum(run["calls"] for run in own) for of, own in runs.items()}
    client = {of: 1e6 * sum(run["client_cpu_seconds"] for run in own) for of, own in runs.items()}
    # The empty handler is the load generator's child: what both took without the client's own time.
    both = 1e6 * (ended.ru_utime + ended.ru_stime - children.ru_utime - children.ru_stime)
    empty = (both - sum(client.values())) / calls["empty_handler"]
    ours = (after - before) / calls["target"]
    client = {of: us / calls[of] for of, us in client.items()}
    print(verdict)
    ratio = (empty + client["empty_handler"]) / (ours + client["target"])
    print(f"    processor time per call: server {ours:.1f} us, client {client['target']:.1f}; "
          f"empty handler {empty:.1f}, client {client['empty_handler']:.1f}: ratio {ratio:.2f}")
    if goal == "R3":
        events = sum(run["events_per_second"] * run["seconds"] for run in runs["target"])
        fold = subprocess.run([args.build / "bin/fold_ratios", "64", "7", str(USERS), "avx2"], capture_output=True,
                              text=True)
        fold_us = float(re.search(r"([\d.]+) us", fold.stdout)[1])
        per_event = (ours + client["target"]) * calls["target"] / events
        print(f"    processor time per event: {per_event:.1f} us with the client's, of which the fold alone (avx2, "
              f"D 64) {fold_us:.1f}: at most {2e6 / fold_us:,.0f} events/s on two cores, {2e6 / per_event:,.0f} with "
              "all the rest")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--only", default="R1,R2,R3", help="goals, separated by commas")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, address = start(args, folder)
        try:
            for goal in GOALS:
                if goal[:2] in args.only.split(","):
                    measure(args, folder, server, address, goal)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
