"""Finds people in pictures, with a detector of torchvision's and its public weights.

    detector = PersonDetector.load(warn=print)
    corners, scores = detector(picture)          # uint8 [H, W, 3] -> [N, 4], [N]

The weights are looked for in our cache and in that of torch.hub, where other programs may have put
them, else downloaded once. They must be the published ones: their SHA-256 begins with the digits in
their file's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hiera_video.detection.tracks import Corners
from hiera_video.errors import RunFailed, UserError, WeightsError, first_few
from hiera_video.models.weights.download import cache_folder, cached_path, fetch
from hiera_video.models.weights.file import STATE_KEYS, load_untrusted

QUICK, EXACT = "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn_v2"

ARGUMENTS: Mapping[str, dict[str, Any]] = {
    # Of a picture's regions the likeliest are looked at closely. torchvision takes 1,000, which is
    # most of the quick network's time; there are hardly more than a few dozen people.
    QUICK: {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 150},
    EXACT: {"rpn_pre_nms_top_n_test": 600, "rpn_post_nms_top_n_test": 300},
}
"""Name of a detector -> arguments of its builder."""

PERSON = 1
"""COCO's number of the class, in torchvision's detectors."""

CLASSES = 91
"""Of the published weights: COCO's numbers and the background."""

LONGEST = 1333
"""Longest side of the pictures that the detectors look at; larger ones gain nothing."""

LICENCE = (
    "torchvision's, BSD-3-Clause; its authors say that the terms of the data, COCO, may hold for "
    "weights, too"
)


class PersonDetector:
    """Finds the people in a picture.

    Args:
        network: one of torchvision's detectors; takes a list of pictures [3, H, W] in [0, 1].
        threshold: least score of a person.
        device: where it computes.
        name: for the results.
    """

    def __init__(
        self, network: nn.Module, threshold: float, device: torch.device, name: str
    ) -> None:
        self._network = network.to(device).eval()
        self._threshold, self._device, self.name = threshold, device, name

    @classmethod
    def load(cls, source: DetectorSource, device: torch.device) -> PersonDetector:
        """Build the detector that a user chose, with its weights.

        Raises WeightsError: weights that are not there, or of something else; it says what to do.
        """
        network = build(source.name, threshold=source.threshold)
        path = find_weights(source)
        load_state(network, path)
        return cls(network, source.threshold, device, source.name)

    @torch.inference_mode()
    def __call__(self, picture: NDArray[np.uint8]) -> tuple[Corners, NDArray[np.float64]]:
        """Return the people in a picture [H, W, 3], the surest first.

        Their corners are shares of its sides, [N, 4], their scores [N]. Raises RunFailed where the
        device's memory is full.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(self._device)
        try:
            (found,) = self._network([pixels.permute(2, 0, 1).float() / 255])
        except torch.OutOfMemoryError as error:
            raise RunFailed("out of GPU memory while finding people; try --device cpu") from error
        height, width = picture.shape[:2]
        return people_of(found, (width, height), self._threshold)


def people_of(
    found: Mapping[str, Tensor], size: tuple[int, int], threshold: float
) -> tuple[Corners, NDArray[np.float64]]:
    """What a network found in a picture of (width, height): corners and scores of the people.

    found: `boxes` [N, 4] in pixels, `labels` and `scores` [N], as torchvision's detectors return.
    """
    boxes = found["boxes"].double().cpu().numpy() / np.array([*size, *size], float)
    labels, scores = found["labels"].cpu().numpy(), found["scores"].double().cpu().numpy()
    boxes = boxes.clip(0, 1)
    seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    rows = np.flatnonzero((labels == PERSON) & (scores >= threshold) & seen)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    return boxes[rows], scores[rows]


# ---- the network --------------------------------------------------------------------------------


@dataclass(frozen=True)
class DetectorSource:
    """Which detector a user wants, and where its weights come from."""

    name: str = QUICK
    file: str | None = None
    """Weights that the user has; None: the published ones."""
    threshold: float = 0.8
    warn: Callable[[str], None] = print


def check_name(name: str) -> None:
    """Raise UserError unless this is a detector."""
    if name not in ARGUMENTS:
        raise UserError(f"--person-model {name}: choose {' or '.join(ARGUMENTS)}")


def build(name: str, *, threshold: float = 0.05) -> nn.Module:
    """Build one of torchvision's detectors, without weights; no network is used."""
    from torchvision.models import detection

    check_name(name)
    built: nn.Module = getattr(detection, name)(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES,
        # what is below is left out before overlapping boxes are merged, which saves time
        box_score_thresh=threshold,
        **ARGUMENTS[name],
    )
    return built


def load_state(network: nn.Module, path: str) -> None:
    """Load weights from a file into a detector, all of them; WeightsError where they do not fit."""
    content = load_untrusted(path)
    facts = content if isinstance(content, Mapping) else {}
    inner = (facts.get(key) for key in STATE_KEYS)
    state = next((found for found in inner if isinstance(found, Mapping)), facts)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    own = network.state_dict()
    # torchvision publishes some with frozen statistics, which do not count their batches
    missing = [k for k in own if k not in tensors and not k.endswith(".num_batches_tracked")]
    other = [k for k, t in tensors.items() if k not in own or own[k].shape != t.shape]
    if missing or other:
        wrong = f"missing {first_few(missing, 3)}" if missing else f"unlike {first_few(other, 3)}"
        raise WeightsError(
            f"{path} does not hold the weights of the person detector ({wrong}); "
            f"--person-model says which detector they are of: {', '.join(ARGUMENTS)}"
        )
    network.load_state_dict(tensors, strict=False)


# ---- weights ------------------------------------------------------------------------------------


def address(name: str) -> str:
    """The address of a detector's public weights."""
    from torchvision.models import get_model_weights

    url: str = get_model_weights(name)["COCO_V1"].url
    return url


def find_weights(source: DetectorSource) -> str:
    """Return the file of a detector's weights, downloaded if need be.

    Raises WeightsError, which says what to fetch and where to put it.
    """
    if source.file is not None:
        return source.file
    check_name(source.name)
    url = address(source.name)
    path = next((str(place) for place in _places(url) if place.is_file()), None)
    if path is None:
        path = _downloaded(url)
    _require_published(path, url)
    source.warn(f"{source.name}: these weights are {LICENCE}")
    return path


def _places(url: str) -> list[Path]:
    """Where the file of an address may be."""
    name = url.rsplit("/", 1)[1]
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    return [cached_path(url), cache_folder() / name, hub / name]


def _downloaded(url: str) -> str:
    try:
        return fetch(url)
    except WeightsError as error:
        reason = str(error).splitlines()[0].removeprefix(f"cannot download {url}: ")
    _, ours, _ = _places(url)
    raise WeightsError(
        f"people cannot be found: the weights of the person detector cannot be downloaded "
        f"({reason})\n"
        f"  download this file on another machine:        {url}\n"
        f"  and put it here, then run the same again:     {ours}\n"
        "  or name it where it is:                       --person-weights FILE\n"
        "  or give the boxes of the people yourself:     --boxes FILE"
    )


def _require_published(path: str, url: str) -> None:
    """Raise WeightsError unless a file is the one that torchvision publishes at an address."""
    expected = url.rsplit("-", 1)[1].removesuffix(".pth")
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None
    if not digest.hexdigest().startswith(expected):
        raise WeightsError(
            f"{path} is not what {url} should be (SHA-256 {digest.hexdigest()[:8]}, not "
            f"{expected}): cut short, changed, or a web page in its place. Delete it, and it is "
            "downloaded again"
        )
