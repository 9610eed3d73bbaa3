"""VideoMAE of Hugging Face's transformers: classifiers, and the autoencoder they are tuned from.

transformers is optional (`pip install hiera_video[videomae]`): the names are always listed, and
building one without the library raises a UserError that says what to install.

Its clips are [B, T, 3, H, W], normalised with ImageNet's statistics. A token is a cube of 2 frames
and 16x16 pixels. Masking is by *tubes*: one mask for all times. So a mask unit here is a tube, one
place of the 14x14 grid through the whole clip, 196 in all, and `keep` [B, 196] (True = visible)
gives a mask of 1568 tokens.

Shapes: B batch, T frames, U tubes (mask units), k of them kept, K classes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.errors import UserError
from hiera_video.models.baselines.adapter import (
    LayeredBaseline,
    check_video_size,
    recompute,
    use_library_keys,
)
from hiera_video.models.inputs import check_clips
from hiera_video.models.mae import MAEOutput
from hiera_video.models.targets import TARGET_EPS
from hiera_video.models.tokens import count_kept
from hiera_video.models.weights.key_names import KeyNames
from hiera_video.registry import MODEL_REGISTRY

TUBELET, PATCH = 2, 16
"""Frames and pixels of a token's cube."""

SIZES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "decoder_hidden_size": 192,
        "decoder_intermediate_size": 768,
        "decoder_num_hidden_layers": 12,
        "decoder_num_attention_heads": 3,
    },
    "base": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "decoder_hidden_size": 384,
        "decoder_intermediate_size": 1536,
        "decoder_num_hidden_layers": 4,
        "decoder_num_attention_heads": 6,
    },
    "large": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "decoder_hidden_size": 512,
        "decoder_intermediate_size": 2048,
        "decoder_num_hidden_layers": 12,
        "decoder_num_attention_heads": 8,
    },
}
"""The published configurations (config.json of MCG-NJU/videomae-* on the Hugging Face hub)."""


KEY_NAMES = KeyNames(
    head=("classifier.weight", "classifier.bias"),
    classifier=("fc_norm.", "classifier."),
    classifier_words="fc_norm and classifier",
    decoder=("decoder.", "encoder_to_decoder.", "mask_token", "videomae.layernorm."),
    decoder_words="decoder and last norm",
)


