"""A video encoder that scores boxes: what the person in each box does.

As SlowFast builds it for MViT, and as the paper describes it for AVA (Table 13): the last stage's
tokens are normalised, averaged over time, read in each box by RoIAlign, and the largest value in
space goes through dropout and one linear layer.

    model = build_model("hiera_base_16x224_ava")
    logits = model(clips, boxes)      # [N, 60]: boxes [N, 5] are (clip, x1, y1, x2, y2)

Shapes: B clips, N boxes of all of them, C channels, h and w tokens of the last stage, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hiera_video.errors import UserError
from hiera_video.models.encoder_model import EncoderModel
from hiera_video.models.hiera import SIZES, VIDEO, Hiera, HieraEncoder, init_layer
from hiera_video.models.layers import LAYER_NORM_EPS, Head
from hiera_video.registry import MODEL_REGISTRY

AVA_CLASSES = 60
"""The actions of AVA v2.2 that are measured."""


class RoIClassifier(EncoderModel):
    """An encoder with a head that scores boxes.

    Its state dict has the keys of the classifier that it starts from, `norm` and `head` too: a
    checkpoint of Kinetics loads by the usual rules, and its head is replaced.

    Args:
        encoder: taken over, without its own norm and head; None builds a Hiera from `kwargs`.
        num_classes: K, outputs for each box.
        head_dropout: dropout before the linear layer.
        head_init_scale: factor on the linear layer's initial weight and bias.
        roi_resolution: side of the grid that RoIAlign reads from a box.
        aligned: whether RoIAlign shifts boxes by half a cell, so that pixel centres match.
        kwargs: arguments of the encoder, see `HieraEncoder`.

    The running statistics of an encoder's batch norms stay as they were loaded: boxes come from few
    clips at a time.

    Raises:
        UserError: settings do not fit each other.
    """

    kwargs_of: type[HieraEncoder] = Hiera
    """Class of the encoder, which takes the `kwargs`."""

    def __init__(
        self,
        *args: Any,
        encoder: HieraEncoder | None = None,
        num_classes: int = AVA_CLASSES,
        head_dropout: float = 0.0,
        head_init_scale: float = 0.001,
        roi_resolution: int = 7,
        aligned: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if num_classes < 1 or roi_resolution < 1:
            raise UserError(
                f"num_classes={num_classes} and roi_resolution={roi_resolution} must be 1 or more"
            )
        if encoder is None:
            encoder = Hiera(*args, num_classes=0, **kwargs)
        _remove_head(encoder)
        self.set_encoder(encoder)
        self.num_classes, self.head_init_scale = num_classes, head_init_scale
        self.roi_resolution, self.aligned = roi_resolution, aligned
        dim = encoder.stage_dims[-1]
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.head = Head(dim, num_classes, head_dropout)
        init_layer(self.norm, bias=0.02)
        self.reset_head()

    def reset_head(self) -> None:
        """Initialise the linear layer, scaled down so that training starts from near-equal
        scores."""
        init_layer(self.head.projection, bias=0.02)
        with torch.no_grad():
            self.head.projection.weight.mul_(self.head_init_scale)
            self.head.projection.bias.mul_(self.head_init_scale)

    def train(self, mode: bool = True) -> RoIClassifier:
        """Set training mode, in which batch norms keep their statistics."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, _NormBase):
                module.eval()
        return self

    # ---- forward ------------------------------------------------------------------------

    def forward_features(self, clips: Tensor) -> Tensor:
        """Normalised pixels [B, C_in, *input_size] -> maps of the last stage [B, C, h, w]: tokens
        after the norm, averaged over time."""
        encoder = self.encoder
        tokens = encoder.forward_stages(encoder.embed(clips))[-1]
        maps = encoder.stage_map(self.norm(tokens), len(encoder.stages) - 1, dense=True)
        if maps.ndim == 5:
            maps = maps.mean(dim=1)
        return maps.permute(0, 3, 1, 2).contiguous()

    def forward_head(self, features: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Maps of `forward_features`, and boxes as in `forward` -> logits [N, K]."""
        from torchvision.ops import roi_align  # here: not all who build models wait for torchvision

        if boxes is None:
            boxes = whole_pictures(len(features), features)
        check_boxes(boxes, clips=len(features))
        rows, columns = features.shape[-2:]
        scale = boxes.new_tensor([1, columns, rows, columns, rows])
        regions = roi_align(
            features.float(),
            boxes.float() * scale.float(),
            output_size=self.roi_resolution,
            spatial_scale=1.0,  # the boxes are in cells of the map
            sampling_ratio=-1,  # as many points as the size of the box asks for, as SlowFast
            aligned=self.aligned,
        )
        logits: Tensor = self.head(regions.amax(dim=(2, 3)).to(features.dtype))
        return logits

    def forward(self, clips: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Score boxes.

        Args:
            clips: normalised pixels [B, C_in, *input_size].
            boxes: float [N, 5], in any order: the clip of each box (0 to B - 1), and its left, top,
                right and bottom as shares of width and height. N may be 0. None: one box for each
                clip, the whole picture.

        Returns:
            Logits [N, K], in training and in evaluation.

        Raises:
            UserError: clips or boxes that the model cannot take.
        """
        return self.forward_head(self.forward_features(clips), boxes)


def whole_pictures(clips: int, like: Tensor) -> Tensor:
    """Return a box of the whole picture for each clip, [clips, 5], on the device of `like`."""
    boxes = torch.zeros(clips, 5, device=like.device)
    boxes[:, 0] = torch.arange(clips, device=like.device)
    boxes[:, 3:] = 1
    return boxes


def check_boxes(boxes: Tensor, *, clips: int) -> None:
    """Raise UserError for boxes of another shape. Their values are not read: that would wait for
    the device."""
    if boxes.ndim != 2 or boxes.shape[1] != 5 or not boxes.is_floating_point():
        raise UserError(
            f"boxes are {boxes.dtype} of shape {tuple(boxes.shape)}; a model takes floats [N, 5]: "
            f"(clip 0 to {clips - 1}, x1, y1, x2, y2 as shares of the picture)"
        )


def _remove_head(encoder: HieraEncoder) -> None:
    """Remove what comes after the last stage of a classifier; UserError where a readout is."""
    if not isinstance(encoder, HieraEncoder):
        raise UserError(
            f"a detector needs the stages of a Hiera, and {type(encoder).__name__} has none: name "
            "a hiera_*, ladder_* or mvitv2_* model"
        )
    if isinstance(encoder, Hiera):
        if encoder.readout is not None:
            raise UserError(
                "a detector reads the last stage: leave readout_stages and attentive away"
            )
        encoder.head, encoder.norm, encoder.num_classes = nn.Identity(), nn.Identity(), 0


# ---- the registered variants --------------------------------------------------------------


def register_variant(size: str) -> None:
    """Register `hiera_{size}_16x224_ava`."""

    def video(num_classes: int = AVA_CLASSES, **overrides: Any) -> RoIClassifier:
        return RoIClassifier(**{**SIZES[size], **VIDEO, "num_classes": num_classes, **overrides})

    video.__doc__ = f"Hiera-{size} for the boxes of 16-frame 224x224 clips; AVA's 60 classes."
    MODEL_REGISTRY.register(name=f"hiera_{size}_16x224_ava")(video)


for _size in SIZES:
    register_variant(_size)


@MODEL_REGISTRY.register(name="roi_classifier")
def roi_classifier(
    encoder: str = "hiera_base_16x224",
    num_classes: int = AVA_CLASSES,
    head_dropout: float = 0.0,
    roi_resolution: int = 7,
    aligned: bool = True,
    **overrides: Any,
) -> RoIClassifier:
    """Score boxes by any registered Hiera, ladder or MViTv2 model. encoder: its name."""
    return RoIClassifier(
        encoder=MODEL_REGISTRY.get(encoder)(**overrides),
        num_classes=num_classes,
        head_dropout=head_dropout,
        roi_resolution=roi_resolution,
        aligned=aligned,
    )
