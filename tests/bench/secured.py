#!/usr/bin/env python3
"""What tokens and TLS cost: processor time of the server per call, in clear text and with each.

    tests/bench/secured.py [--model DIR] [--build build/release] [--rounds N] [--seconds S]

Four servers of its own, the load generator on each in turn (A B C D, D C B A, ...): Recommend, 32 calls at a time over one
connection. Prints medians in microseconds and ratios to clear text. Processor time, since other work on the machine moves
throughputs far more.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "bench"))
from serving import processor_us  # noqa: E402

TOKEN = "bench-token-0123456789abcdef0123456789abcdef"
KINDS = {"clear text": (), "tokens": ("auth",), "TLS": ("tls",), "TLS and tokens": ("tls", "auth")}


def start(args, folder, kind):
    """The server's process, its address and the load generator's flags."""
    config, flags = {}, []
    if "tls" in KINDS[kind]:
        config["tls"] = {"certificate": f"{folder}/server.crt", "key": f"{folder}/server.key"}
        flags += ["--tls-ca", f"{folder}/server.crt"]
    if "auth" in KINDS[kind]:
        config["auth"] = {"tokens_file": f"{folder}/tokens"}
        flags += ["--token-file", f"{folder}/token"]
    path = pathlib.Path(folder, f"{kind}.yaml")
    path.write_text(json.dumps(config))
    server = subprocess.Popen(
        [args.build / "bin/tim4rec-server", "--config", path, "--model", args.model, "--data", f"{folder}/{kind} data",
         "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in server.stdout:
        if line.startswith("listening on "):
            return server, line.split()[-1], flags
    sys.exit("secured: a server did not start; run it by hand to see why")


def cost(args, folder, server, address, flags):
    """Microseconds of the server's processor time per call."""
    report = pathlib.Path(folder, "report.json")
    before = processor_us(server.pid)
    subprocess.run([args.build / "bin/tim4rec-loadgen", "--target", address, "--model", args.model, "--json", report,
                    "--scenario", "recommend", "--history", "0", "--in-flight", "32", "--threads", "1", "--duration",
                    str(args.seconds), *flags], check=True, stdout=subprocess.DEVNULL)
    return (processor_us(server.pid) - before) / json.loads(report.read_text())["runs"][0]["calls"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "tests/e2e/testdata/tiny_model")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1)
    args = parser.parse_args()
    os.umask(0o077)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-days", "2", "-subj", "/CN=server", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout",
                        f"{folder}/server.key", "-out", f"{folder}/server.crt"], check=True, capture_output=True)
        pathlib.Path(folder, "tokens").write_text(f"read {TOKEN}\nwrite other-{TOKEN}\n")
        pathlib.Path(folder, "token").write_text(TOKEN)
        servers = {}
        costs = {kind: [] for kind in KINDS}
        try:
            for kind in KINDS:
                servers[kind] = start(args, folder, kind)
            for number in range(args.rounds):
                for kind in list(KINDS)[::1 if number % 2 == 0 else -1]:
                    costs[kind].append(cost(args, folder, *servers[kind]))
        finally:
            for server, *_ in servers.values():
                server.kill()
                server.wait()
    for kind, values in costs.items():
        ratio = statistics.median(v / c for v, c in zip(values, costs["clear text"]))
        print(f"{kind:15} {statistics.median(values):7.1f} us per call, {ratio:.2f} of clear text")


if __name__ == "__main__":
    main()
