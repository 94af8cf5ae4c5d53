#!/usr/bin/env python3
"""Goals G1 to G4 on a GPU: our kernels, the machine's ceilings and PyTorch, in one run, outputs compared.

Usage: bench.py LIBRARY [--json FILE] [--minutes M]

LIBRARY: libtim4rec_gpu_bench.so. Ours and a peer alternate, A B B A; times are CUDA events over several rotating inputs;
medians are printed with their least and greatest. After --minutes (4) no further peer is begun, and the table says so.
--json appends a line per figure to FILE.
"""
import argparse
import ctypes
import json
import statistics
import sys
import time

ROUNDS = 7
SLAB_BYTES = 4 << 30
USERS = 4096
EVENTS = (50, 200)
K = 100
DAY_MS = 86_400_000


class Library:
    """bench_library.cu: every function that returns text fails with it."""

    TEXT = ("bench_open", "bench_fold", "bench_bulk", "bench_table", "bench_rank", "bench_multiply_add")

    def __init__(self, path):
        self.c = ctypes.CDLL(path)
        for name in self.TEXT:
            getattr(self.c, name).restype = ctypes.c_char_p
        for name in ("bench_fold_workspace", "bench_bulk_workspace", "bench_table_bytes"):
            getattr(self.c, name).restype = ctypes.c_int64
        self.c.bench_weight.restype = ctypes.POINTER(ctypes.c_float)
        self.c.bench_close.restype = None

    def __getattr__(self, name):
        function = getattr(self.c, name)

        def call(*arguments):
            result = function(*arguments)
            if name in self.TEXT and result is not None:
                raise RuntimeError(f"{name}: {result.decode()}")
            return result
        return call


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def stream():
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


class Figures:
    """What was measured: printed, and appended to a file as a JSON object per line."""

    def __init__(self, path):
        self.path = path

    def add(self, goal, what, value, unit, note=""):
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"goal": goal, "what": what, "value": value, "unit": unit, "note": note}) + "\n")
        shown = f"{value:,.2f}" if isinstance(value, float) else value
        print(f"{goal:4} {what:58} {shown:>14} {unit:9} {note}", flush=True)


def spread(values, unit=""):
    return f"({min(values):.3g} … {max(values):.3g}{unit})"


def us_of(call, inputs):
    """Mean microseconds of call(i) over the inputs, back to back on the device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for i in range(inputs):
        call(i)
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end) / inputs


def alternate(calls, inputs):
    """A B B A …: the times of each call, ROUNDS of them."""
    for call in calls:
        us_of(call, inputs)
    times = [[] for _ in calls]
    for r in range(ROUNDS):
        order = range(len(calls)) if r % 2 == 0 else reversed(range(len(calls)))
        for c in order:
            times[c].append(us_of(calls[c], inputs))
    return times


def ratios(ours, peer):
    each = [p / o for o, p in zip(ours, peer)]
    return statistics.median(each), spread(each)


def graphed(call, inputs):
    """call(i) for each input, captured: a list of graphs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(0)
    torch.cuda.current_stream().wait_stream(side)
    graphs = []
    for i in range(inputs):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call(i)
        graphs.append(graph)
    return graphs


