#!/usr/bin/env python3
"""Writes the files that the tests of `tim4rec import` read, as a RecBole training run would.

Usage: make_checkpoint.py DIR      needs torch and numpy; the files are committed, so tests do not

checkpoint.pth   torch.save of RecBole's dict: a foreign Config, the state dict of a tiny published
                 TiM4Rec with random weights, an optimizer's state
config.yaml      its hyper-parameters
dataset.pth      a pickled RecBole dataset with the item tokens as a numpy array
tensors.json     name to shape, first value, last value and sum, to compare with
"""
import collections
import json
import pathlib
import pickle
import sys
import types

import numpy
import torch

D, E, N, H, K, L, F, V, LAYERS = 8, 8, 2, 2, 3, 5, 32, 12, 2
CONFIG = f"""\
# hyper-parameters under their public names; RecBole's own keys stand beside them
hidden_size: {D}
num_layers: {LAYERS}
d_state: {N}
d_conv: {K}
expand: {E // D}
head_dim: {E // H}
is_ffn: True
is_time: True
p2p_residual: False
norm_eps: 1e-5
MAX_ITEM_LIST_LENGTH: {L}
dropout_prob: 0.2
time_drop_out: 0.2
chunk_size: 32
train_batch_size: 2048
metrics: ['Hit', 'NDCG']
load_col:
  inter: [user_id, item_id, timestamp]
"""


def foreign(module, name, bases=(), **members):
    """A class in a module that is not installed here."""
    for n in range(1, module.count(".") + 2):
        path = ".".join(module.split(".")[:n])
        sys.modules.setdefault(path, types.ModuleType(path))
    cls = type(name, bases, {**members, "__module__": module})
    setattr(sys.modules[module], name, cls)
    return cls


def shapes():
    yield "item_embedding.weight", (V, D)
    for kind in ("weight", "bias"):
        yield f"in_layer_norm.{kind}", (D,)
        yield f"layer_norm_time.{kind}", (L,)
    for i in range(LAYERS):
        p = f"ssd_layers.{i}"
        yield from ((f"{p}.ssd.{n}", (H,)) for n in ("dt_bias", "A_log", "D"))
        linear = {"ssd.in_proj": (2 * E + 2 * N + H, D), "ssd.out_proj": (D, E), "ffn.fc1": (F, D), "ffn.fc2": (D, F),
                  "ssd.mlp4time_scale.1": (L, L), "ssd.mlp4time_scale.3": (L, L), "ssd.time_gate_residual.1": (1, L),
                  "ssd.conv1d": (E + 2 * N, 1, K), "ssd.conv1d4time_1": (H, 1, K), "ssd.conv1d4time_2": (H, 1, K)}
        for name, shape in linear.items():
            yield f"{p}.{name}.weight", shape
            yield f"{p}.{name}.bias", shape[:1]
        yield f"{p}.ssd.norm.weight", (E,)
        for name, size in {"layer_norm": D, "ffn.layer_norm": D, "ssd.time_layer_norm": L}.items():
            yield f"{p}.{name}.weight", (size,)
            yield f"{p}.{name}.bias", (size,)


def main():
    out = pathlib.Path(sys.argv[1])
    torch.manual_seed(20)
    state = collections.OrderedDict()
    for name, shape in shapes():
        state[name] = torch.randn(shape) * 0.5 + (1.0 if name.endswith("norm.weight") else 0.0)
    # Not every tensor of a checkpoint lies contiguously in its storage.
    state["ssd_layers.0.ffn.fc2.weight"] = state["ssd_layers.0.ffn.fc2.weight"].t().contiguous().t()
    state["ssd_layers.1.ssd.D"] = torch.randn(2 * H)[1:1 + H]
    state["ssd_layers.1.ssd.dt_bias"] = torch.nn.Parameter(state["ssd_layers.1.ssd.dt_bias"])

    config_class = foreign("recbole.config.configurator", "Config")
    config = config_class()
    config.final_config_dict = {"model": "TiM4Rec", "device": torch.device("cpu"), "seed": 2024, "big": 1 << 80,
                                "topk": [10, 20], "ratio": 0.5, "none": None, "set": {1, 2}}
    config.model_class = foreign("model.TiM4Rec", "TiM4Rec")
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1]}]}
    torch.save({"config": config, "epoch": 7, "best_valid_score": numpy.float64(0.25), "state_dict": state,
                "other_parameter": None, "optimizer": optimizer}, out / "checkpoint.pth", pickle_protocol=4)
    (out / "config.yaml").write_text(CONFIG)
    summary = {name: {"shape": list(t.shape), "first": t.flatten()[0].item(), "last": t.flatten()[-1].item(),
                      "sum": t.double().sum().item()} for name, t in state.items()}
    (out / "tensors.json").write_text(json.dumps(summary, indent=0, sort_keys=True) + "\n")

    dataset = foreign("recbole.data.dataset.sequential_dataset", "SequentialDataset")()
    tokens = ["[PAD]"] + [f"B00{i}" for i in range(1, V - 2)] + ["größe 7", "物品"]
    dataset.config, dataset.iid_field, dataset.uid_field = config, "item_id", "user_id"
    dataset.field2id_token = {"user_id": numpy.array(["[PAD]", "u1"], dtype=object), "item_id": numpy.array(tokens)}
    dataset.inter_feat = {"item_id": torch.arange(4), "timestamp": torch.arange(4.0)}
    with open(out / "dataset.pth", "wb") as file:
        pickle.dump(dataset, file)


if __name__ == "__main__":
    main()
