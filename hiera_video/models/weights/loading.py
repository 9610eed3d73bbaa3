"""Fitting a checkpoint to a model, or refusing it: every check comes before the first copy."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hiera_video.classes import ClassMatch, in_order_note, match_classes
from hiera_video.errors import WeightsError, first_few
from hiera_video.models.pos_embed import fit_positions
from hiera_video.models.weights.file import Checkpoint
from hiera_video.models.weights.key_names import HIERA_KEYS
from hiera_video.models.weights.mvit_keys import to_published
from hiera_video.models.weights.published import PublishedWeights

PATCH_KERNEL = "patch_embed.proj.weight"
POOL_KERNEL = re.compile(r"\.attn\.pool_[qkv]\.weight$")


@dataclass
class LoadReport:
    """What became of a checkpoint; `print(report)` says it in a few lines."""

    source: str
    """Name of the published weights, or the file."""
    loaded: list[str]
    """Keys of the model that got their values from the checkpoint."""
    missing: list[str] = field(default_factory=list)
    """Keys of the model that keep the values it was built with."""
    unexpected: list[str] = field(default_factory=list)
    """Keys of the checkpoint that were not used."""
    reshaped: list[str] = field(default_factory=list)
    """"key: shape there, shape here" of what was skipped for its shape (strict=False only)."""
    resized: list[str] = field(default_factory=list)
    """Position embeddings that were resized or converted."""
    notes: list[str] = field(default_factory=list)
    """One sentence for each thing that was done to fit the checkpoint to the model."""
    classes: ClassMatch | None = None
    """Which row of the checkpoint's head each class has, where both sides have names; a class
    without one has a new row."""

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing)
        lines = [f"loaded {len(self.loaded)} of {total} tensors from {self.source}", *self.notes]
        return "\n  ".join(lines)


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    strict: bool = True,
    into_autoencoder: bool = False,
    inflate: bool = True,
    classes: Sequence[str] | None = None,
) -> LoadReport:
    """Copy a checkpoint into a model, fitting head, dimensions and positions where they differ.

    Everything is checked before the first value is copied: after an error the model is as it was.
    The licence of public weights is printed on stderr.

    Args:
        model: a classifier or an autoencoder, on any device but meta.
        checkpoint: what `read_checkpoint` or `resolve` gave.
        strict: True: a key that is missing, left over or of another shape is an error. False: it
            is skipped and reported.
        into_autoencoder: allow a classifier's weights in an autoencoder, whose decoder then starts
            from scratch.
        inflate: allow an image model's weights in a video model.
        classes: names of the model's outputs, in their order: the rows of the head are placed by
            name, and a class that the checkpoint does not know gets a new row. Empty: the outputs
            have no names. None: the outputs are those of the checkpoint, in its order.

    Returns:
        What was loaded, what was not, and a note on every adaptation.

    Raises:
        WeightsError: the checkpoint does not fit; it lists the keys and shapes that do not.
    """
    model = _unwrapped(model)
    fit = Fit(model, checkpoint)
    _fit_kind(fit, allowed=into_autoencoder)
    _fit_dimensions(fit, allowed=inflate)
    fit_positions(fit)
    new_rows = _fit_head(fit, classes)
    report = _compare(fit, strict=strict)
    values = {key: _like(fit, key) for key in report.loaded}
    _note_values(fit, values)
    if new_rows and hasattr(model, "reset_head"):
        model.reset_head()
    own = model.state_dict()
    for key in fit.names.head:
        if new_rows and key in values:
            values[key][new_rows] = own[key][new_rows].to(values[key])
    # the model's own values for the rest make the set complete, so that PyTorch checks it as well
    model.load_state_dict({**own, **values}, strict=True)
    if checkpoint.published is not None:
        _say_licence(checkpoint.published)
    return report


class Fit:
    """A checkpoint on its way into a model: steps edit `tensors` and say so in `notes`."""

    def __init__(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.names = getattr(model, "key_names", HIERA_KEYS)
        self.wanted = model.state_dict()
        self.tensors = _in_names_of(model, checkpoint.state_dict, self.wanted)
        if any(tensor.is_meta for tensor in self.wanted.values()):
            raise WeightsError(
                "the model is on the meta device, which holds no values; "
                "build it on the CPU or a GPU before loading weights"
            )
        encoder = getattr(model, "encoder", model)
        self.layout = getattr(encoder, "layout", None)
        self.q_pool = getattr(encoder, "q_pool", 0)
        self.patch_stride = encoder.patch_embed.proj.stride if self.layout else None
        self.fresh: set[str] = set()
        self.left_out: list[str] = []
        self.resized: list[str] = []
        self.notes: list[str] = []
        self.classes: ClassMatch | None = None

    @property
    def for_autoencoder(self) -> bool:
        return "mask_token" in self.wanted

    def leave_out(self, keys: Iterable[str]) -> None:
        """Take keys out of the checkpoint on purpose."""
        for key in keys:
            if self.tensors.pop(key, None) is not None:
                self.left_out.append(key)

    def start_fresh(self, keys: Iterable[str]) -> None:
        """Let keys of the model keep the values it was built with, on purpose."""
        self.fresh.update(key for key in keys if key in self.wanted)

    def fails(self, problem: str) -> WeightsError:
        return WeightsError(f"{self.checkpoint.label} does not fit the model: {problem}")


def _in_names_of(
    model: nn.Module, state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a file under the names that they have in the model.

    A model whose weights are published under other names than its own translates them itself
    (`read_published_keys`). Otherwise the names of the file are taken, or the published names of
    what torchvision and timm name in their own way, whichever the model has more of.
    """
    if hasattr(model, "read_published_keys"):
        translated: dict[str, Tensor] = model.read_published_keys(state)
        return translated
    published = to_published(state)
    if len(model_state.keys() & published.keys()) < len(model_state.keys() & state.keys()):
        return dict(state)
    return published


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            return model


