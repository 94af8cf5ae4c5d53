#!/usr/bin/env python3
"""Holds the instructions of the step, the scan and the ranking against instruction_counts.json.

    instruction_counts.py PROGRAM [--write]

Runs the program (instruction_counts.cc, AVX2) under callgrind, whose counts do not depend on what else the machine does.
A path that takes over 10 % more than recorded fails; --write records what was counted, for a change that is meant.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

RECORD = pathlib.Path(__file__).with_name("instruction_counts.json")
MARGIN = 1.10


# What the program does in its calls of Counted(), in order.
PATHS = ["step of 1 user", "step of 48 users", "scan of 100 events", "top 10 of 1 query", "top 10 of 16 queries"]


def count(program):
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(["valgrind", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=Counted",
                              "--dump-after=Counted", f"--callgrind-out-file={folder}/out", program],
                             capture_output=True, text=True)
        totals = []
        for part in range(1, len(PATHS) + 1):
            path = pathlib.Path(folder, f"out.{part}")
            found = path.is_file() and re.search(r"^(?:totals|summary): (\d+)", path.read_text(), re.M)
            totals.append(int(found[1]) if found else 0)
    if run.returncode != 0 or 0 in totals:
        sys.exit(f"instruction_counts: {totals}, exit code {run.returncode}\n{run.stderr}")
    return dict(zip(PATHS, totals))


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["--write"]):
        sys.exit(__doc__)
    counted = count(sys.argv[1])
    if sys.argv[2:]:
        RECORD.write_text(json.dumps(counted, indent=2) + "\n")
    recorded = json.loads(RECORD.read_text())
    for path, instructions in counted.items():
        print(f"{path:22s} {instructions:12,d}  recorded {recorded[path]:12,d}  {instructions / recorded[path]:.3f}")
    grown = [path for path in recorded if counted[path] > MARGIN * recorded[path]]
    if grown:
        sys.exit(f"instruction_counts: more than {MARGIN:.0%} of what is recorded: {', '.join(grown)}")


if __name__ == "__main__":
    main()
