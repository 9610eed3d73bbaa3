"""The ladder again, slowly and apart from the package: one clip, units as a list, windows unfolded.

Nothing here is shared with `hiera_video` but the parameters and the config of the model that it is
compared with: no token order, no fused attention, no pooling kernels of PyTorch.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F

from hiera_video.models.ladder.ablation import AblationConfig


def logits(model, clip, keep=None):
    """Logits of one clip [C_in, *size]; `keep` bool [U] in raster order of the units."""
    units = stages(model, clip, keep)[-1]
    tokens = torch.cat([unit.flatten(0, -2) for unit in units])
    if getattr(model, "ablation", AblationConfig()).final == "mean_norm":
        pooled = norm(tokens.mean(0), model.norm)
    else:
        pooled = norm(tokens, model.norm).mean(0)
    return linear(pooled, model.head.projection)


def stages(model, clip, keep=None):
    """For each stage, its tokens as a list of raster units [*unit, C], kept units alone."""
    ablation = getattr(model, "ablation", AblationConfig())  # none: Hiera
    size = model.layout.grid if ablation.tokens == "grid" else model.layout.unit
    if keep is not None:
        clip = clip * keep_pixels(model, keep, clip)
    patches = model.patch_embed
    convolve = {2: F.conv2d, 3: F.conv3d}[len(size)]
    x = convolve(
        clip[None], patches.proj.weight, patches.proj.bias, patches.stride, patches.padding
    )[0].movedim(0, -1)
    if ablation.positions == "absolute":
        x = x + raster_positions(model, x.shape)
    units = cut(x, size)
    if keep is not None:
        units = [unit for unit, kept in zip(units, keep.tolist(), strict=True) if kept]
    outputs, number = [], 0
    for stage, depth in enumerate(model.stages):
        for i in range(depth):
            first = i == 0 and stage > 0
            stride = model.layout.q_stride if first and stage <= model.q_pool else (1,) * len(size)
            local = (
                ablation.unit_attn and (stage - first) < 2
            )  # the paper's (yes, yes, no, no), lagged
            units = block(model.blocks[number], units, ablation, stride, stage, local)
            number += 1
        outputs.append(units)
    return outputs


def block(module, units, ablation, q_stride, stage, local):
    normed = [norm(x, module.norm1) for x in units]
    mixed = attention(module.attn, normed, ablation, q_stride, stage, local)
    if module.proj is not None and ablation.expand == "attn":
        units = [linear(x, module.proj) for x in normed]
    if math.prod(q_stride) > 1:
        kernel = tuple(s + (s > 1) for s in q_stride) if ablation.pool_kernel else q_stride
        units = [maximum(x, kernel, q_stride, ablation) for x in units]
    units = [x + y for x, y in zip(units, mixed, strict=True)]
    result = []
    for x in units:
        normed = norm(x, module.norm2)
        widened = linear(F.gelu(linear(normed, module.mlp.fc1)), module.mlp.fc2)
        if widened.shape != x.shape:
            x = linear(normed, module.proj)
        result.append(x + widened)
    return result


def attention(module, units, ablation, q_stride, stage, local):
    heads = module.heads
    space = [s > 1 for s in ((1, 2, 2) if len(q_stride) == 3 else (2, 2))]
    step = ablation.kv_stride[stage] if ablation.kv_stride else 1
    kv_stride = tuple(step if s else 1 for s in space)
    queries, keys, values = [], [], []
    for x in units:
        qkv = linear(x, module.qkv)
        qkv = qkv.reshape(*x.shape[:-1], 3, heads, -1)
        for i, (name, stride, found) in enumerate(
            (("q", q_stride, queries), ("k", kv_stride, keys), ("v", kv_stride, values))
        ):
            found.append(pooled(module, name, qkv[..., i, :, :], stride, ablation))
    if local:
        mixed = [attend(module, ablation, *one) for one in zip(queries, keys, values, strict=True)]
    else:
        flat = [torch.cat([t.flatten(0, -3) for t in ts]) for ts in (queries, keys, values)]
        if ablation.positions == "relative":
            mixed = [attend(module, ablation, queries[0], keys[0], values[0])]
        else:
            together = attend(module, ablation, *flat)
            counts = [q[..., 0, 0].numel() for q in queries]
            mixed = [
                part.reshape(q.shape)
                for part, q in zip(together.split(counts), queries, strict=True)
            ]
    return [linear(x.flatten(-2), module.proj) for x in mixed]


def attend(module, ablation, q, k, v):
    """[*queries, h, d] and [*keys, h, d] -> [*queries, h, d]."""
    scores = torch.einsum("qhd,khd->hqk", q.flatten(0, -3), k.flatten(0, -3))
    scores = scores / math.sqrt(q.shape[-1])
    if ablation.positions == "relative":
        scores = scores + distances(module, q, k)
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.flatten(0, -3)).reshape(q.shape)
    return mixed + q if ablation.q_residual else mixed


def distances(module, q, k):
    """Every pair of positions by itself, as ladder.md writes it."""
    bias = torch.zeros(q.shape[-2], q[..., 0, 0].numel(), k[..., 0, 0].numel())
    letters = "thw"[-(q.dim() - 2) :]
    at_q = list(itertools.product(*map(range, q.shape[:-2])))
    at_k = list(itertools.product(*map(range, k.shape[:-2])))
    for axis, letter in enumerate(letters):
        table = getattr(module, f"rel_pos_{letter}")
        nq, nk = q.shape[axis], k.shape[axis]
        assert len(table) == 2 * max(nq, nk) - 1
        row = [
            [
                math.trunc(a * max(nk / nq, 1) - b * max(nq / nk, 1) + (nk - 1) * max(nq / nk, 1))
                for b in range(nk)
            ]
            for a in range(nq)
        ]
        rows = torch.tensor([[row[a[axis]][b[axis]] for b in at_k] for a in at_q])
        bias += torch.einsum("qhd,qkd->hqk", q.flatten(0, -3), table[rows])
    return bias


def pooled(module, name, t, stride, ablation):
    """Q, K or V of one unit, [*unit, h, d]."""
    if math.prod(stride) == 1 and not ablation.pool_stride1:
        return t
    if ablation.pool_kernel is None:
        kernel = stride
    else:
        time = (ablation.pool_kernel_t,) if len(stride) == 3 else ()
        kernel = (*time, ablation.pool_kernel, ablation.pool_kernel)
    if ablation.pool_op == "max":
        return maximum(t, kernel, stride, ablation)
    windows = unfolded(t, kernel, stride, fill=0.0)  # [*unit', h, d, *kernel]
    filters = getattr(module, f"pool_{name}").weight[:, 0]
    assert filters.shape[1:] == kernel
    axes = tuple(range(-len(kernel), 0))
    return norm((windows * filters).sum(axes), getattr(module, f"norm_{name}"))


def maximum(t, kernel, stride, ablation):
    zero = ablation.tokens == "units" and ablation.pool_pad == "zero"
    fill = 0.0 if zero or ablation.pool_kernel is None else -math.inf
    return unfolded(t, kernel, stride, fill=fill).amax(tuple(range(-len(kernel), 0)))


def unfolded(t, kernel, stride, *, fill):
    """Windows of a picture [*unit, ...]: [*unit', ..., *kernel]; padded only if they overlap."""
    overlapping = tuple(kernel) != tuple(stride)
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True)):
        pad = k // 2 if overlapping else 0
        border = torch.full_like(t.narrow(axis, 0, 1), fill)
        t = torch.cat([border] * pad + [t] + [border] * pad, dim=axis).unfold(axis, k, s)
    return t


def cut(x, unit):
    """A raster picture [*grid, C] in units of [*unit, C], in raster order."""
    grids = [range(0, side, step) for side, step in zip(x.shape, unit, strict=False)]
    corners = itertools.product(*grids)
    return [x[tuple(slice(c, c + u) for c, u in zip(at, unit, strict=True))] for at in corners]


def keep_pixels(model, keep, clip):
    steps = [u * s for u, s in zip(model.layout.unit, model.patch_embed.stride, strict=True)]
    mask = torch.zeros_like(clip[0])
    for kept, corner in zip(
        keep.tolist(),
        itertools.product(*(range(0, n, s) for n, s in zip(clip.shape[1:], steps, strict=True))),
        strict=True,
    ):
        mask[tuple(slice(c, c + s) for c, s in zip(corner, steps, strict=True))] = kept
    return mask


def raster_positions(model, shape):
    if not model.sep_pos_embed:
        return model.pos_embed.reshape(shape)
    space = model.pos_embed_spatial.reshape(1, *shape[1:])
    return space + model.pos_embed_temporal.reshape(shape[0], 1, 1, shape[-1])


def linear(x, module):
    return x @ module.weight.t() + module.bias


def norm(x, module):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight + (
        module.bias
    )
