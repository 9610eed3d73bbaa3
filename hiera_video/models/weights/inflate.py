"""Image weights for a video model: kernels and positions get an axis in time.

Every rule is chosen so that a still clip, all frames alike, gives the features that the image gave.
"""

from __future__ import annotations

import re

import torch

from hiera_video.models.weights.fit import Fit
from hiera_video.models.weights.key_names import AUTOENCODER

PATCH_KERNEL = "patch_embed.proj.weight"
POOL_KERNEL = re.compile(r"\.attn\.pool_[qkv]\.weight$")


def inflate(fit: Fit, *, allowed: bool) -> None:
    """Turn the tensors of an image model into those of a video model, where the two meet.

    Raises WeightsError where that is not `allowed`, or where a video model's weights are for an
    image model.
    """
    kernel, wanted = fit.tensors.get(PATCH_KERNEL), fit.model_state.get(PATCH_KERNEL)
    if kernel is None or wanted is None or kernel.dim() == wanted.dim():
        return
    if kernel.dim() == 5:
        raise fit.error("it is a video model's and the model is an image model")
    if (kernel.dim(), wanted.dim()) != (4, 5):
        return  # reported by the comparison of shapes
    if not allowed:
        raise fit.error("it is an image model's and the model is a video model (inflate=False)")
    frames = wanted.shape[2]
    fit.tensors[PATCH_KERNEL] = (kernel / frames).unsqueeze(2).repeat(1, 1, frames, 1, 1)
    done = [f"patch kernel repeated over {frames} frames and divided by {frames}"]
    done += _leave_out_decoder(fit)
    done += _inflate_positions(fit)
    done += _inflate_pooling(fit)
    done += _start_time_and_class_token(fit)
    fit.notes.append("image weights inflated for video: " + "; ".join(done))


def _leave_out_decoder(fit: Fit) -> list[str]:
    """Leave out an image autoencoder's decoder.

    The rows of decoder_pred are (channel, row, column) for images but (row, column, channel) for
    video: of equal shape, so they would load and predict nonsense.
    """
    if not fit.kind == fit.checkpoint.kind == AUTOENCODER:
        return []
    fit.leave_out_all(fit.names.decoder)
    fit.keep_initial_all(fit.names.decoder)
    return [f"{fit.names.decoder_words} keep their initial values"]


def _inflate_positions(fit: Fit) -> list[str]:
    """Positions in space stay; those in time start at zero."""
    space = fit.tensors.get("pos_embed")
    if space is None:
        return []
    if "pos_embed_spatial" in fit.model_state:
        fit.tensors["pos_embed_spatial"] = fit.tensors.pop("pos_embed")
        fit.tensors["pos_embed_temporal"] = torch.zeros_like(
            fit.model_state["pos_embed_temporal"], device="cpu"
        )
        return ["pos_embed becomes pos_embed_spatial, pos_embed_temporal starts at zero"]
    if space.dim() == 3 and fit.grid is not None:
        fit.tensors["pos_embed"] = space.repeat(1, fit.grid.layout.grid[0], 1)
        return ["pos_embed repeated for every time step"]
    return []


def _inflate_pooling(fit: Fit) -> list[str]:
    """Put the 2-D pooling kernels of MViTv2 in the middle of 3-D ones that are zero elsewhere.

    So a still clip is pooled as the image was at its first and last frame, too.
    """
    done = []
    for key, wanted in fit.model_state.items():
        kernel = fit.tensors.get(key)
        if kernel is None or not POOL_KERNEL.search(key):
            continue
        if (kernel.dim(), wanted.dim()) == (4, 5):
            inflated = torch.zeros(*kernel.shape[:2], *wanted.shape[2:3], *kernel.shape[2:])
            inflated[:, :, wanted.shape[2] // 2] = kernel
            fit.tensors[key] = inflated
            done = ["pooling kernels put in the middle of kernels in time"]
    return done


def _start_time_and_class_token(fit: Fit) -> list[str]:
    """What MViTv2 for video has and MViTv2 for images has not."""
    done = []
    missing = [key for key in fit.model_state if key not in fit.tensors]
    in_time = [key for key in missing if key.endswith(".rel_pos_t")]
    for key in in_time:
        fit.tensors[key] = torch.zeros_like(fit.model_state[key], device="cpu")
    if in_time:
        done.append("relative positions in time start at zero")
    if "cls_token" in missing:
        fit.keep_initial(["cls_token"])
        done.append("cls_token keeps its initial value")
    return done
