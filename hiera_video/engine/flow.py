"""Optical flow of generated clips: the numbers that are predicted of it, and its colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hiera_video.data.synthetic.body_motion.truth import FLOW_CHANNELS, FLOW_SCALE


def scaled_flow(truth: Tensor) -> Tensor:
    """Displacements of the truth of clips [B, K, T', G, G], as they are predicted: float32
    [B, 6, T', G, G], compressed (asinh of 1/64 of the view's side) and in units of their usual
    spread."""
    return truth[:, :FLOW_CHANNELS].asinh() / per_channel(FLOW_SCALE, truth)


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers that broadcast over the channels of [B, K, T', G, G], on the device of `like`.

    Filled in there: a copy from the CPU would wait for the device.
    """
    return torch.cat([like.new_full((1, 1, 1, 1, 1), value) for value in values], dim=1)


def flow_colours(flow: Tensor) -> Tensor:
    """Colour a flow [B, 2, T, H, W]: float RGB [B, 3, T, H, W] in [0, 1], black where it is still.

    Red moves right, and the colours of the rainbow follow clockwise; full strength from 2 on.
    """
    strength = (flow.square().sum(1).sqrt() / 2).clamp(max=1)
    return hues(torch.atan2(flow[:, 1], flow[:, 0]), strength)


def hues(angle: Tensor, strength: Tensor) -> Tensor:
    """Colours of angles [B, T, H, W] in radians: float RGB [B, 3, T, H, W], 0 is red."""
    turns = [angle, angle - 2 * math.pi / 3, angle + 2 * math.pi / 3]
    return torch.stack([(0.5 + 0.5 * turn.cos()) * strength for turn in turns], dim=1)