def _fit_kind(fit: Fit, *, allowed: bool) -> None:
    """Autoencoder into classifier, and the other way round where it was asked for."""
    names = fit.names
    if fit.checkpoint.is_autoencoder and not fit.for_autoencoder:
        fit.leave_out([key for key in fit.tensors if key.startswith(names.decoder)])
        fit.start_fresh(key for key in fit.wanted if key.startswith(names.classifier))
        fit.notes.append(
            f"encoder taken out of an autoencoder: {len(fit.left_out)} tensors of its "
            f"{names.decoder_words} are left out; {names.classifier_words} keep their initial "
            "values"
        )
    elif fit.for_autoencoder and not fit.checkpoint.is_autoencoder:
        if not allowed:
            raise fit.fails(
                "it is a classifier's and the model is an autoencoder, whose decoder would start "
                "from scratch. Name an autoencoder's weights, or ask for the encoder alone "
                "(into_autoencoder=True)"
            )
        fit.leave_out([key for key in fit.tensors if key.startswith(names.classifier)])
        fit.start_fresh(key for key in fit.wanted if key.startswith(names.decoder))
        fit.notes.append(
            f"encoder taken out of a classifier: its {names.classifier_words} are left out; the "
            f"autoencoder's {names.decoder_words} keep their initial values"
        )


