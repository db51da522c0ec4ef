"""The networks written once more, plainly, as functions of published tensor names.

Nothing of the package is used: resampling stuffs zeros, attention forms its matrix, the module
list is counted again. ``config`` holds the published options.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F

DEFAULTS = {
    "image_size": 8,
    "num_channels": 3,
    "num_channels_dae": 16,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (4,),
    "nz": 6,
    "z_emb_dim": 10,
    "n_mlp": 1,
    "num_timesteps": 4,
    "conditional": True,
    "fir": True,
    "fir_kernel": (1, 3, 3, 1),
    "skip_rescale": True,
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "residual",
    "progressive_combine": "sum",
    "embedding_type": "positional",
    "centered": True,
    "tanh": True,
    "resamp_with_conv": True,
}


def options(**changes):
    return SimpleNamespace(**(DEFAULTS | changes))


def silu(x):
    return x * torch.sigmoid(x)


def sinusoids(t, dim):
    half = dim // 2
    w = torch.tensor([math.exp(-j * math.log(10000) / (half - 1)) for j in range(half)])
    phase = t[:, None].float() * w[None].float()
    out = torch.cat([phase.sin(), phase.cos()], 1)
    return torch.cat([out, torch.zeros(len(t), 1)], 1) if dim % 2 else out


def fir(x, taps, up, down, pad, gain=1.0):
    f = torch.tensor(taps, dtype=x.dtype)
    kernel = torch.outer(f, f)
    kernel = gain * kernel / kernel.sum()
    n, c, h, w = x.shape
    z = torch.zeros(n, c, h, up, w, up, dtype=x.dtype)
    z[:, :, :, 0, :, 0] = x
    z = z.reshape(n, c, h * up, w * up)
    z = F.pad(z, (pad[0], pad[1], pad[0], pad[1])).reshape(n * c, 1, -1, w * up + sum(pad))
    y = F.conv2d(z, kernel.flip(0, 1)[None, None])
    return y.reshape(n, c, *y.shape[2:])[:, :, ::down, ::down]


def group_norm(x, c, eps=1e-6):
    n, groups = x.shape[0], min(c // 4, 32)
    v = x.reshape(n, groups, -1)
    v = (v - v.mean(2, keepdim=True)) / torch.sqrt(v.var(2, correction=0, keepdim=True) + eps)
    return v.reshape(x.shape)


class SpecGenerator:
    """G(x, t, z) from a state dict under published names."""

    def __init__(self, config, state):
        self.c, self.s = config, state

    def p(self, i, name):
        return self.s[f"all_modules.{i}.{name}"]

    def up(self, x):
        if not self.c.fir:
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        p = len(self.c.fir_kernel) - 2
        return fir(x, self.c.fir_kernel, 2, 1, ((p + 1) // 2 + 1, p // 2), 4.0)

    def down(self, x):
        if not self.c.fir:
            n, c, h, w = x.shape
            return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
        p = len(self.c.fir_kernel) - 2
        return fir(x, self.c.fir_kernel, 1, 2, ((p + 1) // 2, p // 2))

    def conv(self, i, name, x, **kwargs):
        return F.conv2d(x, self.p(i, f"{name}weight"), self.p(i, f"{name}bias"), **kwargs)

    def ada(self, i, name, x, zemb):
        style = F.linear(zemb, self.p(i, f"{name}.style.weight"), self.p(i, f"{name}.style.bias"))
        c = x.shape[1]
        return style[:, :c, None, None] * group_norm(x, c) + style[:, c:, None, None]

    def affine(self, i, name, x):
        weight, bias = self.p(i, f"{name}weight"), self.p(i, f"{name}bias")
        return weight[:, None, None] * group_norm(x, x.shape[1]) + bias[:, None, None]

    def nin(self, i, name, x):
        y = torch.einsum("bihw,io->bohw", x, self.p(i, f"{name}.W"))
        return y + self.p(i, f"{name}.b")[:, None, None]

    def add(self, x, h):
        return (x + h) / math.sqrt(2) if self.c.skip_rescale else x + h

    def block(self, i, x, temb, zemb, resample=None):
        c = self.c
        h = silu(self.ada(i, "GroupNorm_0", x, zemb))
        if resample:
            h, x = getattr(self, resample)(h), getattr(self, resample)(x)
        h = self.conv(i, "Conv_0.", h, padding=1)
        if temb is not None:
            h = (
                h
                + F.linear(silu(temb), self.p(i, "Dense_0.weight"), self.p(i, "Dense_0.bias"))[
                    :, :, None, None
                ]
            )
        if c.resblock_type == "biggan_oneadagn":
            h = silu(self.affine(i, "GroupNorm_1.", h))
        else:
            h = silu(self.ada(i, "GroupNorm_1", h, zemb))
        h = self.conv(i, "Conv_1.", h, padding=1)
        if c.resblock_type == "ddpm":
            if x.shape[1] != h.shape[1]:
                x = self.nin(i, "NIN_0", x)
        elif resample or x.shape[1] != h.shape[1]:
            x = self.conv(i, "Conv_2.", x)
        return self.add(x, h)

    def attention(self, i, x):
        n, c, height, width = x.shape
        h = self.affine(i, "GroupNorm_0.", x)
        q, k, v = (self.nin(i, f"NIN_{j}", h).reshape(n, c, -1) for j in range(3))
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(c), 2)
        h = torch.einsum("bqk,bck->bcq", weights, v).reshape(n, c, height, width)
        return self.add(x, self.nin(i, "NIN_3", h))

    def pyramid_down(self, i, x):
        """The residual pyramid's Downsample with a convolution."""
        if self.c.fir:
            p = len(self.c.fir_kernel) - 2 + 2
            x = fir(x, self.c.fir_kernel, 1, 1, ((p + 1) // 2, p // 2))
            return self.conv(i, "Conv2d_0.", x, stride=2)
        return self.conv(i, "Conv_0.", F.pad(x, (0, 1, 0, 1)), stride=2)

    def mapping(self, z):
        h = z / torch.sqrt((z * z).mean(1, keepdim=True) + 1e-8)
        for j in range(self.c.n_mlp + 1):
            name = f"z_transform.{2 * j + 1}"
            h = silu(F.linear(h, self.s[f"{name}.weight"], self.s[f"{name}.bias"]))
        return h

    def __call__(self, x, t, z):
        c, i = self.c, 0
        zemb, temb = self.mapping(z), None
        if c.embedding_type == "fourier":
            phase = torch.log(t.to(x.dtype))[:, None] * self.p(0, "W")[None] * 2 * math.pi
            emb, i = torch.cat([phase.sin(), phase.cos()], 1), 1
        else:
            emb = sinusoids(t, c.num_channels_dae).to(x.dtype)
        if c.conditional:
            temb = F.linear(emb, self.p(i, "weight"), self.p(i, "bias"))
            temb = F.linear(silu(temb), self.p(i + 1, "weight"), self.p(i + 1, "bias"))
            i += 2
        if not c.centered:
            x = 2 * x - 1
        pyramid, hs = x, [self.conv(i, "", x, padding=1)]
        i += 1
        levels = len(c.ch_mult)
        for level in range(levels):
            for _ in range(c.num_res_blocks):
                h = self.block(i, hs[-1], temb, zemb)
                i += 1
                if h.shape[3] in c.attn_resolutions:
                    h = self.attention(i, h)
                    i += 1
                hs.append(h)
            if level == levels - 1:
                continue
            if c.resblock_type == "ddpm":
                h = self.down(hs[-1])
            else:
                h = self.block(i, hs[-1], temb, zemb, "down")
            i += 1
            if c.progressive_input == "residual":
                h = pyramid = self.add(self.pyramid_down(i, pyramid), h)
                i += 1
            elif c.progressive_input == "input_skip":
                pyramid = self.down(pyramid)
                skip = self.conv(i, "Conv_0.", pyramid)
                i += 1
                h = torch.cat([skip, h], 1) if c.progressive_combine == "cat" else skip + h
            hs.append(h)
        h = self.block(i, hs[-1], temb, zemb)
        h = self.attention(i + 1, h)
        h = self.block(i + 2, h, temb, zemb)
        i += 3
        out = None
        for level in reversed(range(levels)):
            for _ in range(c.num_res_blocks + 1):
                h = self.block(i, torch.cat([h, hs.pop()], 1), temb, zemb)
                i += 1
            if h.shape[3] in c.attn_resolutions:
                h = self.attention(i, h)
                i += 1
            if c.progressive == "output_skip":
                image = self.conv(i + 1, "", silu(self.affine(i, "", h)), padding=1)
                out = image if out is None else self.up(out) + image
                i += 2
            if level > 0:
                h = self.up(h) if c.resblock_type == "ddpm" else self.block(i, h, temb, zemb, "up")
                i += 1
        assert not hs
        if out is None:
            out = self.conv(i + 1, "", silu(self.affine(i, "", h)), padding=1)
        return torch.tanh(out) if c.tanh else out


def lrelu(x):
    return torch.where(x > 0, x, 0.2 * x)


def stddev_channel(h):
    """The published grouping, one set and one sample at a time; batches of 1 to 4 or 4 m."""
    n = h.shape[0]
    g = min(n, 4)
    values = torch.zeros(n, dtype=h.dtype)
    for m in range(n // g):
        members = [h[m + j * (n // g)] for j in range(g)]
        mean = sum(members) / g
        variance = sum((v - mean) ** 2 for v in members) / g
        values[m :: n // g] = torch.sqrt(variance + 1e-8).mean()
    return values[:, None, None, None].expand(n, 1, *h.shape[2:])


def spec_discriminator(state, downs, x_t, t, x_next):
    """D(x_t, t, x_next) from a state dict under published names."""

    def p(name):
        return state[name]

    def linear(name, x):
        return F.linear(x, p(f"{name}.weight"), p(f"{name}.bias"))

    def conv(name, x):
        return F.conv2d(x, p(f"{name}.weight"), p(f"{name}.bias"), padding=1)

    def down(x):
        return fir(x, (1, 3, 3, 1), 1, 2, (1, 1))

    width = p("t_embed.main.0.weight").shape[1]
    temb = linear("t_embed.main.0", sinusoids(t, width).to(x_t.dtype))
    temb = lrelu(linear("t_embed.main.2", lrelu(temb)))
    x = torch.cat([x_t, x_next], 1)
    x = F.conv2d(x, p("start_conv.weight"), p("start_conv.bias"))
    for i, halve in enumerate(downs, 1):
        out = conv(f"conv{i}.conv1.0", lrelu(x))
        out = lrelu(out + linear(f"conv{i}.dense_t1", temb)[:, :, None, None])
        if halve:
            out, x = down(out), down(x)
        out = conv(f"conv{i}.conv2.0", out)
        x = (out + F.conv2d(x, p(f"conv{i}.skip.0.weight"))) / math.sqrt(2)
    x = torch.cat([x, stddev_channel(x)], 1)
    return linear("end_linear", lrelu(conv("final_conv", x)).sum((2, 3)))
