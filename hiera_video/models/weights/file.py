"""Files of weights: reading them without running code from them, and writing them.

A checkpoint is a pickle, and a pickle is a program. Every file goes through PyTorch's restricted
loader (`weights_only=True`), which accepts tensors, numbers, strings and containers and nothing
else; what it refuses is a WeightsError here. `.safetensors` files contain no program; they are read
if the `safetensors` package is installed.

Supported layouts, by the first matching key: `model_state` (ours, SlowFast, Hiera), `state_dict`
(timm), `model_state_dict`, `model` (torchvision, MAE, VideoMAE), `module` (DeepSpeed), or a bare
state dict. Prefixes that wrappers leave in the keys (`module.` of DistributedDataParallel,
`_orig_mod.` of torch.compile, `model.` of Lightning) are removed.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import RunFailed, WeightsError, first_few
from hiera_video.files import atomic_write, explained
from hiera_video.models.weights.archive import archive_fault, first_line, unpickled
from hiera_video.models.weights.hiera_keys import published_keys
from hiera_video.models.weights.key_names import HIERA_KEYS, kind_of
from hiera_video.models.weights.other_keys import head_weight
from hiera_video.models.weights.sharded import is_sharded, read_whole

if TYPE_CHECKING:
    from hiera_video.models.weights.published import PublishedWeights

STATE_KEYS = ("model_state", "state_dict", "model_state_dict", "model", "module")
FILE_ENDINGS = (".pth", ".pyth", ".pt", ".bin", ".safetensors")


@dataclass
class Checkpoint:
    """The content of a weights file, with what is known about it."""

    state_dict: dict[str, Tensor]
    """Published key -> tensor on the CPU, wrappers' prefixes removed."""
    path: str
    """The file it came from."""
    model_name: str | None = None
    """Registered name of the model it fits, if known from the file or the table."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments that the model was built with, besides the defaults of its name."""
    classes: list[str] | None = None
    """Class names in the order of the head's outputs, as stored in the file; `resolve` adds those
    of public weights."""
    classes_guessed: str = ""
    """The public list that `classes` were taken from because model and number of outputs agree;
    empty: they are known."""
    spec: ClipSpec | None = None
    """How its clips were sampled and normalised, if known."""
    multi_label: bool = False
    """Whether each class is a yes or no (sigmoid), instead of one of many (softmax)."""
    epoch: int | None = None
    """Number of finished epochs, if it is stored."""
    settings: str = ""
    """Configuration of its training (YAML), from a file of this package's trainer."""
    trained_on: str = ""
    """Fingerprint of the list of its training videos, from a file of this package's trainer."""
    published: PublishedWeights | None = None
    """The row of the table of public checkpoints, if it is one."""
    name: str = ""
    """Its name, if it comes with the package."""
    head: str = HIERA_KEYS.head[0]
    """Key of the classifier's weight, if it has a classifier."""

    @property
    def kind(self) -> str:
        """What these are the weights of, see `kind_of`."""
        return kind_of(self.state_dict)

    @property
    def num_classes(self) -> int | None:
        """Number of outputs of its head; None where it has no head.

        Where the key of the head is not known, it is the number that the trainer stored.
        """
        head = self.state_dict.get(self.head)
        if head is not None:
            return head.shape[0]
        stored = self.model_kwargs.get("num_classes")
        return stored if isinstance(stored, int) else None

    @property
    def label(self) -> str:
        """Its name in messages: the published one or the package's, else the path."""
        return str(self.published) if self.published else self.name or self.path