def _fit_dimensions(fit: Fit, *, allowed: bool) -> None:
    """Image weights into a video model: a still clip gives the image's features.

    The 2-D patch kernel is repeated over the T' frames of the 3-D one and divided by T', so that
    frames that are all alike give the activations that the image gave.
    """
    kernel, wanted = fit.tensors.get(PATCH_KERNEL), fit.wanted.get(PATCH_KERNEL)
    if kernel is None or wanted is None or kernel.dim() == wanted.dim():
        return
    if kernel.dim() == 5:
        raise fit.fails("it is a video model's and the model is an image model")
    if (kernel.dim(), wanted.dim()) != (4, 5):
        return  # the comparison of shapes says it
    if not allowed:
        raise fit.fails("it is an image model's and the model is a video model (inflate=False)")
    frames = wanted.shape[2]
    fit.tensors[PATCH_KERNEL] = (kernel / frames).unsqueeze(2).repeat(1, 1, frames, 1, 1)
    done = [f"patch kernel repeated over {frames} frames and divided by {frames}"]
    if fit.for_autoencoder and fit.checkpoint.is_autoencoder:
        # decoder_pred's rows are (channel, row, column) for images but (row, column, channel) for
        # video: of equal shape, so they would load and predict nonsense
        decoder = fit.names.decoder
        fit.leave_out([key for key in fit.tensors if key.startswith(decoder)])
        fit.start_fresh(key for key in fit.wanted if key.startswith(decoder))
        done.append(f"{fit.names.decoder_words} keep their initial values")
    space = fit.tensors.get("pos_embed")
    if space is not None and "pos_embed_spatial" in fit.wanted:
        fit.tensors["pos_embed_spatial"] = fit.tensors.pop("pos_embed")
        fit.tensors["pos_embed_temporal"] = torch.zeros_like(
            fit.wanted["pos_embed_temporal"], device="cpu"
        )
        done.append("pos_embed becomes pos_embed_spatial, pos_embed_temporal starts at zero")
    elif space is not None and space.dim() == 3 and fit.layout is not None:
        fit.tensors["pos_embed"] = space.repeat(1, fit.layout.grid[0], 1)
        done.append("pos_embed repeated for every time step")
    done += _inflate_pooling(fit)
    fit.notes.append("image weights inflated for video: " + "; ".join(done))


