"""What an exported file says about itself: input, output, classes, sampling, licence.

It is one JSON text, under the name `hiera_video` in the metadata of the file, so that nothing else
needs to travel with a model.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import UserError, WeightsError

KEY = "hiera_video"
"""The name of the text in the metadata of a file."""

EXTRA_FILE = "hiera_video.json"
"""The name of the text inside the archives that PyTorch writes."""

FORMAT = "hiera_video/export/1"
"""Version of the text; another first number is refused."""

INPUT, OUTPUT = "clips", "logits"
"""Names of the graph's input and output."""

DTYPES = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class Facts:
    """An exported model: how it is called, and what its outputs mean."""

    kind: str
    """Format of the file: onnx, openvino, torch_export, torchscript."""
    model: str
    """Registered name of the model."""
    weights: str
    """Where its weights came from."""
    classes: tuple[str, ...]
    """Names of the outputs, in their order."""
    spec: ClipSpec
    """How its clips are sampled, cropped and normalised."""
    clip_shape: tuple[int, ...]
    """Shape of one input: (3, T, H, W), or (3, H, W) of an image model."""
    batch: int | None = None
    """Clips in each call; None: any number."""
    dtype: str = "fp32"
    """What it computes in; inputs and outputs are float32 always."""
    multi_label: bool = False
    """Each class is a yes or no of its own: sigmoid in place of softmax."""
    licence: str = ""
    """Licence of the weights; empty: not known."""
    calibrated_on: str = ""
    """What int8 ranges were measured on."""
    version: str = ""
    """Version of this package that wrote the file."""
    notes: str = field(
        default="clips: RGB / 255, minus mean, over std, [batch, *clip_shape] float32; "
        "output: logits [batch, classes] float32, before softmax (sigmoid where multi_label)"
    )
    """For readers of the file without this package."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r}; choose {', '.join(DTYPES)}")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"batch {self.batch} must be dynamic, or a number from 1")
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        object.__setattr__(self, "clip_shape", tuple(map(int, self.clip_shape)))

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape of the input; the first size is None where any batch is taken."""
        return (self.batch, *self.clip_shape)

    def to_json(self) -> str:
        """Return the text that goes into the file."""
        stored = {"format": FORMAT, **asdict(self), "spec": self.spec.to_dict()}
        stored["input"] = {"name": INPUT, "shape": list(self.input_shape), "dtype": "float32"}
        shape = [self.batch, len(self.classes)]
        stored["output"] = {"name": OUTPUT, "shape": shape, "dtype": "float32"}
        return json.dumps(stored, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, path: str) -> Facts:
        """Read the text of a file; WeightsError for one of another version, or changed by hand."""
        try:
            stored: dict[str, Any] = json.loads(text)
            version = str(stored.get("format"))
            if version != FORMAT:
                raise WeightsError(
                    f"{path} was exported in format {version}, this version reads {FORMAT}; "
                    "export it again"
                )
            known = {f.name for f in fields(cls)}
            chosen = {key: value for key, value in stored.items() if key in known}
            spec = ClipSpec.from_dict(dict(stored["spec"]))
            return cls(**{**chosen, "spec": spec})
        except WeightsError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{path}: what it says about itself cannot be read ({error}); export it again"
            ) from None