# ---- reading ------------------------------------------------------------------------------------


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a weights file; no code in it is run.

    Raises:
        WeightsError: the file is missing, empty, truncated, no checkpoint, or would run code; or it
            has no tensors. The message says which, and what to do.
    """
    path = os.fspath(path)
    content = load_untrusted(path)
    state = published_keys(clean_keys(_find_state_dict(content, path), path))
    facts = content if isinstance(content, Mapping) else {}
    head = head_weight(state) or HIERA_KEYS.head[0]
    return Checkpoint(state_dict=state, path=path, head=head, **_facts(facts, path))


def load_untrusted(path: str | os.PathLike) -> Any:
    """Load what `torch.save` or safetensors wrote, tensors on the CPU; no code is run.

    Raises:
        WeightsError: as `read_checkpoint`, except for files without tensors.
    """
    path = os.fspath(path)
    if is_sharded(path):
        return read_whole(path)
    kind = check_file(path)
    if kind == "safetensors":
        return _load_safetensors(path)
    fault = archive_fault(path) if kind == "archive" else None
    if fault:
        raise WeightsError(f"{path}: the file is {fault}; download or copy it again")
    return unpickled(path)


def unreadable(path: str | os.PathLike) -> str | None:
    """Why a file cannot be read as weights, without its name; None if it can.

    Reads the whole file; of a safetensors file, which has no checksums, compares the size.
    """
    path = os.fspath(path)
    try:
        if not is_sharded(path) and check_file(path) == "safetensors":
            return _safetensors_fault(path)
        load_untrusted(path)
    except WeightsError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def check_file(path: str) -> str:
    """The format by a file's first bytes: "archive" (torch.save), "pickle" (torch.save before 1.6)
    or "safetensors".

    Raises WeightsError if it is none of them.
    """
    try:
        status = os.stat(path)
        start = b""
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                start = file.read(512)
    except FileNotFoundError:
        raise WeightsError(f"no such weights file: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise WeightsError(f"cannot read the weights file {path!r}: {first_line(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise WeightsError(f"{path} is a folder, not a weights file{_weights_inside(path)}")
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(f"{path} is not a regular file; give a .pth, .pyth or .safetensors")
    problem = not_a_checkpoint(start, status.st_size)
    if problem:
        raise WeightsError(f"{path}: {problem}")
    if _is_safetensors(start, status.st_size):
        return "safetensors"
    return "archive" if start.startswith(b"PK") else "pickle"


def not_a_checkpoint(start: bytes, size: int) -> str | None:
    """Why a file of `size` bytes that starts like this cannot be a checkpoint; None if it may."""
    if size == 0:
        return "the file is empty; download or copy it again"
    if start.startswith(b"version https://git-lfs"):
        return (
            "this is a Git LFS pointer, a few lines of text instead of the weights; "
            "run `git lfs pull` in its repository, or copy the real file"
        )
    if re.match(rb"\s*(<!|<html|<\?xml)", start.removeprefix(b"\xef\xbb\xbf"), re.IGNORECASE):
        return "this is a web page, not weights: the server sent a page; download it again"
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x80")) or _is_safetensors(start, size):
        return None
    shown = ascii(start[:24].decode("latin-1"))[1:-1]
    return (
        f'this is not a checkpoint (it starts with "{shown}"); '
        "expected a file written by torch.save or safetensors"
    )


def _is_safetensors(start: bytes, size: int) -> bool:
    """Safetensors: the length of a JSON header in 8 bytes, then the header."""
    if len(start) < 10 or start[8:9] != b"{":
        return False
    return struct.unpack("<Q", start[:8])[0] <= size - 8


def _safetensors_fault(path: str) -> str | None:
    """Compare the size of a safetensors file with the end of its last tensor."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = file.read(length)
    try:
        rows = {**json.loads(header)}
        rows.pop("__metadata__", None)
        expected = 8 + length + max((row["data_offsets"][1] for row in rows.values()), default=0)
    except (ValueError, TypeError, LookupError, RecursionError):
        return "the header of the safetensors file is damaged"
    size = os.path.getsize(path)
    return None if size == expected else f"it has {size:,} bytes, and should have {expected:,}"


def _load_safetensors(path: str) -> dict[str, Tensor]:
    """Load a safetensors file; WeightsError where that is not possible."""
    try:
        from safetensors.torch import load_file  # optional: `pip install safetensors`
    except ImportError:
        raise WeightsError(
            f"{path} is a safetensors file and the safetensors package is not installed; "
            "run `pip install safetensors`, or save the state dict with torch.save"
        ) from None
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # it raises more than its own type
        raise WeightsError(
            f"{path}: the safetensors file is cut short or damaged ({first_line(error)}); "
            "download or copy it again"
        ) from None


