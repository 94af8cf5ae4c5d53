"""The streaming model in PyTorch, as one would write it: the peer of the kernels (model/kernels/kernels.h, rules 5 to 13).

States lie in a slab [slots, record] of float32 in the record's own layout, behind a header of 4 floats.
"""
import torch
import torch.nn.functional as F

HEADER = 4  # floats


class TorchModel:
    """`sizes`: the names of SIZES to integers; `constants`: norm_eps, inv_tau0, gap_mean, inv_gap_stddev; `layers`: a dict
    of tensors each, as kernels::LayerWeights holds them; `model`: embedding, in_norm, in_norm_bias."""

    SIZES = ("d e h p n k m f layers items ssm conv time_conv1 time_conv2 layer_floats output record_bytes").split()

    def __init__(self, sizes, constants, layers, model):
        self.s, self.c, self.layers, self.w = sizes, constants, layers, model

    def gap(self, gap_ms):
        gap = gap_ms.float()
        return gap, (torch.log1p(gap * self.c["inv_tau0"]) - self.c["gap_mean"]) * self.c["inv_gap_stddev"]

    def first(self, item):
        return F.layer_norm(self.w["embedding"][item], (self.s["d"],), self.w["in_norm"], self.w["in_norm_bias"],
                            self.c["norm_eps"])

    def out(self, y, x, z, w):
        """Rules 11 and 12, of [..., E] and [..., D]."""
        y = y * F.silu(z)
        y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + self.c["norm_eps"]) * w["norm"]
        u = y @ w["out_proj"] + w["out_proj_bias"]
        if self.s["layers"] > 1:
            u = u + x
        u = F.layer_norm(u, (self.s["d"],), w["layer_norm"], w["layer_norm_bias"], self.c["norm_eps"])
        f = F.hardswish(u @ w["fc1"] + w["fc1_bias"]) @ w["fc2"] + w["fc2_bias"]
        return F.layer_norm(f + u, (self.s["d"],), w["ffn_norm"], w["ffn_norm_bias"], 1e-12)

    def step(self, slab, slots, item, gap_ms):
        """One event of each slot [B] into the slab; returns the outputs [B, D]."""
        s, rec = self.s, slab[slots]
        gap, u = self.gap(gap_ms)
        x, parts = self.first(item), [rec[:, :HEADER]]
        b, tail, channels = item.shape[0], s["k"] - 1, s["e"] + 2 * s["n"]
        at = HEADER

        def take(offset, *shape):
            begin = at + offset
            count = 1
            for extent in shape:
                count *= extent
            return rec[:, begin:begin + count].view(b, *shape)

        def convolve(old, new, weight, bias):
            window = torch.cat([old, new[:, None]], 1)
            return (window * weight).sum(1) + bias, window[:, 1:]

        for w in self.layers:
            z, xbc, dt = (x @ w["in_proj"] + w["in_proj_bias"]).split([s["e"], channels, s["h"]], -1)
            new = {}
            xbc, new["conv"] = convolve(take(s["conv"], tail, channels), xbc, w["conv"], w["conv_bias"])
            xs, bm, cm = F.silu(xbc).split([s["e"], s["n"], s["n"]], -1)
            hidden = F.silu(u[:, None] * w["time_hidden"] + w["time_hidden_bias"])
            q = u[:, None] * (hidden @ w["time_scale"] + w["time_scale_bias"])
            r, new["time_conv1"] = convolve(take(s["time_conv1"], tail, s["h"]), q, w["time_conv1"], w["time_conv1_bias"])
            r1 = F.silu(r)
            r, new["time_conv2"] = convolve(take(s["time_conv2"], tail, s["h"]), r1, w["time_conv2"], w["time_conv2_bias"])
            dt = dt + dt * F.silu(r)
            delta = F.softplus(dt + w["dt_bias"])
            decay = torch.exp(w["a"] * delta - gap[:, None] * w["rate"])
            xs = xs.view(b, s["h"], s["p"])
            state = take(s["ssm"], s["h"], s["n"], s["p"])
            state = decay[:, :, None, None] * state + (delta[:, :, None] * xs)[:, :, None] * bm[:, None, :, None]
            new["ssm"] = state
            y = (state * cm[:, None, :, None]).sum(2) + w["skip"][:, None] * xs
            x = self.out(y.reshape(b, s["e"]), x, z, w)
            layer = torch.zeros_like(rec[:, :s["layer_floats"]])
            for name in ("ssm", "conv", "time_conv1", "time_conv2"):
                flat = new[name].reshape(b, -1)
                layer[:, s[name]:s[name] + flat.shape[1]] = flat
            parts.append(layer)
            at += s["layer_floats"]
        rest = torch.zeros_like(rec[:, at:])
        rest[:, s["output"] + HEADER - at:s["output"] + HEADER - at + s["d"]] = x
        parts.append(rest)
        slab[slots] = torch.cat(parts, 1)
        return x

    def encode(self, item, gap_ms, last, chunk=50):
        """Histories [B, L] from the empty state, L a multiple of `chunk`; the outputs [B, D] at the positions `last` [B]."""
        s = self.s
        gap, u = self.gap(gap_ms)
        x = self.first(item)
        b, length = item.shape

        def convolve(v, weight, bias):
            v = F.pad(v.transpose(1, 2), (s["k"] - 1, 0))
            return F.conv1d(v, weight.t()[:, None], bias, groups=v.shape[1]).transpose(1, 2)

        for w in self.layers:
            z, xbc, dt = (x @ w["in_proj"] + w["in_proj_bias"]).split([s["e"], s["e"] + 2 * s["n"], s["h"]], -1)
            xs, bm, cm = F.silu(convolve(xbc, w["conv"], w["conv_bias"])).split([s["e"], s["n"], s["n"]], -1)
            hidden = F.silu(u[..., None] * w["time_hidden"] + w["time_hidden_bias"])
            q = u[..., None] * (hidden @ w["time_scale"] + w["time_scale_bias"])
            r = F.silu(convolve(q, w["time_conv1"], w["time_conv1_bias"]))
            r = F.silu(convolve(r, w["time_conv2"], w["time_conv2_bias"]))
            delta = F.softplus(dt + dt * r + w["dt_bias"])
            log_decay = w["a"] * delta - gap[..., None] * w["rate"]
            xs = xs.reshape(b, length, s["h"], s["p"])
            y = self.chunked(delta[..., None] * xs, log_decay, bm, cm, chunk) + w["skip"][:, None] * xs
            x = self.out(y.reshape(b, length, s["e"]), x, z, w)
        return x[torch.arange(b, device=x.device), last]

    @staticmethod
    def chunked(dx, log_decay, bm, cm, chunk):
        """The SSD in chunks (Mamba-2, listing 1): dx [B,L,H,P], log_decay [B,L,H], bm and cm [B,L,N]."""
        b, length, h, p = dx.shape
        parts = length // chunk
        dx = dx.reshape(b, parts, chunk, h, p)
        bm, cm = (v.reshape(b, parts, chunk, -1) for v in (bm, cm))
        sums = log_decay.reshape(b, parts, chunk, h).cumsum(2).permute(0, 3, 1, 2)  # [B,H,C,Q]
        inside = torch.ones(chunk, chunk, dtype=torch.bool, device=dx.device).tril()
        mask = (sums[..., :, None] - sums[..., None, :]).masked_fill(~inside, -torch.inf).exp()
        y = torch.einsum("bcqn,bckn,bhcqk,bckhp->bcqhp", cm, bm, mask, dx)
        to_end = (sums[..., -1:] - sums).exp()
        states = torch.einsum("bckn,bhck,bckhp->bchpn", bm, to_end, dx)
        state, before = torch.zeros_like(states[:, 0]), []
        for c in range(parts):
            before.append(state)
            state = state * sums[:, :, c, -1].exp()[:, :, None, None] + states[:, c]
        y = y + torch.einsum("bcqn,bchpn,bhcq->bcqhp", cm, torch.stack(before, 1), sums.exp())
        return y.reshape(b, length, h, p)
