"""The peers' side of compare.py: the streaming model as ONNX graphs, from a package's weights.

step(weights, config): one event per user and the state after it. Inputs item [B], gap [B,1] in ms, then per layer
    s{i} [B,H,N,P], conv{i} [B,K-1,C], tail1_{i} and tail2_{i} [B,K-1,H]; outputs out [B,D] and next_ of each state.
encode(weights, config): a whole history at once, in the matrix form of the SSD. Inputs item [L], gap [L,1]; output
    query [1,D], as asked at the last event's time.
score(embedding, k): queries [B,D] to the k best, MatMul and TopK over items 1 to V-1.
"""
import json
import pathlib
import struct

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def read_package(folder):
    """config as a dict, weights by name."""
    folder = pathlib.Path(folder)
    raw = (folder / "weights.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    weights = {}
    for name, entry in json.loads(raw[8:8 + length]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            data = np.frombuffer(raw, np.float32, (end - begin) // 4, 8 + length + begin)
            weights[name] = data.reshape(entry["shape"])
    return json.loads((folder / "config.json").read_text()), weights


class Sizes:
    def __init__(self, config):
        self.d, self.n, self.k, self.p = (config[key] for key in ("hidden_size", "d_state", "d_conv", "head_dim"))
        self.e = config["expand"] * self.d
        self.h = self.e // self.p
        self.c = self.e + 2 * self.n
        self.layers, self.eps, self.time = config["num_layers"], config["norm_eps"], config["time"]


class Graph:
    """Adds nodes by calling their operator: g.Mul("a", "b") returns the output's name."""

    def __init__(self):
        self.nodes, self.constants, self.inputs, self.outputs = [], {}, [], []

    def __getattr__(self, operator):
        def add(*inputs, outputs=1, **attributes):
            names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
            inputs = [self.constant(x) if isinstance(x, np.ndarray) else x for x in inputs]
            self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
            return names[0] if outputs == 1 else names
        return add

    def constant(self, value):
        name = f"c{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def input(self, name, shape, kind=TensorProto.FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value, name, shape, kind=TensorProto.FLOAT):
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def model(self):
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return model.SerializeToString()


def f32(value):
    return np.asarray(value, np.float32)


def i64(*values):
    return np.asarray(values, np.int64)


def linear(g, x, w, name):
    return g.Gemm(x, w[name + ".weight"], w[name + ".bias"], transB=1)


def layer_norm(g, x, w, name, eps):
    return g.LayerNormalization(x, w[name + ".weight"], w[name + ".bias"], epsilon=eps)


def silu(g, x):
    return g.Mul(x, g.Sigmoid(x))


def time_feature(g, gap, time):
    u = g.Log(g.Add(g.Mul(gap, f32(1 / time["tau0_ms"])), f32(1)))
    return g.Mul(g.Sub(u, f32(time["mean"])), f32(1 / time["stddev"]))


def time_function(g, u, w, name):
    return linear(g, silu(g, linear(g, u, w, name + ".1")), w, name + ".3")


def gated_norm(g, y, z, w, name, eps):
    y = g.Mul(y, silu(g, z))
    scale = g.Sqrt(g.Add(g.ReduceMean(g.Mul(y, y), axes=[-1]), f32(eps)))
    return g.Mul(g.Div(y, scale), w[name + ".ssd.norm.weight"])


def tail(g, mixed, x, w, name, size):
    """What follows the mixing: residual, norms and the feed-forward part."""
    out = linear(g, mixed, w, name + ".ssd.out_proj")
    u = layer_norm(g, g.Add(out, x) if size.layers > 1 else out, w, name + ".layer_norm", size.eps)
    if name + ".ffn.fc1.weight" not in w:
        return u
    f = linear(g, g.HardSwish(linear(g, u, w, name + ".ffn.fc1")), w, name + ".ffn.fc2")
    return layer_norm(g, g.Add(f, u), w, name + ".ffn.layer_norm", 1e-12)


def decays(g, dt, r, gap, w, name):
    """Delta and the log of the state's decay, [rows,H]."""
    delta = g.Softplus(g.Add(g.Mul(dt, g.Add(r, f32(1))), w[name + ".ssd.dt_bias"]))
    log_decay = g.Sub(g.Mul(delta, -np.exp(w[name + ".ssd.A_log"])),
                      g.Mul(gap, np.exp(-w[name + ".ssd.log_memory_ms"])[None]))
    return delta, log_decay


def step(w, config):
    s, g = Sizes(config), Graph()
    item, gap = g.input("item", ["B"], TensorProto.INT64), g.input("gap", ["B", 1])

    def conv(x, width, state, weights):
        """The convolution of one event with the tail before it; the tail after it is an output."""
        before = g.input(state, ["B", s.k - 1, width])
        taps = g.Concat(before, g.Unsqueeze(x, i64(1)), axis=1)
        g.output(g.Slice(taps, i64(1), i64(s.k), i64(1)), "next_" + state, ["B", s.k - 1, width])
        products = g.Mul(taps, w[weights + ".weight"][:, 0, :].T[None])
        return silu(g, g.Add(g.ReduceSum(products, i64(1), keepdims=0), w[weights + ".bias"]))

    x = layer_norm(g, g.Gather(w["item_embedding.weight"], item), w, "in_layer_norm", s.eps)
    u = time_feature(g, gap, s.time)
    for i in range(s.layers):
        name = f"ssd_layers.{i}"
        z, xbc, dt = g.Split(linear(g, x, w, name + ".ssd.in_proj"), i64(s.e, s.c, s.h), outputs=3, axis=1)
        xs, b, c = g.Split(conv(xbc, s.c, f"conv{i}", name + ".ssd.conv1d"), i64(s.e, s.n, s.n), outputs=3, axis=1)
        q = g.Mul(u, time_function(g, u, w, name + ".ssd.mlp4time_scale"))
        r = conv(conv(q, s.h, f"tail1_{i}", name + ".ssd.conv1d4time_1"), s.h, f"tail2_{i}",
                 name + ".ssd.conv1d4time_2")
        delta, log_decay = decays(g, dt, r, gap, w, name)
        heads = g.Reshape(xs, i64(0, s.h, s.p))
        written = g.Mul(heads, g.Unsqueeze(delta, i64(2)))
        state = g.Add(g.Mul(g.input(f"s{i}", ["B", s.h, s.n, s.p]), g.Unsqueeze(g.Exp(log_decay), i64(2, 3))),
                      g.Mul(g.Unsqueeze(written, i64(2)), g.Unsqueeze(b, i64(1, 3))))
        g.output(state, f"next_s{i}", ["B", s.h, s.n, s.p])
        read = g.Squeeze(g.MatMul(g.Unsqueeze(c, i64(1, 2)), state), i64(2))
        y = g.Add(read, g.Mul(heads, w[name + ".ssd.D"][None, :, None]))
        x = tail(g, gated_norm(g, g.Reshape(y, i64(0, s.e)), z, w, name, s.eps), x, w, name, s)
    g.output(x, "out", ["B", s.d])
    return g.model()


def encode(w, config, length):
    s, g = Sizes(config), Graph()
    item, gap = g.input("item", [length], TensorProto.INT64), g.input("gap", [length, 1])
    past = f32(np.where(np.tril(np.ones((length, length))), 0, -1e30))

    def conv(x, width, weights):
        rows = g.Unsqueeze(g.Transpose(x, perm=[1, 0]), i64(0))
        rows = g.Conv(rows, w[weights + ".weight"], w[weights + ".bias"], group=width, pads=[s.k - 1, 0])
        return silu(g, g.Transpose(g.Squeeze(rows, i64(0)), perm=[1, 0]))

    x = layer_norm(g, g.Gather(w["item_embedding.weight"], item), w, "in_layer_norm", s.eps)
    u = time_feature(g, gap, s.time)
    for i in range(s.layers):
        name = f"ssd_layers.{i}"
        z, xbc, dt = g.Split(linear(g, x, w, name + ".ssd.in_proj"), i64(s.e, s.c, s.h), outputs=3, axis=1)
        xs, b, c = g.Split(conv(xbc, s.c, name + ".ssd.conv1d"), i64(s.e, s.n, s.n), outputs=3, axis=1)
        q = g.Mul(u, time_function(g, u, w, name + ".ssd.mlp4time_scale"))
        r = conv(conv(q, s.h, name + ".ssd.conv1d4time_1"), s.h, name + ".ssd.conv1d4time_2")
        delta, log_decay = decays(g, dt, r, gap, w, name)
        sums = g.Transpose(g.CumSum(log_decay, np.asarray(0, np.int64)), perm=[1, 0])
        mask = g.Exp(g.Add(g.Sub(g.Unsqueeze(sums, i64(2)), g.Unsqueeze(sums, i64(1))), past[None]))
        heads = g.Reshape(xs, i64(0, s.h, s.p))
        written = g.Transpose(g.Mul(heads, g.Unsqueeze(delta, i64(2))), perm=[1, 0, 2])
        scores = g.MatMul(c, g.Transpose(b, perm=[1, 0]))
        read = g.Transpose(g.MatMul(g.Mul(mask, g.Unsqueeze(scores, i64(0))), written), perm=[1, 0, 2])
        y = g.Add(read, g.Mul(heads, w[name + ".ssd.D"][None, :, None]))
        x = tail(g, gated_norm(g, g.Reshape(y, i64(0, s.e)), z, w, name, s.eps), x, w, name, s)
    last = g.Slice(x, i64(length - 1), i64(length), i64(0))
    now = g.constant(np.zeros((1, 1), np.float32))
    scale, shift = g.Split(time_function(g, time_feature(g, now, s.time), w, "query_gate"), i64(s.d, s.d), outputs=2,
                           axis=1)
    g.output(g.Add(g.Mul(last, g.Add(scale, f32(1))), shift), "query", [1, s.d])
    return g.model()


def score(items, width, k):
    """The table [D,V] is an input, so that the model stays below the limit of its format."""
    g = Graph()
    scores = g.MatMul(g.input("queries", ["B", width]), g.input("table", [width, items]))
    values, indices = g.TopK(scores, i64(k), outputs=2, axis=-1)
    g.output(values, "scores", ["B", k])
    g.output(indices, "items", ["B", k], TensorProto.INT64)
    return g.model()
