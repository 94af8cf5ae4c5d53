#!/usr/bin/env python3
"""Writes a small synthetic interaction file with structure that a time-aware model can find.

Usage: synthesize.py OUT.inter [--users 600] [--items 400] [--events 60] [--seed 7]

Writes OUT.inter (RecBole atomic: user_id, item_id, timestamp in seconds) and OUT.item (titles, genres).
Every user has
  - tastes that drift: a weight for each of 8 genres, taking a small random step after every session;
  - sessions: a few events minutes apart, in one genre drawn from the tastes; sessions are hours to weeks apart;
  - preferences that depend on the gap: within a session the next item is usually the next in its series
    (each genre is a set of series); after a gap of a few days the user resumes the series left open; after more
    than two weeks the user starts anew with something popular.
Same seed, same bytes. Standard library only.
"""
import argparse
import random

GENRES = ("Comedy", "Drama", "Action", "Mystery", "Nature", "History", "Music", "Science")
SERIES_LENGTH = 5
MINUTE, HOUR, DAY = 60, 3600, 86400
START = 1_700_000_000


class Catalogue:
    """Items grouped into series, series grouped into genres; earlier series are more popular."""

    def __init__(self, items):
        self.series = [list(range(s, min(s + SERIES_LENGTH, items + 1))) for s in range(1, items + 1, SERIES_LENGTH)]
        self.by_genre = [self.series[g::len(GENRES)] for g in range(len(GENRES))]

    def genre_of(self, series_index):
        return series_index % len(GENRES)

    def draw(self, genre, rng):
        """A series of the genre, popularity falling with its rank."""
        choices = self.by_genre[genre]
        return rng.choices(choices, weights=[1 / (1 + r) for r in range(len(choices))])[0]


def user_events(catalogue, count, rng):
    """Yields (timestamp in seconds, item) of one user."""
    tastes = [rng.expovariate(1) for _ in GENRES]
    now = START + rng.randrange(180 * DAY)
    series, place = None, 0
    made = 0
    while made < count:
        gap = rng.choice((6 * HOUR, DAY, 3 * DAY, 10 * DAY, 30 * DAY)) * rng.uniform(0.7, 1.3)
        now += int(gap)
        if gap > 14 * DAY:
            series, place = catalogue.by_genre[rng.randrange(len(GENRES))][0], 0
        elif series is None or gap < 2 * DAY or place >= len(series):
            series, place = catalogue.draw(rng.choices(range(len(GENRES)), weights=tastes)[0], rng), 0
        for _ in range(rng.randint(2, 7)):
            if made == count:
                break
            if place >= len(series) or rng.random() < 0.15:
                series, place = catalogue.draw(rng.choices(range(len(GENRES)), weights=tastes)[0], rng), 0
            yield now, series[place]
            place += 1
            made += 1
            now += rng.randint(1 * MINUTE, 20 * MINUTE)
        tastes = [max(0.05, t + rng.gauss(0, 0.15)) for t in tastes]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--users", type=int, default=600)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--events", type=int, default=60, help="events per user, on average")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    if not args.out.endswith(".inter"):
        parser.error(f"OUT must end in .inter, got {args.out!r}")
    if args.users < 1 or args.events < 5 or args.items < len(GENRES) * SERIES_LENGTH:
        parser.error(f"needs at least 1 user, 5 events a user and {len(GENRES) * SERIES_LENGTH} items")
    rng = random.Random(args.seed)
    catalogue = Catalogue(args.items)
    rows = []
    for user in range(1, args.users + 1):
        count = max(5, int(rng.gauss(args.events, args.events / 3)))
        rows += [(t, f"u{user}", item) for t, item in user_events(catalogue, count, rng)]
    rows.sort()
    with open(args.out, "w", encoding="utf-8") as f:
        f.write("user_id:token\titem_id:token\ttimestamp:float\n")
        f.writelines(f"{user}\t{item}\t{t}\n" for t, user, item in rows)
    with open(args.out[: -len(".inter")] + ".item", "w", encoding="utf-8") as f:
        f.write("item_id:token\tmovie_title:token_seq\tgenre:token_seq\n")
        for s, series in enumerate(catalogue.series):
            genre = GENRES[catalogue.genre_of(s)]
            f.writelines(f"{item}\t{genre} Series {s + 1}, Part {p + 1}\t{genre}\n" for p, item in enumerate(series))


if __name__ == "__main__":
    main()