def _weights_inside(folder: str) -> str:
    """ "; it holds a.pth, b.pth" for a folder that does, else nothing."""
    names = sorted(path.name for path in Path(folder).iterdir() if path.suffix in FILE_ENDINGS)
    if not names:
        return ""
    return f"; it holds {', '.join(names[-3:])}: name one"


def _find_state_dict(content: Any, path: str) -> dict[str, Tensor]:
    """The dict of tensors inside what was loaded; WeightsError where there is none."""
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}, not a dict of tensors; "
            f"expected a state dict, alone or under one of {', '.join(STATE_KEYS)}"
        )
    for key in STATE_KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
            strays = sorted(str(k) for k, v in inner.items() if not isinstance(v, Tensor))
            if strays:
                raise WeightsError(
                    f"{path}: {key!r} has entries that are no tensors: {first_few(strays)}"
                )
            return dict(inner)
    # a bare state dict: other entries beside the tensors, such as an epoch, are ignored
    tensors = {key: v for key, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        keys = first_few([str(key) for key in content]) if content else "nothing"
        raise WeightsError(
            f"{path} has no weights (its keys: {keys}); "
            f"expected a state dict, alone or under one of {', '.join(STATE_KEYS)}"
        )
    return tensors


def clean_keys(state: Mapping[Any, Tensor], path: str = "the state dict") -> dict[str, Tensor]:
    """Remove the prefixes that wrappers leave in the keys of a state dict.

    Raises:
        WeightsError: a key is no string, or two keys become equal.
    """
    if not all(isinstance(key, str) for key in state):
        raise WeightsError(f"{path}: the state dict has keys that are no strings")
    # torch.compile can wrap any submodule, so its prefix may be inside a key
    names = {key: key.replace("_orig_mod.", "") for key in state}
    for prefix in ("module.", "model.", "module."):  # DDP around Lightning, or either alone
        if names and all(name.startswith(prefix) for name in names.values()):
            names = {key: name.removeprefix(prefix) for key, name in names.items()}
    cleaned = {names[key]: tensor for key, tensor in state.items()}
    if len(cleaned) != len(state):
        raise WeightsError(f"{path}: two keys are equal without the prefixes of wrappers")
    return cleaned


def _facts(content: Mapping, path: str) -> dict[str, Any]:
    """What this package's trainer stores beside the weights, as fields of `Checkpoint`."""
    facts: dict[str, Any] = {}
    epoch = content.get("epoch")
    if isinstance(epoch, int):
        facts["epoch"] = epoch
    if not str(content.get("format", "")).startswith("hiera_video/"):
        return facts
    try:
        model = content.get("model") or {}
        facts["model_name"] = model.get("name")
        facts["model_kwargs"] = dict(model.get("kwargs") or {})
        classes, spec = content.get("classes"), content.get("spec")
        facts["classes"] = [str(name) for name in classes] if classes else None
        facts["spec"] = ClipSpec.from_dict(dict(spec)) if spec else None
        facts["multi_label"] = bool(content.get("multi_label", False))
        facts["settings"] = str(content.get("cfg") or "")
        facts["trained_on"] = str(content.get("data") or "")
    except (AttributeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: its entries on model, classes or clips cannot be read ({first_line(error)}); "
            "it was written by another version, or changed by hand"
        ) from None
    return facts


# ---- writing ------------------------------------------------------------------------------------


def save_published(model: nn.Module, path: str | os.PathLike) -> Path:
    """Write a model's weights in the layout of the public checkpoints: {"model_state": {...}}.

    Keys are the published ones whatever wraps the model (DistributedDataParallel, torch.compile).
    The file appears whole or not at all, and replaces an existing one.

    Returns:
        The path written.

    Raises:
        WeightsError: the file cannot be written.
    """
    # clones: with a view, torch.save writes the whole storage behind it
    state = {key: t.detach().cpu().clone() for key, t in clean_keys(model.state_dict()).items()}
    path = Path(path)
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save({"model_state": state}, file)
    except RunFailed as error:
        raise WeightsError(str(error)) from None
    return path