def read_published_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as published -> the same with the keys of today's transformers.

    The files on the hub are older than a renaming in the library: `attention.q_bias` is
    `attention.query.bias` today, and `attention.v_bias` is `attention.value.bias`.
    """
    today = {"q_bias": "query.bias", "v_bias": "value.bias"}
    return {
        f"{before}{dot}{today.get(last, last)}": tensor
        for key, tensor in state.items()
        for before, dot, last in [key.rpartition(".")]
    }


class VideoMAEClassifier(LayeredBaseline):
    """VideoMAE's ViT: mean over tokens, LayerNorm, one linear layer.

    Args:
        network: transformers' `VideoMAEForVideoClassification`.
        head_dropout: dropout before the linear layer, which the library does not have.
        kwargs: see `LayeredBaseline`.
    """

    def __init__(self, network: nn.Module, *, head_dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        self.key_names = KEY_NAMES
        if head_dropout > 0:
            self.head.register_forward_pre_hook(functools.partial(_drop_input, head_dropout))

    read_published_keys = staticmethod(read_published_keys)

    def logits(self, clips: Tensor) -> Tensor:
        """See `Baseline`."""
        out: Tensor = self.network(clips.transpose(1, 2)).logits
        return out


def _drop_input(rate: float, layer: nn.Module, features: tuple[Tensor]) -> Tensor:
    """Forward pre-hook: dropout on the input of a layer."""
    return F.dropout(features[0], rate, layer.training)


class VideoMAEPretraining(nn.Module):
    """VideoMAE's autoencoder as an autoencoder of this package: keep masks in, a loss out.

    Args:
        network: transformers' `VideoMAEForPreTraining`.
        input_size: (T, H, W).
        mask_ratio: share of the tubes that are deleted where no mask is given. Published: 0.9,
            which is 176 of 196 and leaves 20 (the number deleted is rounded down).
        act_checkpoint: recompute each block in the backward pass.
    """

    key_names = KEY_NAMES
    read_published_keys = staticmethod(read_published_keys)
    network: Any
    """Of a class that is imported when it is built, so its attributes have no types here."""

    def __init__(
        self,
        network: nn.Module,
        *,
        input_size: Sequence[int],
        mask_ratio: float,
        act_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self.input_size = tuple(input_size)
        self.grid = (input_size[0] // TUBELET, input_size[1] // PATCH, input_size[2] // PATCH)
        tubes_kept(self.num_mask_units, mask_ratio)  # raises for a ratio out of range
        self.mask_ratio = mask_ratio
        use_library_keys(self)
        if act_checkpoint:
            recompute(self.network.videomae.encoder.layer)
            recompute(self.network.decoder.decoder_layers)

    @property
    def num_mask_units(self) -> int:
        """U, the number of tubes of a clip: 196 for 224x224."""
        return self.grid[1] * self.grid[2]

    def random_keep(
        self, batch: int, mask_ratio: float | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw a keep mask, bool [B, U]; `mask_ratio` None: the model's own."""
        units = self.num_mask_units
        count = tubes_kept(units, self.mask_ratio if mask_ratio is None else mask_ratio)
        ours = self.network.encoder_to_decoder.weight.device
        device = ours if generator is None else generator.device
        order = torch.rand(batch, units, device=device, generator=generator).argsort(dim=1)
        keep = torch.zeros(batch, units, dtype=torch.bool, device=device)
        return keep.scatter_(1, order[:, :count], True).to(ours)

    def no_weight_decay(self) -> set[str]:
        """The empty set: positions are fixed sines, and the mask token has weight decay."""
        return set()

    def forward(self, clips: Tensor, keep: Tensor | None = None) -> MAEOutput:
        """Delete tubes, encode the rest, predict the deleted cubes.

        Args:
            clips: pixels [B, 3, T, H, W], normalised with ImageNet's mean and deviation: the
                library takes these out again before it makes the targets.
            keep: bool [B, U], True = visible, the same number per clip; None draws one.

        Returns:
            `loss`: mean squared error on pixels normalised per cube and channel. `pred`: predicted
            pixels of the deleted cubes [B, T/2 * (U - k), 1536]: times, in each the deleted tubes
            in raster order; a cube's values are ordered (frame, row, column, channel).

        Raises:
            UserError: the model cannot take `clips`, or `keep` is no usable mask.
        """
        weight = self.network.encoder_to_decoder.weight
        check_clips(clips, (3, *self.input_size), weight=weight)
        if keep is None:
            keep = self.random_keep(clips.shape[0])
        kept = count_kept(keep, batch=clips.shape[0], num_units=self.num_mask_units)
        if kept == self.num_mask_units:
            raise UserError("keep deletes no mask unit, so there is nothing to predict")
        out = self.network(clips.transpose(1, 2), bool_masked_pos=self._deleted_tokens(keep))
        return MAEOutput(out.loss, out.logits, keep)

    @torch.no_grad()
    def reconstruct(self, clips: Tensor, pred: Tensor, keep: Tensor) -> Tensor:
        """Put the predicted cubes into the clip: pixels to look at.

        Mean and deviation of each cube and channel are taken from the original, so the result
        shows predicted structure, not predicted brightness.

        Args:
            clips: normalised pixels [B, 3, T, H, W].
            pred: as `forward` returns it.
            keep: bool [B, U].

        Returns:
            Pixels [B, 3, T, H, W].
        """
        cubes, deleted = self._cubes(clips).float(), self._deleted_tokens(keep)
        hidden = cubes[deleted]  # (B * deleted, pixels, 3)
        scale = (hidden.var(1, keepdim=True) + TARGET_EPS).sqrt()
        cubes[deleted] = pred.float().reshape(hidden.shape) * scale + hidden.mean(1, keepdim=True)
        x = cubes.unflatten(2, (TUBELET, PATCH, PATCH)).unflatten(1, self.grid)
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(clips.shape)

    def _cubes(self, clips: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] -> [B, tokens, pixels of a cube, 3], each in raster order."""
        sizes = [n for pair in zip(self.grid, (TUBELET, PATCH, PATCH), strict=True) for n in pair]
        x = clips.reshape(*clips.shape[:2], *sizes).permute(0, 2, 4, 6, 3, 5, 7, 1)
        return x.flatten(4, 6).flatten(1, 3)

    def _deleted_tokens(self, keep: Tensor) -> Tensor:
        """Keep mask of tubes [B, U] -> mask of tokens [B, T/2 * U], True = deleted."""
        return ~keep.repeat(1, self.grid[0])


def tubes_kept(num_units: int, mask_ratio: float) -> int:
    """Number of tubes that stay visible: U - int(U * ratio), at least 1 (20 of 196 at 0.9).

    Raises:
        UserError: if `mask_ratio` is outside [0, 1).
    """
    if not 0.0 <= mask_ratio < 1.0:
        raise UserError(f"mask_ratio={mask_ratio!r} must be at least 0 and below 1")
    return max(1, num_units - int(num_units * mask_ratio))


# ---- building -----------------------------------------------------------------------------


def transformers_class(name: str) -> Any:
    """A class of transformers' VideoMAE.

    Raises UserError where the library is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "VideoMAE needs Hugging Face's transformers, which is not installed; install it with: "
            "pip install transformers  (or pip install 'hiera_video[videomae]')"
        )
    module = "configuration_videomae" if name == "VideoMAEConfig" else "modeling_videomae"
    return getattr(importlib.import_module(f"transformers.models.videomae.{module}"), name)


