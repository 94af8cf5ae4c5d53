#!/usr/bin/env python3
"""Users per second of both kinds of batch, over the same events; their lists must be the same, row by row, bit for bit.

    build/release/venv/bin/python tests/bench/batch_jobs.py --interactions FILE.inter     D=64, a random model over its items
    build/release/venv/bin/python tests/bench/batch_jobs.py --synthetic 1000000           the tiny model, 2 events a user

The environment is what `ctest -R python_env` makes. A server of its own takes the events (`backfill`); `tim4rec-batch` asks
it for every user, `tim4rec batch` then reads a backup that the server made. Everything runs on this machine.
"""
import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import grpc
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from server_process import TINY_MODEL, ServerProcess  # noqa: E402
from tim4rec.v1 import admin_pb2, admin_pb2_grpc  # noqa: E402

K = 10


def synthesize(path, users, events):
    rng = random.Random(1)
    with path.open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(users):
            for event in range(events):
                file.write(f"u{user:07d}\titem{rng.randint(1, 60)}\t{1_700_000_000 + event * 3600 + rng.randint(0, 3599)}\n")


def write_users(interactions, path):
    """Every user once, in the order of the store's keys; returns how many."""
    with interactions.open() as file:
        next(file)
        users = sorted({line.partition("\t")[0] for line in file}, key=lambda u: (len(u), u))
    path.write_text("".join(f"{user}\n" for user in users))
    return len(users)


def timed(name, users, command, **options):
    print(f"{name}: …", flush=True)
    began = time.monotonic()
    _, status, used = os.wait4(subprocess.Popen([str(c) for c in command], **options).pid, 0)
    seconds = time.monotonic() - began
    if status != 0:
        sys.exit(f"{name} failed: status {status}")
    print(f"{name}: {users} users in {seconds:.1f} s, {users / seconds:,.0f} users/s, at most {used.ru_maxrss / 1024:.0f} MiB "
          f"(load {os.getloadavg()[0]:.1f})", flush=True)


def same_lists(parts, rows):
    """SystemExit unless the Parquet parts and the tab-separated file hold the same rows; returns how many."""
    online = pa.concat_tables(pq.read_table(part, columns=["user_id", "item_id", "score"])
                              for part in sorted(parts.glob("part-*.parquet")))
    offline = pa.csv.read_csv(
        rows, pa.csv.ReadOptions(column_names=online.column_names), pa.csv.ParseOptions(delimiter="\t"),
        pa.csv.ConvertOptions(column_types={"user_id": pa.string(), "item_id": pa.string(), "score": pa.float64()}))
    if not online.equals(offline.cast(online.schema)):
        sys.exit(f"the lists differ: {online.num_rows} rows of tim4rec-batch, {offline.num_rows} of tim4rec batch")
    return online.num_rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--interactions", type=pathlib.Path)
    what.add_argument("--synthetic", type=int, metavar="USERS")
    parser.add_argument("--events", type=int, default=2, help="of each synthetic user")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    binaries, build = args.build / "bin", args.build.resolve()
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        interactions, model = args.interactions, folder / "model"
        if args.synthetic:
            interactions, model = folder / "synthetic.inter", TINY_MODEL
            synthesize(interactions, args.synthetic, args.events)
        else:
            model.mkdir()
            subprocess.run([binaries / "backfill", "--write-model", model, interactions], check=True)
        users = write_users(interactions, folder / "users.txt")
        as_of_ms = str(int(time.time() * 1000))
        with ServerProcess(build, folder / "data", model=model) as server:
            subprocess.run([binaries / "backfill", server.address, interactions], check=True)
            for n in range(args.rounds):
                timed("tim4rec-batch", users, [
                    pathlib.Path(sys.executable).with_name("tim4rec-batch"), folder / "users.txt", folder / f"out{n}",
                    "--servers", server.address, "--k", K, "--as-of-ms", as_of_ms], stderr=subprocess.DEVNULL)
            with grpc.insecure_channel(server.admin) as channel:
                backup = admin_pb2_grpc.AdminStub(channel).CreateBackup(
                    admin_pb2.CreateBackupRequest(directory=str(folder / "backup")), timeout=300)
            print(f"the store: {backup.bytes / 1e6:.0f} MB in {backup.files} files")
            server.stop()
        for n in range(args.rounds):
            with (folder / "rows").open("w") as rows:
                timed("tim4rec batch", users, [binaries / "tim4rec", "batch", "--store", folder / "backup", "--model",
                                               model, "--k", K, "--as-of-ms", as_of_ms],
                      stdout=rows, stderr=subprocess.DEVNULL)
        for n in range(args.rounds):
            compared = same_lists(folder / f"out{n}", folder / "rows")
        print(f"{compared} rows of each are the same")


if __name__ == "__main__":
    main()
