"""Other people's models under the registry: PyTorchVideo's, torchvision's MViT, VideoMAE.

Each is the library's own network, built by the library's own code, behind one adapter
(`adapter.Baseline`) that gives it this package's model contract: clips [B, 3, T, H, W] in, logits
[B, num_classes] out, in training and in evaluation alike. State dicts keep the keys that the
library publishes its weights under.

No library is imported until a model of it is built; where it is not installed, building raises a
UserError that names it.
"""