class Model:
    """A random model of the served sizes, ours and in PyTorch with the same weights."""

    def __init__(self, library, d, items, seed=1):
        self.library = library
        self.handle = ctypes.c_void_p()
        library.bench_open(d, items, ctypes.c_uint64(seed), ctypes.byref(self.handle))
        integers, floats, max_gap = (ctypes.c_int64 * 17)(), (ctypes.c_float * 4)(), ctypes.c_int64()
        library.bench_dims(self.handle, integers, floats, ctypes.byref(max_gap))
        s = self.sizes = dict(zip(torch_model.TorchModel.SIZES, integers))
        self.record_floats, self.max_gap_ms = s["record_bytes"] // 4, max_gap.value
        constants = dict(zip(("norm_eps", "inv_tau0", "gap_mean", "inv_gap_stddev"), floats))
        d, e, h, n, k, m, f = (s[x] for x in "d e h n k m f".split())
        c = e + 2 * n
        shapes = {"in_proj": (d, e + c + h), "in_proj_bias": (e + c + h,), "conv": (k, c), "conv_bias": (c,),
                  "time_conv1": (k, h), "time_conv1_bias": (h,), "time_conv2": (k, h), "time_conv2_bias": (h,),
                  "time_hidden": (m,), "time_hidden_bias": (m,), "time_scale": (m, h), "time_scale_bias": (h,), "a": (h,),
                  "rate": (h,), "dt_bias": (h,), "skip": (h,), "norm": (e,), "out_proj": (e, d), "out_proj_bias": (d,),
                  "layer_norm": (d,), "layer_norm_bias": (d,), "fc1": (d, f), "fc1_bias": (f,), "fc2": (f, d),
                  "fc2_bias": (d,), "ffn_norm": (d,), "ffn_norm_bias": (d,)}
        layers = [{name: self.weight(i, name, shape) for name, shape in shapes.items()} for i in range(s["layers"])]
        model = {"embedding": self.weight(-1, "embedding", (items, d)), "in_norm": self.weight(-1, "in_norm", (d,)),
                 "in_norm_bias": self.weight(-1, "in_norm_bias", (d,))}
        self.torch = torch_model.TorchModel(s, constants, layers, model)
        self.workspace = torch.empty(max(1, library.bench_fold_workspace(self.handle)), dtype=torch.uint8, device="cuda")

    def weight(self, layer, name, shape):
        data = self.library.bench_weight(self.handle, layer, name.encode())
        count = 1
        for extent in shape:
            count *= extent
        values = torch.frombuffer(bytearray(ctypes.string_at(data, 4 * count)), dtype=torch.float32)
        return values.reshape(shape).clone().cuda()

    def fold(self, runs, count, events, most_events):
        self.library.bench_fold(self.handle, pointer(runs), count, pointer(events), most_events, pointer(self.workspace),
                                stream())

    def runs(self, slab, slots, counts):
        """DeviceRun [B] on the device: a pointer, the first event and how many."""
        at = slab.data_ptr() + slots.to(torch.int64) * self.sizes["record_bytes"]
        counts = counts.to(torch.int64)
        first = torch.cumsum(counts, 0) - counts
        return torch.stack([at, first + (counts << 32)], 1).contiguous()

    @staticmethod
    def events(items, times_ms):
        """kernels::Event [n]: an item in 8 bytes, a time."""
        return torch.stack([items.to(torch.int64), times_ms], 1).contiguous()


def check(what, ours, theirs, bound):
    error = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-6)).max().item()
    if not error <= bound:
        sys.exit(f"bench: {what} differs from PyTorch's by {error:.2e}, allowed {bound:.0e}")
    return f"outputs within {error:.0e}"


def copy_gb_per_s(figures):
    a, b = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    times = [us_of(lambda _: b.copy_(a), 20) for _ in range(ROUNDS)]
    rate = 2 * a.numel() / statistics.median(times) / 1e3
    figures.add("-", "ceiling: copy, read and write", rate, "GB/s")
    return rate


def multiply_add_rate(figures, library):
    blocks, rounds = 8 * torch.cuda.get_device_properties(0).multi_processor_count, 4096
    result = torch.zeros(1, device="cuda")

    def call(_):
        library.bench_multiply_add(blocks, rounds, pointer(result), stream())
    call(0)
    us = statistics.median(us_of(call, 5) for _ in range(ROUNDS))
    rate = 2 * 16 * rounds * blocks * 256 / us / 1e6
    figures.add("-", "ceiling: float32 multiply-add in registers", rate, "TFLOP/s")
    return rate


def step_inputs(model, batch, slots, inputs=8):
    made = []
    for _ in range(inputs):
        users = torch.randperm(slots, device="cuda")[:batch]
        items = torch.randint(1, model.sizes["items"], (batch,), device="cuda")
        made.append((users, items))
    return made


def flop_per_event(s):
    return sum(2 * x for x in (s["d"] * (2 * s["e"] + 2 * s["n"] + s["h"]), s["e"] * s["d"], 2 * s["d"] * s["f"],
                               3 * s["e"] * s["n"], s["k"] * (s["e"] + 2 * s["n"]))) * s["layers"]


