#!/usr/bin/env python3
"""Checks what the compiler made of the hot kernels: registers, spills, stack, vector loads and stores.

Usage: resources.py NVCC ROOT [ARCH ...]     ARCH: sm_80 sm_90 by default
Prints a line per kernel; exits 1 if one breaks its limits, 77 (with the reason) where NVCC does not run.

Reads ptxas' own report and the PTX, for which no GPU and no disassembler is needed.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

# source: {part of the demangled kernel's name: threads of the blocks that must share a multiprocessor}. None of them may
# spill or have a stack. The registers are what lets the blocks fit: 65536 per multiprocessor.
FOLD_THREADS = 384
RANK_THREADS = 256
PRODUCT_THREADS = 128
STATE_THREADS = 256
BULK_THREADS = 128
LIMITS = {
    "model/kernels/cuda/fold_served.cu": {
        "FoldRuns<1, true>": FOLD_THREADS * 1,
        "FoldRuns<4, true>": FOLD_THREADS * 1,
        "FoldRuns<8, true>": FOLD_THREADS * 1,
        "FoldRuns<16, false>": FOLD_THREADS * 2,
    },
    "model/kernels/cuda/fold_layers.cu": {
        "MultiplyRows<1>": PRODUCT_THREADS * 4,
        "MultiplyRows<8>": PRODUCT_THREADS * 4,
        "UpdateLayer": STATE_THREADS * 2,
        "BeginRows": STATE_THREADS * 4,
        "EndRows": STATE_THREADS * 8,
    },
    "model/kernels/cuda/rank_scan.cu": {
        **{f"ScanTable<{steps}, {matrices}>": RANK_THREADS * 2
           for steps, matrices in ((1, 4), (2, 4), (3, 2), (4, 2), (8, 1), (0, 1))},
        "PrepareGroups": RANK_THREADS * 2,
        "TightenPlaces": RANK_THREADS * 2,
    },
    "model/kernels/cuda/rank_finish.cu": {"FinishPlaces": RANK_THREADS * 2, "RankPlaces": RANK_THREADS * 2},
    "model/kernels/cuda/bulk_ssd.cu": {"MixSequences<4>": BULK_THREADS * 4, "MixSequences<1>": BULK_THREADS * 4},
    "model/kernels/cuda/bulk_product.cu": {"MultiplyTiles": BULK_THREADS * 3},
}
MMA_INT8 = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
MMA_TF32 = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
# source: {part of the kernel's name: (PTX instruction, how often at least)}: records move in vectors of 16 bytes, past
# the first-level cache: 8 of a state at once and 3 of a convolution's tail. ptxas never splits these.
VECTORS = {
    "model/kernels/cuda/fold_served.cu": {
        "FoldRuns<16, false>": {"ld.global.cg.v4": 11, "st.global.cg.v4": 11, "ld.global.nc.v4": 4},
        "FoldRuns<8, true>": {"ld.global.cg.v4": 11, "st.global.cg.v4": 11, "cp.async.cg.shared.global": 1},
    },
    # Four inputs of a product, twice, are 12 vectors for 128 multiply-adds, and 5 of them for 16, four times. A state's 32
    # values of a channel are read and written at once, a line of the record per warp; B and C are 16 vectors.
    "model/kernels/cuda/fold_layers.cu": {
        "MultiplyRows<8>": {"ld.shared.v4": 2 * 12, "fma.rn.f32": 2 * 128, "cp.async.cg.shared.global": 4},
        "MultiplyRows<1>": {"ld.shared.v4": 4 * 5, "fma.rn.f32": 4 * 16, "cp.async.cg.shared.global": 2},
        "UpdateLayer": {"ld.global.cg.f32": 32, "st.global.cg.f32": 32, "ld.v4.f32": 16},
    },
    # 64 items of 64 codes are 8 loads of 16 bytes and 8 matrix instructions per group of queries, and half with boosts.
    "model/kernels/cuda/rank_scan.cu": {
        "ScanTable<2, 4>": {MMA_INT8: 8 + 4, "ld.global.nc.v4": 8 + 2 + 4 + 2, "ld.shared.v4": 2},
        "ScanTable<8, 1>": {MMA_INT8: 8 + 8, "ld.global.nc.v4": 8 + 8},
    },
    "model/kernels/cuda/rank_finish.cu": {"FinishPlaces": {"ld.global.nc.v4": 1}},
    "model/kernels/cuda/bulk_ssd.cu": {"MixSequences<4>": {MMA_TF32: 4 + 1 + 4 + 4}},
    "model/kernels/cuda/bulk_product.cu": {"MultiplyTiles": {MMA_TF32: 32, "ld.global.nc.v4": 8, "st.shared.v4": 4}},
}
REGISTERS = 65536


def demangle(names):
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    # c++filt writes template arguments of bool as (bool)1 or true, of int as (int)16 or 16.
    plain = done.stdout.replace("(bool)1", "true").replace("(bool)0", "false").replace("(int)", "")
    return [re.sub(r"tim4rec::cuda::", "", line) for line in plain.splitlines()]


def compiled(nvcc, root, source, arch, folder):
    """ptxas' report and the PTX of `source`."""
    command = [nvcc, "-std=c++17", "-O3", "--fmad=false", f"-arch={arch}", "-I", str(root), "-Xptxas", "-v", "-cubin",
               "--keep", "--keep-dir", folder, "-o", f"{folder}/out.cubin", str(root / source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    ptx = list(pathlib.Path(folder).glob("*.ptx"))
    if len(ptx) != 1:
        sys.exit(f"{source}: expected one PTX file, found {ptx}")
    return done.stdout + done.stderr, ptx[0].read_text(encoding="utf-8")


def report_of(log):
    """{kernel: (registers, stack bytes, spilled bytes)} of ptxas' report."""
    kernels = {}
    for block in log.split("Compiling entry function '")[1:]:
        name = demangle([block.split("'", 1)[0]])[0]
        stack = int(re.search(r"(\d+) bytes stack frame", block)[1])
        spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", block))
        kernels[name] = (int(re.search(r"Used (\d+) registers", block)[1]), stack, spilled)
    return kernels


def bodies_of(ptx):
    """{kernel: its PTX}."""
    parts = re.split(r"\.entry (\w+)", ptx)
    return dict(zip(demangle(parts[1::2]), parts[2::2]))


def the_one(table, part):
    found = [name for name in table if part in name]
    if len(found) != 1:
        sys.exit(f"{len(found)} kernels are called ...{part}...: {sorted(table)}")
    return table[found[0]]


def faults_of(source, arch, log, ptx):
    report, bodies = report_of(log), bodies_of(ptx)
    for part, threads in LIMITS[source].items():
        registers, stack, spilled = the_one(report, part)
        print(f"{arch} {part}: {registers} registers, {stack} bytes of stack, {spilled} spilled")
        # Registers are given to warps in eights, to blocks by four warps.
        most = REGISTERS // threads // 8 * 8
        if registers > most:
            yield f"{arch} {part}: {registers} registers, more than {most}: its blocks no longer fit"
        if stack or spilled:
            yield f"{arch} {part}: {stack} bytes of stack, {spilled} bytes spilled"
    for part, counts in VECTORS[source].items():
        body = the_one(bodies, part)
        for instruction, least in counts.items():
            found = body.count(instruction)
            print(f"{arch} {part}: {found} {instruction}")
            if found < least:
                yield f"{arch} {part}: {found} times {instruction}, expected {least} or more"


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    nvcc, root = sys.argv[1], pathlib.Path(sys.argv[2])
    try:
        subprocess.run([nvcc, "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"resources.py: skipped: no CUDA compiler: {error}")
        sys.exit(77)
    faults = []
    for source in LIMITS:
        for arch in sys.argv[3:] or ["sm_80", "sm_90"]:
            with tempfile.TemporaryDirectory() as folder:
                faults += faults_of(source, arch, *compiled(nvcc, root, source, arch, folder))
    print("\n".join(faults + [f"{len(faults)} faults"]))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
