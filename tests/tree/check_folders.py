#!/usr/bin/env python3
"""Checks the shape of the tree: top level, a README per folder, file sizes, no data files.

Usage: check_folders.py ROOT      prints each fault, exits 1 if there is one
"""
import pathlib
import sys

TOP_LEVEL = {"CMakeLists.txt", "CMakePresets.json", "Dockerfile", "README.md",
             "proto", "model", "store", "server", "deploy", "tests", "build"}
SOURCES = {".h", ".cc", ".cu", ".cuh", ".py", ".sh"}
MOST_LINES = 800
DATA = {".inter", ".dat", ".pth", ".npz", ".sst"}


def faults_of(root):
    for path in root.iterdir():
        if path.name not in TOP_LEVEL and not path.name.startswith("."):
            yield f"{path.name}: nothing else lives at the top level than {sorted(TOP_LEVEL)}"
    for top in ("proto", "model", "store", "server", "deploy", "tests"):
        if not (root / top / "README.md").is_file():
            yield f"{top}: no README.md"
    for folder in (root / "model").iterdir():
        if folder.is_dir() and not (folder / "README.md").is_file():
            yield f"model/{folder.name}: no README.md"
    for path in root.rglob("*"):
        inner = path.relative_to(root)
        if inner.parts[0] == "build" or inner.parts[0].startswith(".") or not path.is_file():
            continue
        if path.suffix in SOURCES:
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > MOST_LINES:
                yield f"{inner}: {lines} lines, more than {MOST_LINES}: split it by subject"
        if path.suffix in DATA and "testdata" not in inner.parts:
            yield f"{inner}: data files are not kept in the tree, fixtures made by this project in testdata/ excepted"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    faults = list(faults_of(pathlib.Path(sys.argv[1])))
    print("\n".join(faults + [f"{len(faults)} faults"]))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
