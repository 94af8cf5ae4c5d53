#!/usr/bin/env python3
"""Our engine against ONNX Runtime and faiss, on one thread: goals C1 to C6.

    tests/bench/compare.py [--json FILE] [--only C1,C4] [--rounds N] [--build build/release] [--work build/compare]

Needs the target compare_engine (ninja -C build/release compare_engine). Installs the peers with pip into a virtual
environment below --work, makes models of random weights, and gives peers and us the same weights and inputs. Every case
compares the outputs before and after it is timed, alternates ours and the peer (A B B A) for at least 7 rounds, counts
the thread's CPU time and prints the median ratio with its smallest and largest, beside what the machine's limits of the
same run allow. Exit code 1 if outputs differ, 0 whether or not goals are met.

Peers run as they run best: graphs optimised once, inputs and outputs bound to fixed buffers, one thread, and their
states side by side in memory, while ours are records of users that are found one by one.
"""
import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PEERS = ["numpy", "onnx", "onnxruntime", "faiss-cpu"]
GOALS = {  # name: (what, ratio)
    "C1": ("step, D 64, 256 users, vs ONNX Runtime", 8),
    "C2": ("step, D 64, 1 user, vs ONNX Runtime", 30),
    "C3": ("step, D 256, 24 to 256 users, vs ONNX Runtime", 4),
    "C4": ("exact top-k of 1 M items, vs ONNX Runtime", None),
    "C5": ("exact top-100 of 1 M items, vs faiss IndexFlatIP", 8),
    "C6": ("update and recommend, vs re-encoding 200 events in ONNX Runtime", 100),
}
SAMPLE_SECONDS = 0.05  # of one measurement, at least


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the table to this file")
    parser.add_argument("--only", help="goals, separated by commas", default=",".join(GOALS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/compare")
    parser.add_argument("--items", type=int, default=1_000_000, help="of C4 and C5")
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - set(GOALS)
    if unknown or args.rounds < 7 or args.items < 1000:
        parser.error(f"unknown goals: {sorted(unknown)}" if unknown else "--rounds: at least 7; --items: at least 1000")
    return args


def enter_environment(work):
    """Runs this script again inside the virtual environment with the peers, one thread, one core."""
    python = work / "peers/bin/python"
    if os.environ.get("TIM4REC_COMPARE") == str(python):
        return
    if not python.exists():
        print(f"compare: installing {', '.join(PEERS)} into {work / 'peers'}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", work / "peers"], check=True)
    if subprocess.run([python, "-c", "import numpy, onnx, onnxruntime, faiss"], capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    os.environ.update(ONE_THREAD, TIM4REC_COMPARE=str(python))
    os.execv(python, [python, *sys.argv])


class Ours:
    """compare_engine.cc through ctypes; numpy arrays go in as pointers."""

    def __init__(self, build):
        path = build / "tests/bench/libcompare_engine.so"
        if not path.exists():
            sys.exit(f"compare: no {path}: run ninja -C {build} compare_engine")
        self.library = ctypes.CDLL(str(path))
        for name in ("fma_gflops", "read_gbs", "copy_gbs", "advance", "update_and_recommend", "rank"):
            getattr(self.library, "cmp_" + name).restype = ctypes.c_double
        for name in ("open", "rank_table"):
            getattr(self.library, "cmp_" + name).restype = ctypes.c_void_p
        for name in ("state_bytes", "rank_bytes"):
            getattr(self.library, "cmp_" + name).restype = ctypes.c_int64
        self.library.cmp_isa.restype = ctypes.c_char_p
        self.isa = self.call("isa").decode()

    def call(self, name, *args):
        def convert(a):
            if hasattr(a, "ctypes"):
                return ctypes.c_void_p(a.ctypes.data)
            return a if isinstance(a, (bytes, ctypes.c_void_p, ctypes.c_int32)) else ctypes.c_int64(a)
        result = getattr(self.library, "cmp_" + name)(*map(convert, args))
        if result is None or (isinstance(result, (int, float)) and result < 0):
            sys.exit(f"compare: {name} failed")
        return result

    def open(self, work, width, items):
        folder = work / f"model_{width}_{items}"
        if not (folder / "config.json").exists():
            self.call("write_model", bytes(folder), width, items)
        return folder, ctypes.c_void_p(self.call("open", bytes(folder)))


def i32(value):
    return ctypes.c_int32(value)


def session(model):
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bind(sess, inputs, outputs):
    """A call that runs the session on these numpy buffers."""
    binding = sess.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    return lambda: sess.run_with_iobinding(binding)


def thread_seconds(call, repeats):
    start = time.thread_time()
    for _ in range(repeats):
        call()
    return time.thread_time() - start


def repeats_for(measure):
    """How often to repeat so that a measurement takes SAMPLE_SECONDS."""
    repeats = 1
    while (seconds := measure(repeats)) < SAMPLE_SECONDS:
        repeats = max(repeats + 1, min(100 * repeats, int(1.3 * repeats * SAMPLE_SECONDS / max(seconds, 1e-6))))
    return repeats


def alternate(rounds, ours, peer, ceiling):
    """ours(repeats) and peer(repeats) give seconds; returns seconds per call of each and the ceilings, by round."""
    our_repeats, peer_repeats = repeats_for(ours), repeats_for(peer)
    rows = []
    for i in range(rounds):
        both = [("ours", ours, our_repeats), ("peer", peer, peer_repeats)]
        row = {"ceiling": ceiling()}
        for name, measure, repeats in both if i % 2 == 0 else both[::-1]:
            row[name] = measure(repeats) / repeats
        rows.append(row)
    return rows


def median(values):
    return sorted(values)[len(values) // 2]


def result(rows, goal, peer, unit, work, ceiling_unit):
    """One case of the table. `work`: GFLOP or GB of one of our calls, in the ceiling's unit."""
    ratios = [row["peer"] / row["ours"] for row in rows]
    return {"goal": goal, "peer": peer, "median": median(ratios), "min": min(ratios), "max": max(ratios),
            f"ours_{unit}": median([row["ours"] for row in rows]) * (1e6 if unit == "us" else 1e3),
            f"peer_{unit}": median([row["peer"] for row in rows]) * (1e6 if unit == "us" else 1e3),
            "reached": median([work / row["ours"] for row in rows]),
            "ceiling": median([row["ceiling"] for row in rows]), "ceiling_unit": ceiling_unit}


def check(case, ours, peer, bound):
    """Exits unless the relative difference of two arrays is within the bound."""
    import numpy as np
    error = np.linalg.norm(np.asarray(ours, np.float64) - peer) / np.linalg.norm(np.asarray(peer, np.float64))
    if not error <= bound:
        sys.exit(f"compare: {case}: outputs differ by {error:.2g}, allowed {bound:.2g}")


class StepCase:
    """A batch of users in our slots and the same in the peer's tensors, twice: it computes from one into the other."""

    def __init__(self, ours, work, width, users):
        import numpy as np
        import compare_graphs as graphs
        self.np, self.ours, self.users, self.width = np, ours, users, width
        self.folder, self.engine = ours.open(work, width, 3000)
        self.config, weights = graphs.read_package(self.folder)
        self.size = s = graphs.Sizes(self.config)
        self.random = np.random.default_rng(1)
        self.slots = np.array([ours.call("allocate", self.engine) for _ in range(users)], np.int32)
        self.random.shuffle(self.slots)  # neighbours in a batch are none in memory
        self.now = np.full(users, 1_600_000_000_000, np.int64)
        self.item, self.gap = np.zeros(users, np.int64), np.zeros((users, 1), np.float32)
        shapes = {}
        for i in range(s.layers):
            shapes.update({f"s{i}": (users, s.h, s.n, s.p), f"conv{i}": (users, s.k - 1, s.c),
                           f"tail1_{i}": (users, s.k - 1, s.h), f"tail2_{i}": (users, s.k - 1, s.h)})
        states = [{name: np.zeros(shape, np.float32) for name, shape in shapes.items()} for _ in range(2)]
        self.out = np.zeros((users, width), np.float32)
        sess = session(graphs.step(weights, self.config))
        fed = {"item": self.item, "gap": self.gap}
        self.peers = [bind(sess, {**fed, **states[i]},
                           {"out": self.out, **{"next_" + k: v for k, v in states[1 - i].items()}}) for i in (0, 1)]
        self.states, self.turn = states, 0
        self.check()

    def run_peer(self):
        self.peers[self.turn]()
        self.turn = 1 - self.turn

    def advance(self, repeats):
        return self.ours.call("advance", self.engine, self.users, self.slots, self.item.astype(self.np.int32),
                              self.now, repeats)

    def our_records(self):
        length = self.ours.call("state_bytes", self.engine)
        records = self.np.zeros((self.users, length // 4), self.np.float32)
        for slot, record in zip(self.slots, records):
            self.ours.call("export", self.engine, i32(int(slot)), record, length)
        return records

    def check(self):
        """From empty states, folds the same events by both and compares outputs and the states of every layer."""
        np, s = self.np, self.size
        empty = np.zeros(self.ours.call("state_bytes", self.engine), np.uint8)
        for slot in self.slots:
            self.ours.call("import", self.engine, i32(int(slot)), empty, len(empty))
        for state in self.states[self.turn].values():
            state[:] = 0
        for event in range(5):
            gaps = self.random.integers(1, 10**9, self.users) if event else np.zeros(self.users, np.int64)
            self.now += gaps
            self.item[:], self.gap[:, 0] = self.random.integers(1, 3000, self.users), gaps
            self.advance(1)
            self.run_peer()
        records = self.our_records()[:, 4:]  # without the header
        layer = (records.shape[1] - self.width) // s.layers
        case = f"step, D {self.width}, {self.users} users"
        for i in range(s.layers):
            ssm = records[:, i * layer:i * layer + s.h * s.n * s.p]
            check(f"{case}, state of layer {i}", ssm, self.states[self.turn][f"s{i}"].reshape(self.users, -1), 1e-4)
        check(case, records[:, s.layers * layer:], self.out, 1e-4)

    def gflop(self):
        s = self.size
        linears = s.d * (s.e + s.c + s.h) + s.e * s.d + 2 * s.d * 4 * s.d
        return 1e-9 * self.users * s.layers * (2 * linears + 5 * s.e * s.n)

    def run(self, rounds, goal):
        rows = alternate(rounds, self.advance, lambda repeats: thread_seconds(self.run_peer, repeats),
                         lambda: self.ours.call("fma_gflops"))
        self.check()
        return result(rows, goal, "ONNX Runtime", "us", self.gflop(), "GFLOP/s")


def step_cases(ours, args, width, batches, goal):
    return {f"D {width}, {users} users": StepCase(ours, args.work, width, users).run(args.rounds, goal)
            for users in batches}


class Catalogue:
    """A table of a million items and queries: all sides rank items 1 to V-1."""

    def __init__(self, ours, args):
        import numpy as np
        self.np, self.ours, self.args, self.width = np, ours, args, 64
        random = np.random.default_rng(2)
        self.table = random.standard_normal((args.items, self.width), dtype=np.float32)
        self.queries = random.standard_normal((256, self.width), dtype=np.float32)
        self.ranked = ctypes.c_void_p(ours.call("rank_table", self.table, i32(args.items), i32(self.width)))

    def our_call(self, count, k):
        items, scores = (self.np.zeros((count, k), kind) for kind in (self.np.int32, self.np.float32))
        queries = self.np.ascontiguousarray(self.queries[:count])
        def measure(repeats):
            return sum(self.ours.call("rank", self.ranked, queries, count, i32(k), items, scores)
                       for _ in range(repeats))
        return measure, items, scores

    def compare(self, case, items, scores, peer_items, peer_scores):
        """Scores within float32's rounding, and every item's own score in our answer right."""
        check(f"{case}: scores", scores, peer_scores, 1e-5)
        same = (items == peer_items).mean()
        if same < 0.99:  # neighbours may swap where float32 scores tie
            sys.exit(f"compare: {case}: only {same:.1%} of the items agree")

    def run(self, case, count, k, peer, call, peer_items, peer_scores, goal):
        measure, items, scores = self.our_call(count, k)
        def both():
            measure(1)
            call()
            self.compare(case, items, scores, peer_items() + 1, peer_scores())
        both()
        rows = alternate(self.args.rounds, measure, lambda repeats: thread_seconds(call, repeats),
                         lambda: self.ours.call("read_gbs"))
        both()
        gigabytes = 1e-9 * self.ours.call("rank_bytes", self.ranked)
        return result(rows, goal, peer, "ms", gigabytes, "GB/s")

    def onnx(self):
        import compare_graphs as graphs
        np, cases = self.np, {}
        columns = np.ascontiguousarray(self.table[1:].T)
        for count, k, goal in ((1, 100, 6), (16, 100, 6), (64, 100, 5), (256, 100, 4), (1, 1000, 3)):
            items, scores = np.zeros((count, k), np.int64), np.zeros((count, k), np.float32)
            queries = np.ascontiguousarray(self.queries[:count])
            call = bind(session(graphs.score(self.args.items - 1, self.width, k)),
                        {"queries": queries, "table": columns}, {"scores": scores, "items": items})
            case = f"{count} queries, top {k}"
            cases[case] = self.run(case, count, k, "ONNX Runtime", call, lambda: items, lambda: scores, goal)
        return cases

    def faiss(self, goal):
        import faiss
        np, cases = self.np, {}
        faiss.omp_set_num_threads(1)
        index = faiss.IndexFlatIP(self.width)
        index.add(self.table[1:])
        for count in (1, 16, 64, 256):
            for name, threshold in (("without BLAS", 1 << 30), ("with BLAS", 0)):
                answer = [np.zeros((count, 100), np.float32), np.zeros((count, 100), np.int64)]
                queries = np.ascontiguousarray(self.queries[:count])
                def call():
                    faiss.cvar.distance_compute_blas_threshold = threshold
                    index.search(queries, 100, D=answer[0], I=answer[1])
                case = f"{count} queries, {name}"
                cases[case] = self.run(case, count, 100, f"faiss {name}", call, lambda: answer[1], lambda: answer[0],
                                       goal)
        return cases


def reencode_case(ours, args, goal):
    """One more event and the answer: ours folds it; the peer encodes the last 200 again, then ranks the catalogue."""
    import numpy as np
    import compare_graphs as graphs
    length, k, width, items = 200, 10, 64, 3500
    folder, engine = ours.open(args.work, width, items)
    config, weights = graphs.read_package(folder)
    random = np.random.default_rng(3)
    item = random.integers(1, items, length)
    gap = random.integers(1000, 600_000, (length, 1)).astype(np.float32)
    gap[0] = 0
    times = 1_600_000_000_000 + np.cumsum(gap[:, 0].astype(np.int64))
    query, top = np.zeros((1, width), np.float32), np.zeros((1, k), np.int64)
    scores, table = np.zeros((1, k), np.float32), np.ascontiguousarray(weights["item_embedding.weight"][1:].T)
    encode = bind(session(graphs.encode(weights, config, length)), {"item": item, "gap": gap}, {"query": query})
    rank = bind(session(graphs.score(items - 1, width, k)), {"queries": query, "table": table},
                {"scores": scores, "items": top})
    def peer():
        encode()
        rank()
    our_query, our_top = np.zeros(width, np.float32), np.zeros(k, np.int32)
    slot = i32(ours.call("allocate", engine))
    def measure(repeats):
        return ours.call("update_and_recommend", engine, slot, i32(int(item[-1])), int(times[-1]), i32(k), repeats,
                         our_top, our_query)
    def both():
        empty = np.zeros(ours.call("state_bytes", engine), np.uint8)
        ours.call("import", engine, slot, empty, len(empty))
        for i in range(length - 1):
            ours.call("advance", engine, 1, np.array([slot.value], np.int32), item[i:i + 1].astype(np.int32),
                      times[i:i + 1], 1)
        measure(1)
        peer()
        check("C6, query", our_query, query[0], 1e-3)
        if list(our_top) != list(top[0] + 1):
            sys.exit(f"compare: C6: top items differ: {our_top} and {top[0] + 1}")
    both()
    rows = alternate(args.rounds, measure, lambda repeats: thread_seconds(peer, repeats),
                     lambda: ours.call("fma_gflops"))
    both()
    s = graphs.Sizes(config)
    linears = s.d * (s.e + s.c + s.h) + s.e * s.d + 2 * s.d * 4 * s.d
    work = 1e-9 * s.layers * (2 * linears + 5 * s.e * s.n)
    return {"200 events": result(rows, goal, "ONNX Runtime", "us", work, "GFLOP/s")}


def print_case(name, case, r):
    unit = "us" if "ours_us" in r else "ms"
    verdict = "met" if r["median"] >= r["goal"] else "not met"
    print(f"{name}  {case:26s} {r['peer']:19s} {r['peer_' + unit]:9.1f} {unit}  ours {r['ours_' + unit]:8.2f} {unit}  "
          f"{r['median']:6.1f}x ({r['min']:.1f} to {r['max']:.1f})  goal {r['goal']}: {verdict}  "
          f"{r['reached']:.1f} of {r['ceiling']:.1f} {r['ceiling_unit']}", flush=True)


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    args.work = args.work.resolve()
    enter_environment(args.work)
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    ours = Ours(args.build)
    print(f"one thread on CPU {cpu}, {ours.isa}, load average {os.getloadavg()[0]:.1f}, {args.rounds} rounds", flush=True)
    catalogue, table = None, {}
    for name in args.only.split(","):
        goal = GOALS[name][1]
        if name in ("C4", "C5"):
            catalogue = catalogue or Catalogue(ours, args)
        cases = {"C1": lambda: step_cases(ours, args, 64, [256], goal),
                 "C2": lambda: step_cases(ours, args, 64, [1], goal),
                 "C3": lambda: step_cases(ours, args, 256, [24, 64, 256], goal),
                 "C4": lambda: catalogue.onnx(),
                 "C5": lambda: catalogue.faiss(goal),
                 "C6": lambda: reencode_case(ours, args, goal)}[name]()
        for case, r in cases.items():
            print_case(name, case, r)
        worst = min(cases.values(), key=lambda r: r["median"] / r["goal"])
        table[name] = {"what": GOALS[name][0], **{key: worst[key] for key in ("goal", "median", "min", "max", "ceiling",
                                                                             "ceiling_unit", "reached")},
                       "cases": cases}
    if args.json:
        table["run"] = {"isa": ours.isa, "rounds": args.rounds, "load_average": os.getloadavg()[0]}
        pathlib.Path(args.json).write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
