"""Models of somebody else, registered from outside the package: the whole contract in few lines.

A run names this module with IMPORTS toy_models.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hiera_video.models.mae import MAEOutput
from hiera_video.models.weights.key_names import KeyNames
from hiera_video.registry import MODEL_REGISTRY

WIDTH, SIDE = 12, 16
INPUT_SIZE = (4, 64, 64)


class ToyEncoder(nn.Module):
    """Squares of 16x16 pixels of each frame, one position for each place, two layers."""

    def __init__(self, input_size=INPUT_SIZE):
        super().__init__()
        self.input_size = tuple(input_size)
        self.patch_embed = nn.Conv3d(3, WIDTH, (1, SIDE, SIDE), stride=(1, SIDE, SIDE))
        self.num_mask_units = self.input_size[0] * (self.input_size[1] // SIDE) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_mask_units, WIDTH))
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    @property
    def num_layers(self) -> int:
        return len(self.blocks) + 1

    def layer_id(self, name: str) -> int:
        if name.startswith(("patch_embed.", "pos_embed")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else self.num_layers

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def forward_features(self, clips: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, U, WIDTH]."""
        x = self.patch_embed(clips).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x


@MODEL_REGISTRY.register(name="toy_classifier")
class ToyClassifier(ToyEncoder):
    key_names = KeyNames(
        head=("head.weight", "head.bias"),
        classifier=("head.",),
        classifier_words="head",
        decoder=("mask_token", "decoder_pred."),
        decoder_words="mask token and decoder",
    )

    def __init__(self, num_classes: int = 3, input_size=INPUT_SIZE):
        super().__init__(input_size)
        self.num_classes = num_classes
        self.head = nn.Linear(WIDTH, num_classes)

    def reset_head(self) -> None:
        self.head.reset_parameters()

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features.mean(dim=1))

    def forward(self, clips: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(clips))


@MODEL_REGISTRY.register(name="toy_autoencoder")
class ToyAutoencoder(ToyEncoder):
    """Predicts the mean colour of the deleted squares from the mean feature of the kept ones."""

    def __init__(self, mask_ratio: float = 0.5, input_size=INPUT_SIZE):
        super().__init__(input_size)
        self.mask_ratio = mask_ratio
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.decoder_pred = nn.Linear(WIDTH, 3)

    def random_keep(self, batch, mask_ratio=None, generator=None) -> Tensor:
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        noise = torch.rand(batch, self.num_mask_units, generator=generator)
        kept = int(self.num_mask_units * (1 - ratio))
        keep = torch.zeros_like(noise, dtype=torch.bool)
        return keep.scatter_(1, noise.argsort(1)[:, :kept], True)

    def forward(self, clips: Tensor, keep: Tensor | None = None) -> MAEOutput:
        keep = self.random_keep(len(clips)) if keep is None else keep
        tokens = self.forward_features(clips)
        seen = tokens * keep.unsqueeze(-1)
        mean = seen.sum(1, keepdim=True) / keep.sum(1).view(-1, 1, 1)
        pred = self.decoder_pred(mean + self.mask_token + self.pos_embed)
        colours = nn.functional.avg_pool3d(clips, (1, SIDE, SIDE)).flatten(2).transpose(1, 2)
        error = (pred - colours).square().mean(-1)[~keep]
        return MAEOutput(error.mean(), pred, keep)

    def reconstruct(self, clips: Tensor, pred: Tensor, keep: Tensor) -> Tensor:
        grid = (len(clips), 3, self.input_size[0], *(s // SIDE for s in self.input_size[1:]))
        return nn.functional.interpolate(pred.transpose(1, 2).reshape(grid), clips.shape[2:])