def bench_step(figures, model, copy_rate, flop_rate, out_of_time):
    s = model.sizes
    slots = SLAB_BYTES // s["record_bytes"]
    slab = torch.zeros(slots, model.record_floats, device="cuda")
    # Everybody has a first event, an hour before the next ones.
    base_ms = 1_600_000_000_000
    everybody = torch.arange(slots, device="cuda")
    for part in everybody.split(65536):
        ones = torch.ones_like(part)
        items = torch.randint(1, s["items"], part.shape, device="cuda")
        model.fold(model.runs(slab, part, ones), len(part), model.events(items, ones * base_ms), len(part))
    torch.cuda.synchronize()
    gap_ms = torch.tensor(3_600_000, device="cuda")

    for batch in (4096, 1, 32, 256, 1024):
        inputs = step_inputs(model, batch, slots)
        ones = torch.ones(batch, dtype=torch.int64, device="cuda")
        runs = [model.runs(slab, users, ones) for users, _ in inputs]
        events = [model.events(items, ones * (base_ms + 3_600_000)) for _, items in inputs]

        def ours(i):
            model.fold(runs[i], batch, events[i], batch)

        # From the same states, to the same outputs and states.
        users, items = inputs[0]
        before = slab[users].clone()
        expected = model.torch.step(slab, users, items, gap_ms.expand(batch))
        expected_states = slab[users][:, 4:].clone()
        slab[users] = before
        ours(0)
        torch.cuda.synchronize()
        at = s["output"] + 4
        what = f"step D={s['d']} B={batch}"
        note = check(what, slab[users][:, at:at + s["d"]], expected, 1e-4)
        check(f"the states of {what}", slab[users][:, 4:], expected_states, 1e-4)

        own = graphed(ours, len(inputs))
        calls, names = [lambda i: own[i].replay()], []

        def add_peer(name, step):
            try:
                graphs = graphed(lambda i: step(slab, inputs[i][0], inputs[i][1], gap_ms.expand(batch)), len(inputs))
            except Exception as error:  # a peer that fails here is no reason to measure nothing
                figures.add("G2", f"{what}: {name}", "not measured", "", str(error).splitlines()[0][:80])
                return
            calls.append(lambda i: graphs[i].replay())
            names.append(name)

        if out_of_time():
            figures.add("G2", f"{what}: peers", "not measured", "", "out of time")
        else:
            add_peer("PyTorch eager in a CUDA graph", model.torch.step)
        if not out_of_time():
            add_peer("torch.compile in a CUDA graph", torch.compile(model.torch.step, dynamic=False))
        times = alternate(calls, len(inputs))
        us = statistics.median(times[0])
        figures.add("G1", what, us, "us", f"{spread(times[0])} {note}")
        if batch == 4096:
            rate = 2 * batch * (s["record_bytes"] - 16) / us / 1e3
            goal = ", goal 80 %" if s["d"] == 64 else ""  # a wide model's step is as much arithmetic as states
            figures.add("G1", "its states, read and written", rate, "GB/s",
                        f"{100 * rate / copy_rate:.0f} % of the copy{goal}")
            rate = batch * flop_per_event(s) / us / 1e6
            figures.add("G1", "its arithmetic", rate, "TFLOP/s", f"{100 * rate / flop_rate:.0f} % of the multiply-add rate")
        for name, peer in zip(names, times[1:]):
            ratio, low_high = ratios(times[0], peer)
            figures.add("G2", f"{what} vs {name}", ratio, "x", low_high)


def bench_encode(figures, model, flop_rate, out_of_time):
    s = model.sizes
    generator = torch.Generator(device="cuda").manual_seed(3)
    length = EVENTS[1]
    counts = torch.randint(EVENTS[0], EVENTS[1] + 1, (USERS,), device="cuda", generator=generator)
    items = torch.randint(1, s["items"], (USERS, length), device="cuda", generator=generator)
    gaps = torch.randint(1000, DAY_MS, (USERS, length), device="cuda", generator=generator)
    gaps[:, 0] = 0
    times_ms = 1_600_000_000_000 + gaps.cumsum(1)
    held = torch.arange(length, device="cuda") < counts[:, None]
    slab = torch.zeros(USERS, model.record_floats, device="cuda")
    runs = model.runs(slab, torch.arange(USERS, device="cuda"), counts)
    events = model.events(items[held], times_ms[held])
    total = int(counts.sum())

    def ours(_):
        slab.zero_()
        model.fold(runs, USERS, events, total)

    first = torch.cat([torch.zeros_like(counts[:1]), counts.cumsum(0)]).to(torch.int32)
    workspace = torch.empty(model.library.bench_bulk_workspace(model.handle, USERS, total), dtype=torch.uint8, device="cuda")
    outputs = torch.empty(USERS, s["d"], device="cuda")

    def bulk(_):
        model.library.bench_bulk(model.handle, pointer(events), pointer(first), USERS, total, pointer(outputs),
                                 pointer(workspace), stream())

    def peer_with(encode):
        def call(_):
            outputs = []
            for part in torch.arange(USERS, device="cuda").split(512):
                outputs.append(encode(items[part], gaps[part], counts[part] - 1))
            return torch.cat(outputs)
        return call

    ours(0)
    expected = peer_with(model.torch.encode)(0)
    at = s["output"] + 4
    note = check("re-encoding", slab[:, at:at + s["d"]], expected, 1e-3)
    bulk(0)
    bulk_note = check("bulk re-encoding", outputs, expected, 2e-2)
    calls, names = [ours, bulk, peer_with(model.torch.encode)], ["chunked SSD in PyTorch"]
    if not out_of_time():
        calls.append(peer_with(torch.compile(model.torch.encode, dynamic=False)))
        names.append("chunked SSD with torch.compile")
    times = alternate(calls, 1)
    us = statistics.median(times[0])
    rate = total * flop_per_event(s) / us / 1e6
    figures.add("G3", f"exact re-encoding, {USERS} users x {EVENTS[0]}…{EVENTS[1]} events", total / us, "M event/s", note)
    figures.add("G3", "its arithmetic", rate, "TFLOP/s", f"{100 * rate / flop_rate:.0f} % of the multiply-add rate, goal 40 %")
    figures.add("G3", "the same in the bulk mode", total / statistics.median(times[1]), "M event/s", bulk_note)
    for mode, own in (("exact", times[0]), ("bulk", times[1])):
        for name, peer in zip(names, times[2:]):
            ratio, low_high = ratios(own, peer)
            figures.add("G3", f"{mode} mode vs {name}", ratio, "x", low_high)


