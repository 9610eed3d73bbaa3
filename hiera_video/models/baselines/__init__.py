"""Other people's models under the registry: PyTorchVideo's, torchvision's MViT, VideoMAE.

Each is the library's own network, built by the library's own code, behind one adapter
(`adapter.Baseline`) that gives it this package's model contract: clips [B, 3, T, H, W] in, logits
[B, num_classes] out, in training and in evaluation alike. State dicts keep the keys that the
library publishes its weights under.

Nothing heavy is imported until a model is built: a library that is not installed costs nothing and
is answered by a sentence that names it.
"""

from __future__ import annotations

from hiera_video.models.baselines import pytorchvideo, torchvision_mvit, videomae

del pytorchvideo, torchvision_mvit, videomae  # imported for what they register