def _inflate_pooling(fit: Fit) -> list[str]:
    """What MViTv2 and the rungs near it need besides: kernels and positions in time, a class token.

    The 2-D pooling kernels become the middle of 3-D ones that are zero elsewhere: at the ends of
    the clip, too, a still picture is pooled as the image was.
    """
    done = []
    for key, wanted in fit.wanted.items():
        kernel = fit.tensors.get(key)
        if (
            POOL_KERNEL.search(key)
            and kernel is not None
            and (kernel.dim(), wanted.dim()) == (4, 5)
        ):
            inflated = torch.zeros(*kernel.shape[:2], *wanted.shape[2:3], *kernel.shape[2:])
            inflated[:, :, wanted.shape[2] // 2] = kernel
            fit.tensors[key] = inflated
            done = ["pooling kernels put in the middle of kernels in time"]
    missing = [key for key in fit.wanted if key not in fit.tensors]
    in_time = [key for key in missing if key.endswith(".rel_pos_t")]
    for key in in_time:
        fit.tensors[key] = torch.zeros_like(fit.wanted[key], device="cpu")
    if in_time:
        done.append("relative positions in time start at zero")
    if "cls_token" in missing:
        fit.start_fresh(["cls_token"])
        done.append("cls_token keeps its initial value")
    return done


def _fit_head(fit: Fit, wanted: Sequence[str] | None) -> list[int]:
    """Put the rows of the head in the order of the classes `wanted`; the rows that are new ones."""
    head = fit.names.head
    there, here = fit.tensors.get(head[0]), fit.wanted.get(head[0])
    if there is None or there.dim() < 2:
        _require_known_head(fit, wanted)
        return []
    if here is None:
        if fit.for_autoencoder:
            return []
        if not any(key.startswith(fit.names.classifier) for key in fit.wanted):
            fit.leave_out([key for key in fit.tensors if key.startswith(fit.names.classifier)])
            fit.notes.append(f"{fit.names.classifier_words} left out: the model has none")
            return []
        fit.leave_out(head)
        fit.notes.append(f"head left out ({there.shape[0]} classes): the model has none")
        return []
    if there.shape[1:] != here.shape[1:]:
        return []  # the comparison of shapes says it
    if wanted and len(wanted) != here.shape[0]:
        raise fit.fails(f"{len(wanted)} class names for a model with {here.shape[0]} outputs")
    match = None if wanted is None else _match_names(fit, wanted, outputs=there.shape[0])
    if match is not None:
        fit.classes = match
        return _place_rows(fit, match)
    if there.shape[0] == here.shape[0]:
        if wanted is not None:
            fit.notes.append(_in_order(fit, wanted, outputs=there.shape[0]))
        return []
    change = f"head replaced: {there.shape[0]} -> {here.shape[0]} classes, randomly initialised"
    return _replace_head(fit, change)


def _match_names(fit: Fit, wanted: Sequence[str], *, outputs: int) -> ClassMatch | None:
    """The classes of the checkpoint and of the model, compared; None where one has no names."""
    stored, guess = fit.checkpoint.classes, fit.checkpoint.classes_guessed
    if not stored or not wanted:
        return None
    if len(stored) != outputs:
        raise fit.fails(f"it has {len(stored)} class names for {outputs} outputs")
    match = match_classes(stored, wanted)
    if not guess:
        return match
    if not match.same_names:  # the names are no fact; only that they all agree makes them one
        return None
    fit.notes.append(
        f"{fit.checkpoint.label} has no class names; its {outputs} outputs are read as those of "
        f"{guess}"
    )
    return match


def _in_order(fit: Fit, wanted: Sequence[str], *, outputs: int) -> str:
    """What is said of a head that is taken as it is although names are missing."""
    stored = [] if fit.checkpoint.classes_guessed else fit.checkpoint.classes or []
    return in_order_note(fit.checkpoint.label, outputs, stored=stored, wanted=wanted)


def _place_rows(fit: Fit, match: ClassMatch) -> list[int]:
    """Put the stored rows of the head where their classes are; the rows that are new ones."""
    if match.same_order:
        fit.notes += filter(None, [match.spelling_note()])
        return []
    if not match.known:
        return _replace_head(
            fit,
            f"head replaced: none of its {len(match.stored)} classes "
            f"({first_few(list(match.stored))}) is one of the {len(match.wanted)} here "
            f"({first_few(list(match.wanted))}), which are randomly initialised",
        )
    count = fit.tensors[fit.names.head[0]].shape[0]
    for key in fit.names.head:
        if key not in fit.tensors or key not in fit.wanted:
            continue  # the comparison of keys says it
        stored, placed = _like(fit, key), torch.zeros_like(fit.wanted[key], device="cpu")
        if stored.shape != (count, *placed.shape[1:]):
            raise fit.fails(
                f"{key} has shape {_shape(stored)}, which does not go with {count} outputs"
            )
        for place, row in enumerate(match.rows):
            if row is not None:
                placed[place] = stored[row]
        fit.tensors[key] = placed
    fit.notes += filter(None, [_placed(match), match.spelling_note()])
    return [place for place, row in enumerate(match.rows) if row is None]


def _placed(match: ClassMatch) -> str:
    """What became of the rows of a head, in a sentence."""
    if match.same_names:
        return (
            f"head: its {len(match.stored)} classes are in another order here; rows placed by name"
        )
    parts = [
        f"head: {len(match.known)} of {len(match.wanted)} classes placed by name "
        f"({first_few(match.known)})"
    ]
    if match.new:
        parts.append(f"{len(match.new)} new, randomly initialised: {first_few(match.new)}")
    if match.left_out:
        left_out = first_few(match.left_out)
        parts.append(f"{len(match.left_out)} of the checkpoint left out: {left_out}")
    return "; ".join(parts)


def _replace_head(fit: Fit, said: str) -> list[int]:
    """Let the whole head keep the model's own values; its rows, which are all new ones."""
    rows = list(range(fit.wanted[fit.names.head[0]].shape[0]))
    fit.leave_out(fit.names.head)
    fit.start_fresh(fit.names.head)
    fit.notes.append(said)
    return rows


def _require_known_head(fit: Fit, wanted: Sequence[str] | None) -> None:
    """Refuse other classes than the checkpoint's where nobody knows which tensors are the head."""
    stored, outputs = fit.checkpoint.classes, fit.checkpoint.num_classes
    if not wanted or outputs is None or fit.names.head[0] in fit.wanted or fit.for_autoencoder:
        return
    match = _match_names(fit, wanted, outputs=outputs)
    if match is None and outputs == len(wanted):
        fit.notes.append(_in_order(fit, wanted, outputs=outputs))
    elif match is not None and not match.same_order:
        raise fit.fails(
            f"its classes are {first_few(list(stored))} and those here {first_few(list(wanted))}, "
            "and rows cannot be placed by name: the model does not say which tensors are its head. "
            "Give it an attribute key_names (hiera_video.models.weights.key_names.KeyNames)"
        )


def _compare(fit: Fit, *, strict: bool) -> LoadReport:
    """Hold what is left of the checkpoint against the model; WeightsError on any difference."""
    unexpected = sorted(set(fit.tensors) - set(fit.wanted))
    missing = sorted(set(fit.wanted) - set(fit.tensors) - fit.fresh)
    shared = [key for key in fit.wanted if key in fit.tensors]
    other = [key for key in shared if fit.tensors[key].shape != fit.wanted[key].shape]
    reshaped = [
        f"{key}: {_shape(fit.tensors[key])} there, {_shape(fit.wanted[key])} here" for key in other
    ]
    loaded = [key for key in shared if key not in set(other)]
    described = [
        _listed("missing from the checkpoint", missing),
        _listed("not in the model", unexpected),
        _listed("of another shape", reshaped),
    ]
    differences = "\n".join(part for part in described if part)
    if not loaded:
        raise fit.fails(f"not one tensor matches{_whose(fit)}\n{differences}")
    if differences and strict:
        raise fit.fails(
            f"{len(loaded)} of {len(fit.wanted)} tensors match{_whose(fit)}\n{differences}"
        )
    if differences:
        fit.notes.append(f"loaded without strictness; skipped:\n{differences}")
    return LoadReport(
        source=fit.checkpoint.label,
        loaded=loaded,
        missing=sorted({*missing, *fit.fresh, *other}),
        unexpected=sorted({*unexpected, *fit.left_out}),
        reshaped=reshaped,
        resized=fit.resized,
        notes=fit.notes,
        classes=fit.classes,
    )


def _note_values(fit: Fit, values: dict[str, Tensor]) -> None:
    """Notes on numbers that were stored in another precision, or are no numbers."""
    stored = {
        str(fit.tensors[key].dtype).removeprefix("torch.")
        for key, value in values.items()
        if fit.tensors[key].dtype != value.dtype
    }
    if stored:
        fit.notes.append(f"stored as {', '.join(sorted(stored))}, converted to the model's type")
    broken = [key for key, value in values.items() if not torch.isfinite(value).all()]
    if broken:
        fit.notes.append("NaN or infinite values (did training diverge?) in " + first_few(broken))


def _whose(fit: Fit) -> str:
    name = fit.checkpoint.model_name
    return f" (the checkpoint is of {name})" if name else ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _listed(title: str, entries: list[str], count: int = 10) -> str:
    """A count, a title and the first entries, one a line; empty for none."""
    if not entries:
        return ""
    more = [f"... and {len(entries) - count} more"] if len(entries) > count else []
    return "\n    ".join([f"  {len(entries)} {title}:", *entries[:count], *more])


def _like(fit: Fit, key: str) -> Tensor:
    """A tensor of the checkpoint as the model stores it: dense, and of its type."""
    tensor, wanted = fit.tensors[key], fit.wanted[key]
    try:
        if tensor.is_meta or (tensor.is_complex() and not wanted.is_complex()):
            raise fit.fails(f"{key} holds no plain numbers ({tensor.dtype} on {tensor.device})")
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        return tensor.to(wanted.dtype)
    except (RuntimeError, NotImplementedError) as error:
        raise fit.fails(f"{key} ({tensor.dtype}) cannot be converted: {error}") from None


def say(line: str) -> None:
    """One line on stderr, from the first process of a distributed run alone."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


_licences_said: set[str] = set()


def _say_licence(row: PublishedWeights) -> None:
    """The licence of public weights, once a process."""
    if str(row) not in _licences_said:
        _licences_said.add(str(row))
        restriction = " (not for commercial use)" if "NC" in row.licence else ""
        say(
            f"{row}: these weights are licensed {row.licence}{restriction}; "
            f"trained on {row.trained_on}"
        )