def bench_rank(figures, model, copy_rate, out_of_time):
    library, d = model.library, model.sizes["d"]
    for batch, items in ((1, 10_000_000), (4096, 1_000_000)):
        if torch.cuda.mem_get_info()[0] < items * d * 10 + batch * items // 4 + (2 << 30):
            figures.add("G4", f"top-{K} B={batch} N={items:,}", "not measured", "", "not enough device memory")
            continue
        generator = torch.Generator(device="cuda").manual_seed(5)
        embedding = torch.randn(items, d, device="cuda", generator=generator)
        memory = torch.empty(library.bench_table_bytes(items, d), dtype=torch.uint8, device="cuda")
        library.bench_table(model.handle, pointer(embedding), items, d, pointer(memory))
        host_bytes, device_bytes = ctypes.c_int64(), ctypes.c_int64()
        library.bench_rank_memory(model.handle, batch, K, ctypes.byref(host_bytes), ctypes.byref(device_bytes))
        host = torch.empty(max(1, host_bytes.value), dtype=torch.uint8).pin_memory()
        scratch = torch.empty(device_bytes.value, dtype=torch.uint8, device="cuda")
        best = torch.empty(batch, K, 2, dtype=torch.int32, device="cuda")
        found = torch.empty(batch, dtype=torch.int32, device="cuda")
        queries = [torch.randn(batch, d, device="cuda", generator=generator) for _ in range(4)]
        half = embedding.to(torch.bfloat16)
        half_queries = [q.to(torch.bfloat16) for q in queries]

        def ours(i):
            # The next call would write the pinned memory that this one still reads.
            library.bench_rank(model.handle, pointer(queries[i]), batch, K, pointer(host), pointer(scratch), stream(),
                               pointer(best), pointer(found))
            torch.cuda.current_stream().synchronize()

        def peer(i):
            for part in half_queries[i].split(256):
                torch.topk(part @ half.t(), K, dim=1)
            torch.cuda.current_stream().synchronize()

        ours(0)
        rows = min(batch, 16)
        exact = (queries[0][:rows] @ embedding.t())
        exact[:, 0] = -torch.inf  # item 0 is padding
        expected = torch.topk(exact, K, dim=1).values
        scores = best[:rows, :, 0].contiguous().view(torch.float32)
        note = check(f"top-{K} of {items:,}", scores, expected, 1e-5)
        if out_of_time():
            times = alternate([ours], len(queries))
        else:
            times = alternate([ours, peer], len(queries))
        us = statistics.median(times[0])
        figures.add("G4", f"exact top-{K} B={batch} N={items:,}", us, "us", f"{spread(times[0])} {note}")
        table = items * (-(-d // 32) * 32 + 4)
        figures.add("G4", "its table read once", table / us / 1e3, "GB/s", f"the copy's {copy_rate:,.0f} count both ways")
        for times_of_peer in times[1:]:
            ratio, low_high = ratios(times[0], times_of_peer)
            figures.add("G4", f"B={batch} N={items:,} vs bf16 matmul and topk in PyTorch", ratio, "x", low_high)
        del embedding, half, memory, scratch


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--json")
    parser.add_argument("--minutes", type=float, default=4)
    arguments = parser.parse_args()
    begun = time.monotonic()

    def out_of_time():
        return time.monotonic() - begun > 60 * arguments.minutes

    torch.manual_seed(7)
    figures = Figures(arguments.json)
    print(f"{torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}, seed 7\n")
    library = Library(arguments.library)
    with torch.no_grad():
        copy_rate = copy_gb_per_s(figures)
        flop_rate = multiply_add_rate(figures, library)
        model = Model(library, 64, 10_000)
        bench_step(figures, model, copy_rate, flop_rate, out_of_time)
        bench_encode(figures, model, flop_rate, out_of_time)
        torch.cuda.empty_cache()
        bench_rank(figures, model, copy_rate, out_of_time)
        library.bench_close(model.handle)
        torch.cuda.empty_cache()
        wide = Model(library, 256, 10_000)
        bench_step(figures, wide, copy_rate, flop_rate, out_of_time)
        library.bench_close(wide.handle)


if __name__ == "__main__":
    try:
        import torch
    except ImportError:
        sys.exit("bench: PyTorch is what ours is compared with, and is not here")
    import torch_model
    main()
