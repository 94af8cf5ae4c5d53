#!/usr/bin/env python3
"""Records a file's interactions in a running server and shows what it recommends before and after.

Usage: PYTHONPATH=build/release/python quickstart_demo.py --address HOST:PORT --model DIR INTERACTIONS

For every user the last two interactions are held out and the earlier ones recorded; then the held-out ones are
recorded too. For a few users the top 10 is shown before, after, and as it would be asked thirty days later.
"""
import argparse
import collections
import concurrent.futures
import csv
import json
import os
import sys
import time

import grpc

from progress import Bar
from tim4rec.v1 import recommender_pb2 as pb
from tim4rec.v1 import recommender_pb2_grpc as rpc

COLUMNS = {"user": ("user_id", "userid", "user"),
           "item": ("item_id", "itemid", "movieid", "product_id", "item"),
           "time": ("timestamp", "time", "ts")}
THIRTY_DAYS_MS = 30 * 86_400_000
CALLS_IN_FLIGHT = 16
EVENTS_PER_CALL = 500
# What a server that has too much to do refuses is sent again, in all within some ten seconds.
RETRIES = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": {
    "maxAttempts": 5, "initialBackoff": "0.3s", "maxBackoff": "8s", "backoffMultiplier": 3,
    "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]}}]})
MILLISECONDS_FROM = 1e11  # a larger timestamp is in milliseconds already


def read_histories(path, known_items):
    """Returns user → [(timestamp_ms, row, item)] in time order (ties: file order), of items the model knows."""
    with open(path, newline="", encoding="utf-8") as f:
        tabs = "\t" in f.readline()
        f.seek(0)
        rows = csv.reader(f, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
        names = [c.split(":")[0].strip().lower() for c in next(rows)]
        user, item, when = (next(names.index(n) for n in COLUMNS[c] if n in names) for c in ("user", "item", "time"))
        histories = collections.defaultdict(list)
        for n, r in enumerate(rows):
            if r and r[item] in known_items:
                t = float(r[when])
                histories[r[user]].append((int(t if t >= MILLISECONDS_FROM else t * 1000), n, r[item]))
    for history in histories.values():
        history.sort()
    return histories


def read_titles(model_dir):
    """Returns item id → title (the id where the title is unknown), from the model package's items.tsv."""
    titles = {}
    with open(os.path.join(model_dir, "items.tsv"), encoding="utf-8") as f:
        for line in f:
            fields = line.rstrip("\n").split("\t")
            if fields[0].isdigit() and int(fields[0]) > 0:
                titles[fields[1]] = fields[2] or fields[1]
    return titles


def record_request(user, events):
    # The row number as event id keeps the file's order among equal timestamps, and makes a rerun harmless.
    return pb.RecordInteractionsRequest(user_id=user, ack=pb.ACK_APPLIED, interactions=[
        pb.Interaction(item_id=item, timestamp_ms=t, event_id=f"{row:012d}") for t, row, item in events])


def record_user(stub, user, events):
    """Records a user's events in order, a call after the other, and returns how many had which outcome."""
    statuses = collections.Counter()
    for n in range(0, len(events), EVENTS_PER_CALL):
        answer = stub.RecordInteractions(record_request(user, events[n:n + EVENTS_PER_CALL]), timeout=30)
        statuses.update(pb.InteractionStatus.Name(r.status) for r in answer.results)
    return statuses


def record_all(stub, label, batches):
    """Records every user's events, several users at a time, and prints how many had which outcome."""
    statuses = collections.Counter()
    bar, done = Bar(label), 0
    with concurrent.futures.ThreadPoolExecutor(CALLS_IN_FLIGHT) as pool:
        users = [pool.submit(record_user, stub, user, events) for user, events in batches]
        for user in concurrent.futures.as_completed(users):
            statuses.update(user.result())
            done += 1
            bar.update(done, len(users))
    bar.pause()
    print("  " + ", ".join(f"{name.removeprefix('INTERACTION_STATUS_')} {n}" for name, n in statuses.items()))


def top10(stub, user, as_of_ms):
    return [i.item_id for i in stub.Recommend(
        pb.RecommendRequest(user_id=user, k=10, as_of_ms=as_of_ms), timeout=30).items]


def side_by_side(columns, width):
    """Prints lists of texts as columns under their headings."""
    def cell(text):
        return (text if len(text) <= width else text[:width - 1] + "…").ljust(width)
    print("   ".join(cell(h) for h, _ in columns))
    print("   ".join("-" * width for _ in columns))
    for i in range(max(len(c) for _, c in columns)):
        print("   ".join(cell(c[i] if i < len(c) else "") for _, c in columns).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interactions")
    parser.add_argument("--address", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--users", type=int, default=3, help="how many users to show (default 3)")
    args = parser.parse_args()

    titles = read_titles(args.model)
    histories = {u: h for u, h in read_histories(args.interactions, titles).items() if len(h) >= 3}
    if not histories:
        sys.exit(f"{args.interactions}: no user has three interactions with items that the model knows")
    stub = rpc.RecommenderStub(grpc.insecure_channel(args.address, [("grpc.service_config", RETRIES)]))

    started = time.monotonic()
    record_all(stub, "record histories", [(u, h[:-2]) for u, h in histories.items()])
    # Those whose held-out events lie furthest apart show best what time does.
    shown = sorted(histories, key=lambda u: histories[u][-1][0] - histories[u][-2][0])[-args.users:]
    before = {u: top10(stub, u, histories[u][-2][0]) for u in shown}
    record_all(stub, "record held-out 1 of 2", [(u, h[-2:-1]) for u, h in histories.items()])

    bar, hits = Bar("recommend to all users"), 0
    for n, (user, history) in enumerate(histories.items(), 1):
        hits += history[-1][2] in top10(stub, user, history[-1][0])
        bar.update(n, len(histories))
    bar.pause()
    record_all(stub, "record held-out 2 of 2", [(u, h[-1:]) for u, h in histories.items()])
    print(f"the last interaction of a user was among the ten recommended just before it for "
          f"{hits} of {len(histories)} users ({100 * hits / len(histories):.1f} %; items already seen left out)")
    print(f"{sum(map(len, histories.values()))} events recorded and {len(histories)} recommendations answered "
          f"in {time.monotonic() - started:.1f} s, one Python client")

    width = max(20, min(36, (os.get_terminal_size().columns - 9) // 4 if sys.stdout.isatty() else 30))
    for user in shown:
        history = histories[user]
        print(f"\nuser {user}: {len(history)} interactions")
        side_by_side([
            ("last interactions", [titles[i] for _, _, i in reversed(history[-10:])]),
            ("top 10 before the last two", [titles[i] for i in before[user]]),
            ("top 10 after them", [titles[i] for i in top10(stub, user, history[-1][0])]),
            ("top 10 thirty days later", [titles[i] for i in top10(stub, user, history[-1][0] + THIRTY_DAYS_MS)]),
        ], width)


if __name__ == "__main__":
    main()
