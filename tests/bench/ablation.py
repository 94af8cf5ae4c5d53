#!/usr/bin/env python3
"""Trains variants of a model on data sets with several seeds, and compares their accuracy.

    ablation.py --tim4rec build/release/bin/tim4rec --out sweep --jobs 2 --data a.inter b.csv --seeds 1 2 3 \\
        --set base="" --set narrow="--hidden-size 32 --dropout 0.2"

Each --set NAME="FLAGS" is trained on each --data FILE with each seed by `tim4rec train FILE FLAGS --seed S`, --jobs
at a time with one thread each. A run's results lie in OUT/DATA/NAME/sSEED, its log beside them. A run that has its
metrics.json is not repeated, one that was interrupted goes on from its last whole epoch: after a crash, or to add
sets, seeds or data, give the command again. A name that was run with other flags before is refused.

Writes OUT/results.tsv and OUT/results.json (one row per run) and prints a table: NDCG@10 on the validation and the
test split, mean over seeds ± sample standard deviation, and the test mean relative to the first set's over the seeds
that both have. Exit code 1 if a run failed. `seconds` are wall time of the last start of a run.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import threading

METRICS = ("NDCG@10", "HR@10")
COLUMNS = ("data", "set", "seed", "flags", "best_epoch", "epochs_run", "seconds",
           *(f"{split}_{metric}" for split in ("valid", "test") for metric in METRICS))
GIVEN_HERE = ("--out", "--seed", "--resume", "--threads")


class Run:
    """One training run: where it lies and what it is called with."""

    def __init__(self, options, data, name, flags, seed):
        self.data, self.name, self.flags, self.seed = data, name, flags, seed
        self.out = options.out / data.stem / name / f"s{seed}"
        self.command = ["train", str(data.resolve()), *shlex.split(flags), "--seed", str(seed), "--threads", "1"]

    def beside(self, suffix):
        return self.out.with_name(self.out.name + suffix)

    def metrics(self):
        """The figures of a finished run, or None."""
        try:
            return json.loads((self.out / "metrics.json").read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None

    def changed(self):
        """The command of an earlier run in this place, if it was another one."""
        path = self.beside(".command")
        before = path.read_text().strip() if path.exists() else None
        return None if before in (None, shlex.join(self.command)) else before

    def row(self):
        metrics = self.metrics()
        training = metrics["training"]
        row = {"data": self.data.stem, "set": self.name, "seed": self.seed, "flags": self.flags}
        row.update((key, training[key]) for key in ("best_epoch", "epochs_run", "seconds"))
        row.update((f"{split}_{metric}", metrics[split][metric]) for split in ("valid", "test") for metric in METRICS)
        return row

    def __str__(self):
        return f"{self.data.stem} {self.name} seed {self.seed}"


class Sweep:
    """Runs what is not finished, `jobs` at a time."""

    def __init__(self, tim4rec, jobs):
        self.tim4rec, self.jobs = tim4rec, jobs
        self.lock = threading.Lock()
        self.children = set()
        self.stopped = False

    def train(self, run):
        run.out.parent.mkdir(parents=True, exist_ok=True)
        run.beside(".command").write_text(shlex.join(run.command) + "\n")
        checkpoint = run.beside(".checkpoint")
        command = [self.tim4rec, *run.command, "--out", str(run.out)]
        if checkpoint.exists():
            command.append("--resume")
        with open(run.beside(".log"), "ab") as log:
            with self.lock:
                if self.stopped:
                    return False
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                         env={**os.environ, "OMP_NUM_THREADS": "1"})
                self.children.add(child)
            code = child.wait()
            with self.lock:
                self.children.discard(child)
        if code == 0:
            checkpoint.unlink(missing_ok=True)
        return code == 0

    def stop(self):
        with self.lock:
            self.stopped = True
            for child in self.children:
                child.terminate()

    def run_all(self, runs):
        """The runs that failed."""
        failed = []
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self.train, run): run for run in runs}
            try:
                for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                    run = futures[future]
                    if future.result():
                        row = run.row()
                        say(f"[{done}/{len(runs)}] {run}: valid {row['valid_NDCG@10']:.4f}, "
                            f"test {row['test_NDCG@10']:.4f}, epoch {row['best_epoch']}, {row['seconds']:.0f} s")
                    else:
                        failed.append(run)
                        say(f"[{done}/{len(runs)}] {run}: failed, see {run.beside('.log')}")
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise
        return failed


def say(text):
    print(text, file=sys.stderr, flush=True)


def spread(values):
    if not values:
        return "–"
    text = f"{statistics.mean(values):.4f}"
    return f"{text} ± {statistics.stdev(values):.4f}" if len(values) > 1 else text


def table(rows, names, stems, seeds):
    """Markdown: a line per set, per data set validation, test and change."""
    found = {(row["data"], row["set"], row["seed"]): row for row in rows}
    head = ["set"] + [text for stem in stems for text in (f"{stem} valid", "test", f"vs {names[0]}")]
    lines = [head, ["---"] * len(head)]
    for name in names:
        cells = [name]
        for stem in stems:
            mine = {s: found[stem, name, s] for s in seeds if (stem, name, s) in found}
            cells.append(spread([row["valid_NDCG@10"] for row in mine.values()]))
            note = f" ({len(mine)} of {len(seeds)} seeds)" if len(mine) < len(seeds) else ""
            cells.append(spread([row["test_NDCG@10"] for row in mine.values()]) + note)
            both = [s for s in mine if (stem, names[0], s) in found]
            base = sum(found[stem, names[0], s]["test_NDCG@10"] for s in both)
            share = sum(mine[s]["test_NDCG@10"] for s in both) / base - 1 if base else None
            cells.append("" if name == names[0] or share is None else f"{100 * share:+.1f} %")
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write_results(out, rows):
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["\t".join(COLUMNS)] + ["\t".join(str(row[column]) for column in COLUMNS) for row in rows]
    (out / "results.tsv").write_text("\n".join(lines) + "\n")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tim4rec", required=True, help="the program")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="directory of all results")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--data", required=True, nargs="+", type=pathlib.Path, help="interaction files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="default: 1")
    parser.add_argument("--set", required=True, action="append", dest="sets", metavar='NAME="FLAGS"')
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs is less than 1")
    sets = {}
    for text in options.sets:
        name, equals, flags = text.partition("=")
        if not equals or not name or "/" in name or name.startswith("."):
            parser.error(f'--set {text}: expected NAME="FLAGS", the name without "/"')
        if name in sets:
            parser.error(f"--set {name} is given twice")
        taken = [flag for flag in shlex.split(flags) if flag.split("=")[0] in GIVEN_HERE]
        if taken:
            parser.error(f"--set {name}: {', '.join(taken)} is not for a set to give")
        sets[name] = flags
    options.sets = sets
    options.seeds = list(dict.fromkeys(options.seeds))
    if len({data.stem for data in options.data}) < len(options.data):
        parser.error("--data: two files have the same name")
    for data in options.data:
        if not data.is_file():
            parser.error(f"--data {data}: no such file")
    return options


def main(arguments):
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Seed by seed, so that a first table is complete early.
    runs = [Run(options, data, name, flags, seed)
            for seed in options.seeds for data in options.data for name, flags in options.sets.items()]
    for run in runs:
        if before := run.changed():
            say(f"{run} was run with other flags before: {before}\n"
                f"give the set another name, or remove {run.out.parent}")
            return 2
    open_runs = [run for run in runs if run.metrics() is None]
    say(f"{len(runs)} runs, {len(runs) - len(open_runs)} of them finished before")
    failed = Sweep(options.tim4rec, options.jobs).run_all(open_runs)
    rows = [run.row() for run in runs if run.metrics() is not None]
    options.out.mkdir(parents=True, exist_ok=True)
    write_results(options.out, rows)
    print(table(rows, list(options.sets), [data.stem for data in options.data], options.seeds))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        say("interrupted; the same command goes on")
        sys.exit(130)