def configuration(
    size: str, input_size: Sequence[int], *, library: dict[str, Any], **settings: Any
) -> Any:
    """Build a `VideoMAEConfig` for a size of `SIZES` and clips of `input_size`.

    Args:
        library: arguments of `VideoMAEConfig` from the user, which override all others.
        settings: further arguments of `VideoMAEConfig`.
    """
    frames, height, width = input_size
    return transformers_class("VideoMAEConfig")(
        **{
            **SIZES[size],
            "num_frames": frames,
            "image_size": [height, width],
            **settings,
            **library,
        }
    )


def register_variants(size: str) -> None:
    """Register `videomae_{size}_16x224` and `mae_videomae_{size}_16x224`."""

    def classifier(
        num_classes: int = 400,
        *,
        input_size: Sequence[int] = (16, 224, 224),
        head_dropout: float = 0.0,
        act_checkpoint: bool = False,
        library: dict[str, Any] | None = None,
    ) -> VideoMAEClassifier:
        name = f"videomae_{size}_16x224"
        clip = check_video_size(name, input_size, frames=TUBELET, side=PATCH)
        network = transformers_class("VideoMAEForVideoClassification")(
            configuration(size, clip, num_labels=num_classes, library=library or {})
        )
        return VideoMAEClassifier(
            network,
            head="classifier",
            head_dropout=head_dropout,
            input_size=clip,
            head_init_std=0.02,
            blocks="videomae.encoder.layer",
            embedding=("videomae.embeddings.",),
            act_checkpoint=act_checkpoint,
        )

    def autoencoder(
        *,
        mask_ratio: float = 0.9,
        input_size: Sequence[int] = (16, 224, 224),
        act_checkpoint: bool = False,
        library: dict[str, Any] | None = None,
    ) -> VideoMAEPretraining:
        name = f"mae_videomae_{size}_16x224"
        clip = check_video_size(name, input_size, frames=TUBELET, side=PATCH)
        network = transformers_class("VideoMAEForPreTraining")(
            configuration(size, clip, use_mean_pooling=False, library=library or {})
        )
        return VideoMAEPretraining(
            network, input_size=clip, mask_ratio=mask_ratio, act_checkpoint=act_checkpoint
        )

    classifier.__doc__ = f"transformers' VideoMAE-{size} classifier for clips of 16x224x224."
    autoencoder.__doc__ = f"transformers' VideoMAE-{size} autoencoder for clips of 16x224x224."
    MODEL_REGISTRY.register(name=f"videomae_{size}_16x224")(classifier)
    MODEL_REGISTRY.register(name=f"mae_videomae_{size}_16x224")(autoencoder)


for _size in SIZES:
    register_variants(_size)
