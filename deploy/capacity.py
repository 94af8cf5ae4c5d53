#!/usr/bin/env python3
"""How many servers, how much memory and disk, for how many users: the arithmetic of README.md, with your numbers.

    deploy/capacity.py --users 1e6 1e9 --catalogue 1e6

The costs are measured (tests/bench/README.md, deploy/README.md) on cores of a shared AMD Zen 3 with AVX2, at 64 dimensions;
what people do is assumed, so change it.
"""
import argparse
import math

STATE_BYTES = 37_840  # of a user, on disk, at 64 dimensions and 2 layers
RESIDENT_BYTES = 1.04 * STATE_BYTES  # of a user in memory
EVENT_BYTES = 54  # on disk, user ids of 36 and item ids of 16 characters
DISK_AMPLIFICATION = 1.1  # of the store's files, over what they hold
RECOMMEND_US = 45  # processor time of the server, without ranking
RANK_US = 6.9e-3  # and per item of the catalogue, each call ranked alone
RECORD_US = 124  # an event of its own, ACK_DURABLE
PROCESS_BYTES = 1e9  # caches, write buffers, model, threads


def plan(users, a):
    """What `users` need: a dict of totals, and of the number of shards."""
    active = users * a.daily
    recommends = active * a.recommends * a.peak / 86400
    events = active * a.events * a.peak / 86400
    cores = (recommends * (RECOMMEND_US + RANK_US * a.catalogue) + events * RECORD_US) / 1e6
    memory = users * a.hot * RESIDENT_BYTES
    disk = users * (STATE_BYTES + a.history * EVENT_BYTES) * DISK_AMPLIFICATION
    shards = max(math.ceil(cores / (a.busy * a.shard_cores)),
                 math.ceil(memory / (a.shard_memory * 2**30 * 0.75 - PROCESS_BYTES)),
                 math.ceil(disk / (a.busy * a.shard_disk * 1e12)))
    return {"recommends": recommends, "events": events, "cores": cores, "memory": memory, "disk": disk, "shards": shards}


def short(value, units=("", "k", "M", "G")):
    for unit in units[:-1]:
        if value < 999.5:
            break
        value /= 1000
    else:
        unit = units[-1]
    return f"{value:.2g}{unit}" if value < 10 else f"{value:,.0f}{unit}"


def table(a):
    yield "| users | `Recommend`/s at peak | events/s at peak | cores | states in memory | disk | shards |"
    yield "|---|---|---|---|---|---|---|"
    for users in a.users:
        p = plan(users, a)
        yield (f"| {short(users)} | {short(p['recommends'])} | {short(p['events'])} | {short(p['cores'])} | "
               f"{short(p['memory'] / 1e9, (' GB', ' TB', ' PB'))} | {short(p['disk'] / 1e9, (' GB', ' TB', ' PB'))} | "
               f"{p['shards']:,} |")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": float}
    parser.add_argument("--users", **number, nargs="+", default=[1e6, 1e7, 1e8, 1e9])
    parser.add_argument("--catalogue", **number, default=10_000, help="items (default 10000)")
    parser.add_argument("--daily", **number, default=0.2, help="share of the users that comes on a day (default 0.2)")
    parser.add_argument("--recommends", **number, default=20, help="Recommend per such user and day (default 20)")
    parser.add_argument("--events", **number, default=20, help="events per such user and day (default 20)")
    parser.add_argument("--peak", **number, default=3, help="busiest hour over the day's mean (default 3)")
    parser.add_argument("--history", **number, default=500,
                        help="events kept per user: store.max_events_per_user (default 500)")
    parser.add_argument("--hot", **number, default=0.05,
                        help="share of the users in memory; the others cost a read of the disk (default 0.05)")
    parser.add_argument("--shard-cores", **number, default=8, help="of one server (default 8)")
    parser.add_argument("--shard-memory", **number, default=64, help="GiB of one server, a quarter left to the page cache "
                        "(default 64)")
    parser.add_argument("--shard-disk", **number, default=2, help="TB of one server (default 2)")
    parser.add_argument("--busy", **number, default=0.6, help="how full cores and disks may be (default 0.6)")
    return parser


if __name__ == "__main__":
    print("\n".join(table(arguments().parse_args())))
