#!/usr/bin/env python3
"""Checks every #include of the tree against the table of which folder may see which.

Usage: check_includes.py ROOT      prints each forbidden line, exits 1 if there is one
       check_includes.py --self-test

OURS: folder → folders of ours that its files may include besides itself. The longest matching folder decides.
THEIRS: third-party include prefix → folders that alone may include it.
"""
import pathlib
import re
import sys
import tempfile

OURS = {
    "proto": [],
    "store": [],
    "model/config": [],
    "model/weights": ["model/config"],
    "model/kernels": [],
    "model/engine": ["model/config", "model/weights"],
    "model/backends": ["model/engine", "model/kernels", "model/config", "model/weights", "model/reference"],
    "model/reference": ["model/config"],
    "model/evaluation": ["model/config", "model/engine"],
    "model/training": ["model/reference", "model/config", "model/weights", "model/evaluation"],
    "model/cli": ["model", "store"],
    "server": ["proto", "model", "store"],
    "tests": ["proto", "model", "store", "server", "tests"],
}
# store: `tim4rec verify` reads a server's store and is no server.
# weights and engine are what evaluation and training need to rank with what will serve.
OURS["model/evaluation"].append("model/weights")
OURS["model/training"].append("model/engine")

THEIRS = {
    "torch/": ["model/reference", "model/training", "model/backends/torch", "tests/model", "tests/bench"],
    "ATen/": ["model/reference", "model/training", "model/backends/torch", "tests/model"],
    "c10/": ["model/reference", "model/training", "model/backends/torch", "tests/model"],
    "grpc": ["server", "tests/server", "tests/e2e", "tests/bench", "tests/fuzz"],
    "google/protobuf/": ["server", "tests/server", "tests/e2e", "tests/bench", "tests/fuzz"],
    "rocksdb/": ["store", "tests/store", "tests/bench"],
    "prometheus/": ["server", "tests/server"],
    "yaml-cpp/": ["model/cli", "server", "tests/server"],
    "CLI/": ["model/cli", "server", "tests"],
    "cuda": ["model/backends/cuda", "model/kernels", "tests/gpu", "tests/model"],
}
CUDA_SOURCES = (".cu", ".cuh")
CUDA_FORBIDDEN = ("torch/", "ATen/", "c10/", "absl/")

SOURCES = (".h", ".cc") + CUDA_SOURCES
GENERATED = re.compile(r"^tim4rec/v1/|^google/rpc/|\.pb\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
TOP = ("proto", "model", "store", "server", "tests")


def folder_rule(path, rules):
    """The longest key of `rules` that `path` lies in, or None."""
    parts = path.split("/")
    for n in range(len(parts), 0, -1):
        if "/".join(parts[:n]) in rules:
            return "/".join(parts[:n])
    return None


def inside(path, folders):
    return any(path == f or path.startswith(f + "/") for f in folders)


def fault_of(source, quoted, target):
    """What is wrong with `source` including `target`, or None."""
    if GENERATED.search(target):
        return None if inside(source, ["server", "tests", "proto"]) else "generated protocol code outside server/ and tests/"
    if source.endswith(CUDA_SOURCES) and target.startswith(CUDA_FORBIDDEN):
        return "a CUDA source sees neither torch nor abseil"
    if target.split("/")[0] in TOP:
        home = folder_rule(source, OURS)
        if home is None:
            return "the folder has no row in the table"
        return None if inside(target, [home] + OURS[home]) else f"{home} may include only itself and {OURS[home]}"
    if quoted and "/" not in target:
        return "includes are written from the root of the tree"
    for prefix, homes in THEIRS.items():
        if target.startswith(prefix) and not inside(source, homes):
            return f"only {homes} may include {prefix}"
    return None


def check(root):
    """Returns the faults of the tree below `root`, each as 'file:line: text', and the number of files read."""
    faults, files = [], 0
    for top in TOP:
        for path in sorted((root / top).rglob("*")):
            if path.suffix not in SOURCES or not path.is_file():
                continue
            files += 1
            name = path.relative_to(root).as_posix()
            for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                found = INCLUDE.match(line)
                fault = found and fault_of(name, found[1] == '"', found[2])
                if fault:
                    faults.append(f"{name}:{n}: {found[2]}: {fault}")
    return faults, files


def self_test():
    cases = [  # file, line, allowed
        ("store/a.cc", '#include "store/b.h"', True),
        ("store/a.cc", '#include "model/config/config.h"', False),
        ("model/kernels/a.cc", '#include "model/config/config.h"', False),
        ("model/engine/a.h", '#include "model/backends/cpu/x.h"', False),
        ("model/engine/a.h", "#include <torch/torch.h>", False),
        ("model/reference/a.cc", "#include <torch/torch.h>", True),
        ("model/backends/cpu/a.cc", '#include "model/kernels/kernels.h"', True),
        ("model/backends/cuda/a.cu", '#include "absl/status/status.h"', False),
        ("model/cli/a.cc", '#include "model/training/trainer.h"', True),
        ("model/cli/a.cc", '#include "store/rocksdb_store.h"', True),
        ("model/engine/a.cc", '#include "store/event.h"', False),
        ("server/a.cc", '#include "tim4rec/v1/recommender.pb.h"', True),
        ("store/a.cc", '#include "tim4rec/v1/recommender.pb.h"', False),
        ("model/config/a.cc", "#include <grpcpp/grpcpp.h>", False),
        ("server/a.cc", '#include "b.h"', False),
    ]
    for name, line, allowed in cases:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True)
            path.write_text(line + "\n", encoding="utf-8")
            faults, _ = check(pathlib.Path(folder))
            if (not faults) != allowed:
                sys.exit(f"self-test: {name} with {line}: expected {'no fault' if allowed else 'a fault'}, got {faults}")
    print(f"self-test: {len(cases)} cases passed")


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    faults, files = check(pathlib.Path(sys.argv[1]))
    if files == 0:
        sys.exit(f"{sys.argv[1]}: no source file found")
    print("\n".join(faults + [f"{files} files, {len(faults)} forbidden includes"]))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
