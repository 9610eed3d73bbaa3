"""Random light of training clips: exposure, noise, softness and colour, as cameras differ in them.

    light = Photometric(gamma=(0.5, 2.0), gain=(0.3, 1.5), noise=0.05)
    frames = light(frames, generator)  # uint8 [T, 3, H, W], before and after

One draw per clip, the same for all its frames. Every step is rounded to uint8: what is darkened
loses levels and what is brightened clips, as in dark and overexposed videos.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from hiera_video.data.randomness import log_uniform, uniform
from hiera_video.errors import UserError


@dataclass(frozen=True)
class Photometric:
    """Changes the light of a clip; by default of none. Raises UserError for an empty range."""

    gamma: tuple[float, float] = (1.0, 1.0)
    """Least and greatest exponent of pixels in [0, 1], log-uniform; above 1 darkens."""
    gain: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor of pixels, after the exponent, log-uniform."""
    noise: float = 0.0
    """Greatest standard deviation of Gaussian noise, for pixels in [0, 1]; uniform from 0."""
    blur: float = 0.0
    """Probability of a light blur in space."""
    grey: float = 0.0
    """Probability of frames without colour."""

    def __post_init__(self) -> None:
        for name in ("gamma", "gain"):
            least, most = getattr(self, name)
            if not 0 < least <= most:
                raise UserError(f"{name}=({least}, {most}) must be (least, most), both above 0")
        for name in ("noise", "blur", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be between 0 and 1")

    def __call__(self, frames: Tensor, generator: Generator) -> Tensor:
        """Change uint8 [T, 3, H, W]. Where all is off, nothing is drawn from the generator."""
        if self == Photometric():
            return frames
        # All five whatever is on: one that is switched on leaves the draws of the others alone.
        gamma, gain, noise, blur, grey = uniform(generator, 5)
        if grey < self.grey:
            frames = without_colour(frames)
        if blur < self.blur:
            frames = blurred(frames)
        gamma, gain = log_uniform(gamma, *self.gamma), log_uniform(gain, *self.gain)
        if (gamma, gain) != (1, 1):
            frames = exposed(frames, gamma=gamma, gain=gain)
        if self.noise:
            frames = with_noise(frames, noise * self.noise, generator)
        return frames


def exposed(frames: Tensor, *, gamma: float, gain: float) -> Tensor:
    """gain * x ** gamma for pixels x in [0, 1]: uint8 -> uint8 of the same shape."""
    values = np.linspace(0, 1, 256) ** gamma * gain
    table = np.rint(255 * values.clip(0, 1)).astype(np.uint8)
    # mode: numpy checks no index then, and a byte is always one of 256.
    return torch.from_numpy(np.take(table, frames.numpy(), mode="clip"))


def blurred(frames: Tensor) -> Tensor:
    """Weigh each pixel of uint8 [..., H, W] and its 8 neighbours by 4, 2 and 1, as [1, 2, 1] in
    both directions; the border repeats itself."""
    rows = torch.cat([frames[..., :1, :], frames, frames[..., -1:, :]], dim=-2)
    wide = torch.cat([rows[..., :1], rows, rows[..., -1:]], dim=-1).short()  # sums below 4096
    down = wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]
    both = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return ((both + 8) >> 4).byte()


def without_colour(frames: Tensor) -> Tensor:
    """The luma (ITU-R BT.601) of uint8 [T, 3, H, W] in all three channels."""
    red, green, blue = frames.float().unbind(1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue).round().byte()
    return torch.stack([luma] * 3, dim=1)


def with_noise(frames: Tensor, std: float, generator: Generator) -> Tensor:
    """Add Gaussian noise of its own to every value of uint8 frames; std for pixels in [0, 1]."""
    noise = torch.randn(frames.shape, generator=generator).mul_(255 * std)
    return noise.add_(frames).round_().clamp_(0, 255).byte()
