"""Stage 4: video files -> ranked labels, with times for long ones.

    predictor = Predictor.load("runs/mine/checkpoints/best.pyth")   # or "hiera_base_16x224"
    print(predictor("clip.mp4"))
    for window in predictor.timeline("long.mp4", seconds=5):
        print(window.start, window.labels[0])

Decoding, sampling, views and softmax are those of the test (`data/views.py`, `scoring.py`), so the
labels of a video are what the test counted.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.classes import match_classes
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.manifests.layouts import read_class_names
from hiera_video.data.views import Reader, parse_views, read_test_views, read_views
from hiera_video.errors import RunFailed, UserError, WeightsError, first_few
from hiera_video.labels import load_labels
from hiera_video.models import build_model
from hiera_video.models.weights.load import (
    PUBLISHED,
    Checkpoint,
    PublishedWeights,
    bundled,
    fetch,
    load_weights,
    names_for,
    resolve,
)
from hiera_video.models.weights.published import IMAGE_CLIPS, VIDEO_CLIPS
from hiera_video.registry import MODEL_REGISTRY
from hiera_video.scoring import (
    choose_device,
    choose_dtype,
    require_fitting_clips,
    takes_any_crop,
    takes_images,
    view_scores,
)
from hiera_video.video.crops import check_num_crops
from hiera_video.video.decode import open_video
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.guarded_video import GuardedVideo
from hiera_video.video.sampling import window_clips

DEFAULT_MODEL = "hiera_base_16x224"

OnProgress = Callable[[float], None]
"""Called with the share of a video's work that is done, 0 to 1."""


# ---- results ----


@dataclass(frozen=True)
class Label:
    """One class and its score, a probability in [0, 1]."""

    label: str
    score: float

    def __str__(self) -> str:
        return f"{self.score:7.2%}  {self.label}"

    def to_dict(self) -> dict[str, Any]:
        return {"score": self.score, "label": self.label}


@dataclass(frozen=True)
class Window:
    """The labels of one stretch of a video; times in seconds from its first frame."""

    start: float
    end: float
    labels: tuple[Label, ...]

    def to_dict(self) -> dict[str, Any]:
        labels = [label.to_dict() for label in self.labels]
        return {"start": self.start, "end": self.end, "labels": labels}


@dataclass
class Prediction:
    """What is known of one file: its labels in falling order, or why there are none."""

    file: str
    labels: list[Label] = field(default_factory=list)
    timeline: list[Window] | None = None
    """None where no timeline was asked for."""
    error: str | None = None
    model: str = ""
    weights: str = ""
    views: str = ""
    """Temporal views x spatial crops, "5x3"."""

    def to_dict(self) -> dict[str, Any]:
        """The object of `--json`: plain lists, strings and numbers."""
        timeline = None if self.timeline is None else [w.to_dict() for w in self.timeline]
        return {
            "file": self.file,
            "labels": [label.to_dict() for label in self.labels],
            "timeline": timeline,
            "error": self.error,
            "model": self.model,
            "weights": self.weights,
            "views": self.views,
        }

    def __repr__(self) -> str:
        lines = [f"Prediction({self.file!r}, {self.model}, {self.views} views)"]
        lines += [f"  {rank:2d} {label}" for rank, label in enumerate(self.labels, 1)]
        if self.timeline is not None:
            lines.append(f"  timeline of {len(self.timeline)} windows")
        if self.error is not None:
            lines.append(f"  error: {self.error}")
        return "\n".join(lines)


# ---- the predictor ----


class Predictor:
    """A model with all it needs to label a video file: path in, `Prediction` out.

    Args:
        model: returns logits [B, num_classes]; it is put into eval mode and moved to `device`.
        spec: how the model's clips are sampled, cropped and normalised.
        classes: names of the outputs, in their order.
        views: temporal views x spatial crops, (5, 3) or "5x3"; scores are averaged over them.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1".
        dtype: "auto" (float32 on a CPU; bfloat16 or float16 on a GPU), "fp32", "fp16", "bf16".
        batch_size: most views per forward pass; any value gives the same scores.
        decoder: "auto" or the name of one, see `data/decode.py`.
        multi_label: the model was trained with a yes or no per class: sigmoid, not softmax.
        process: reads the files (`decoding_process`), so that one which crashes or hangs a
            decoder is an error like others; None: they are read here.
        model_name, weights_name: what results say they come from.
        warn: called with each line the user should read; stderr by default.

    Raises:
        UserError: settings that are not possible or do not fit each other.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        spec: ClipSpec,
        classes: Sequence[str],
        views: tuple[int, int] = (5, 3),
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 4,
        decoder: str = "auto",
        multi_label: bool = False,
        process: GuardedPool | None = None,
        model_name: str = "",
        weights_name: str = "",
        warn: Callable[[str], None] | None = None,
    ) -> None:
        _check_kinds(model, spec, classes, process)
        num_views, num_crops = _checked_views(views)
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1 view per forward pass")
        _check_fits(model, spec, classes)
        self.device = choose_device(device)
        survive_a_fork(self.device, warn or _say)
        self.dtype, slow = choose_dtype(dtype, self.device)
        if slow:
            (warn or _say)(f"warning: {slow}")
        self.model = model.to(self.device).eval()
        self.spec = spec
        self.classes = list(classes)
        self.views = (num_views, num_crops)
        self.batch_size = batch_size
        self.decoder = decoder
        self.multi_label = multi_label
        self.process = process
        self.model_name = model_name or type(model).__name__
        self.weights_name = weights_name
        self._warn = warn or _say

    @classmethod
    def load(
        cls,
        model: str | os.PathLike | None = None,
        weights: str | os.PathLike | None = None,
        labels: str | os.PathLike | None = None,
        *,
        spec: ClipSpec | None = None,
        model_kwargs: dict[str, Any] | None = None,
        warn: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> Predictor:
        """Build a predictor from names and files.

            Predictor.load("runs/mine/checkpoints/best.pyth")
            Predictor.load("hiera_large_16x224")
            Predictor.load("hiera_large_16x224", "my_weights.pth", labels="names.txt")

        Args:
            model: a registered name. Anything else is taken for `weights`, if those are not named
                besides: a file, an address, a published name, "camera_motion". None takes the model
                that the weights are for.
            weights: a checkpoint file, an address, a published name, or the name of a model for its
                published classifier. None: the published Kinetics-400 weights of `model`; if no
                model is named either and those can be neither found nor fetched, the small model
                that comes with the package, with a warning. Weights that are named are never
                replaced by others.
            labels: file of class names, or the name of a known list: what the outputs are called,
                in their order. Where the checkpoint knows the names of its outputs, they are a
                translation, and the order is the checkpoint's. None: from the checkpoint.
            spec: replaces the sampling and normalisation that come with the weights.
            model_kwargs: further arguments of the model's builder.
            warn: called with each line the user should read; stderr by default.
            settings: `views`, `device`, `dtype`, `batch_size`, `decoder`, `multi_label`, `process`.

        Raises:
            UserError, WeightsError: unknown names, missing or unfit files.
        """
        warn = warn or _say
        model, weights = _model_and_weights(model, weights)
        device = choose_device(settings.get("device", "auto"))
        choose_dtype(settings.get("dtype", "auto"), device)  # a typing error before a download
        survive_a_fork(device, warn)
        names = None if labels is None else _read_labels(labels)
        if weights is not None:
            checkpoint, published = _resolve(weights, model)
            weights_name = checkpoint.label
        else:
            checkpoint, published, weights_name = _default_weights(model, warn)
        name = _model_name(model, checkpoint)
        built = _build(name, checkpoint, published, model_kwargs or {}, warn)
        settings.setdefault("multi_label", checkpoint.multi_label)
        return cls(
            built,
            spec=spec or checkpoint.spec or _usual_spec(built, name, checkpoint, warn),
            classes=_class_names(built, names, labels, checkpoint, warn),
            model_name=name,
            weights_name=weights_name,
            warn=warn,
            **settings,
        )

    def __call__(
        self, path: str | os.PathLike, *, top_k: int = 5, on_progress: OnProgress | None = None
    ) -> Prediction:
        """Label a whole video, as the test does.

        Raises DecodeError for a file that cannot be decoded, RunFailed if the model cannot be run
        on it, UserError for what is no path.
        """
        _check_path(path)
        if top_k < 1:
            raise UserError(f"top_k={top_k} must be at least 1 label")
        survive_a_fork(self.device, self._warn)
        with self._open(path) as reader:
            clips = read_test_views(reader, self.spec, *self.views)
        done = 0

        def advance(views_done: int) -> None:
            nonlocal done
            done += views_done
            if on_progress is not None:
                on_progress(done / len(clips))

        return replace(self.blank(path), labels=self._rank(self._scores(clips, advance), top_k))

    def timeline(
        self,
        path: str | os.PathLike,
        seconds: float,
        *,
        top_k: int = 5,
        on_progress: OnProgress | None = None,
    ) -> Iterator[Window]:
        """Labels of each window of `seconds` of a video, one by one, in bounded memory.

        See `data.sampling.window_clips` for where windows begin and end and which clips stand for
        them. Raises as calling the predictor does, after the windows that could be labelled.
        """
        _check_path(path)
        num_views, num_crops = self.views
        survive_a_fork(self.device, self._warn)
        with self._open(path) as reader:
            info = reader.info
            for window in window_clips(info.times, info.fps, self.spec, seconds, num_views):
                clips = read_views(reader, window.views, self.spec, num_crops)
                labels = tuple(self._rank(self._scores(clips), top_k))
                yield Window(start=window.start, end=window.end, labels=labels)
                if on_progress is not None:
                    on_progress(min(window.end / max(info.duration, window.end), 1.0))

    def _open(self, path: str | os.PathLike) -> Reader:
        if self.process is None:
            return open_video(path, self.decoder)
        return GuardedVideo(path, self.process, self.decoder)

    def blank(self, path: str | os.PathLike, error: str | None = None) -> Prediction:
        """A `Prediction` for `path` without labels: the start of one, or a file that failed."""
        num_views, num_crops = self.views
        return Prediction(
            file=os.fspath(path),
            error=error,
            model=self.model_name,
            weights=self.weights_name,
            views=f"{num_views}x{num_crops}",
        )

    def __repr__(self) -> str:
        num_views, num_crops = self.views
        return (
            f"Predictor({self.model_name}, weights={self.weights_name!r}, "
            f"classes={len(self.classes)}, views={num_views}x{num_crops}, "
            f"device={self.device}, dtype={self.dtype})"
        )

    def _scores(self, clips: Tensor, on_views: Callable[[int], None] | None = None) -> Tensor:
        try:
            scores = view_scores(
                self.model,
                clips,
                batch_size=self.batch_size,
                device=self.device,
                dtype=self.dtype,
                multi_label=self.multi_label,
                on_views=on_views,
            )
        except torch.OutOfMemoryError as error:
            raise RunFailed(
                f"out of GPU memory with {self.batch_size} views per forward pass; "
                "try --batch-size 1, or --device cpu"
            ) from error
        if not torch.isfinite(scores).all():
            raise RunFailed(
                f"the model's scores are not finite in {self.dtype}; try --dtype fp32, "
                "and if that gives the same, other weights"
            )
        return scores

    def _rank(self, scores: Tensor, top_k: int) -> list[Label]:
        if len(scores) != len(self.classes):
            raise UserError(
                f"{len(self.classes)} class names for a model with {len(scores)} outputs"
            )
        best = scores.topk(min(top_k, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Label(self.classes[index], score) for index, score in pairs]


# ---- processes ----

_used_in: int | None = None
"""The process that made the first predictor: the one whose threads compute."""

_noted_in: int | None = None


def survive_a_fork(device: torch.device, warn: Callable[[str], None]) -> None:
    """Make this process, where it was forked from one that has used a predictor, fit to use one.

    A fork (gunicorn --preload, multiprocessing's Pool) copies models and none of PyTorch's threads,
    which the next forward pass would then wait for without end: here it is computed on one.
    Raises RunFailed where the GPU belongs to the parent process, for that cannot be shared.
    """
    global _used_in, _noted_in
    if _used_in is None:
        _used_in = os.getpid()
    if _used_in == os.getpid():
        return
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise RunFailed(
            "this process was forked from one that uses the GPU, and cannot use it then; start it "
            "with spawn, or load the predictor only after the fork"
        )
    torch.set_num_threads(1)  # at every call: what counts is the thread that computes
    if _noted_in != os.getpid():
        _noted_in = os.getpid()
        warn(
            "note: this process was forked from one that has used a predictor, and computes on "
            "one thread; to use more, start it with spawn, or load the predictor only after the "
            "fork"
        )


# ---- loading ----


def _model_and_weights(
    model: str | os.PathLike | None, weights: str | os.PathLike | None
) -> tuple[str | None, str | os.PathLike | None]:
    """Which of the two arguments of `Predictor.load` names what.

    People give the one thing that they have, a checkpoint or the name of a model, in the first
    place or as `weights`.
    """
    if weights is None and model is not None and not _is_model(model):
        return None, model
    if model is None and _is_model(weights):
        return weights, None
    return model, weights


def _is_model(name: Any) -> bool:
    """Whether this is a registered model's name, and not a file of the same name."""
    return isinstance(name, str) and name in MODEL_REGISTRY and not os.path.exists(name)


def _resolve(
    weights: str | os.PathLike, model: str | None
) -> tuple[Checkpoint, PublishedWeights | None]:
    """`resolve`; where nothing of that name exists, the models that are called nearly so, too."""
    if not isinstance(weights, str | os.PathLike):
        raise UserError(
            f"weights is a {type(weights).__name__}; name a checkpoint file, an address, published "
            "weights or a model. For a model that is built already: Predictor(model, spec=..., "
            "classes=...)"
        )
    try:
        return resolve(weights, model)
    except WeightsError as error:
        near = difflib.get_close_matches(os.fspath(weights), MODEL_REGISTRY.names(), n=3)
        if not near or model is not None:
            raise
        raise WeightsError(f"{error}. Models of nearly this name: {', '.join(near)}") from None


def _default_weights(
    model: str | None, warn: Callable[[str], None]
) -> tuple[Checkpoint, PublishedWeights | None, str]:
    """The published fine-tuned weights of `model`; without a model and a network, the bundled."""
    name = model or DEFAULT_MODEL
    MODEL_REGISTRY.get(name)  # an unknown name is answered with its neighbours
    trained = [PUBLISHED[name, weights] for weights in names_for(name)]
    trained = [row for row in trained if row.num_classes is not None]
    if not trained:
        raise UserError(f"{name} has no published classifier; name a checkpoint with --weights")
    try:
        fetch(trained[0].url)
    except WeightsError as error:
        packaged = bundled() if model is None else {}
        if not packaged:
            raise
        checkpoint, _ = resolve(next(iter(packaged)))
        warn(_bundled_warning(checkpoint, trained[0], error))
        return checkpoint, None, checkpoint.label
    checkpoint, published = resolve(str(trained[0]), name)
    return checkpoint, published, checkpoint.label


def _bundled_warning(checkpoint: Checkpoint, wanted: PublishedWeights, error: Exception) -> str:
    classes = checkpoint.classes or []
    lines = [
        "WARNING: these labels are NOT Kinetics labels.",
        f"The weights {wanted} cannot be downloaded:",
        *str(error).splitlines(),
        "In their place the small model that comes with this package is used",
        f"({checkpoint.model_name}). It knows {len(classes)} classes and no others:",
        ", ".join(classes),
        "Name weights with --weights to get other labels.",
    ]
    rule = "!" * 79
    return "\n".join([rule, *(f"!! {line}" for line in lines), rule])


def _model_name(model: str | None, checkpoint: Checkpoint) -> str:
    stored = checkpoint.model_name
    if model is None and stored is None:
        raise UserError(
            f"{checkpoint.label} does not say which model it is for; add --model NAME "
            "(names: python -c 'import hiera_video; print(hiera_video.list_models())')"
        )
    if model is None or stored is None:
        return model or stored
    if MODEL_REGISTRY.get(model) is not MODEL_REGISTRY.get(stored):
        raise UserError(f"{checkpoint.label} is for {stored}, not for {model}; drop --model")
    return model


def _build(
    name: str,
    checkpoint: Checkpoint,
    published: PublishedWeights | None,
    model_kwargs: dict[str, Any],
    warn: Callable[[str], None],
) -> nn.Module:
    """The model with its weights in it; refused without a trained classifier."""
    untrained = published is not None and published.num_classes is None
    if checkpoint.is_autoencoder or untrained:
        raise WeightsError(
            f"{checkpoint.label} has no trained classifier (it is the result of pretraining); "
            "fine-tune it first, or name fine-tuned weights with --weights"
        )
    arguments = {**checkpoint.model_kwargs, **model_kwargs}
    num_classes = checkpoint.num_classes or arguments.pop("num_classes", None)
    arguments.pop("num_classes", None)
    model = build_model(name, num_classes=num_classes, **arguments)
    report = load_weights(model, checkpoint)
    if report.missing:
        raise WeightsError(
            f"{checkpoint.label} has no trained values for {', '.join(report.missing[:4])}; "
            "labels would be random"
        )
    for note in report.notes:
        warn(f"{checkpoint.label}: {note}")
    return model


def _usual_spec(
    model: nn.Module, name: str, checkpoint: Checkpoint, warn: Callable[[str], None]
) -> ClipSpec:
    """Sampling for weights that do not say theirs: that of the public weights of this model, else
    Hiera's own, at the model's input size."""
    published = [PUBLISHED[name, weights].spec for weights in names_for(name)]
    usual = published[0] if published else IMAGE_CLIPS if takes_images(model) else VIDEO_CLIPS
    frames, size = 1, tuple(getattr(model, "input_size", (16, 224, 224)))
    if not takes_images(model):
        frames = size[0]
    crop = max(usual.crop_size, size[-1]) if takes_any_crop(model) else size[-1]
    spec = replace(usual, num_frames=frames, crop_size=crop)
    warn(
        f"{checkpoint.label} does not say how its clips are sampled and normalised; taking "
        f"{spec.num_frames}x{spec.sampling_rate} at {spec.target_fps:g} fps, mean {spec.mean}, "
        f"std {spec.std}"
    )
    return spec


def _read_labels(labels: str | os.PathLike) -> list[str]:
    """Class names from a file, or those of a known data set by its name."""
    if os.path.exists(labels):
        return read_class_names(labels)
    try:
        return load_labels(os.fspath(labels))
    except UserError as error:
        raise UserError(f"--labels {os.fspath(labels)}: no such file, and {error}") from None


def _class_names(
    model: nn.Module,
    names: list[str] | None,
    labels: str | os.PathLike | None,
    checkpoint: Checkpoint,
    warn: Callable[[str], None],
) -> list[str]:
    """Names of the outputs: the checkpoint's, in the words of --labels where that is given."""
    outputs = getattr(model, "num_classes", None)
    known, guess = checkpoint.classes, checkpoint.classes_guessed
    if names is not None:
        if outputs is not None and len(names) != outputs:
            raise UserError(
                f"{os.fspath(labels)} names {len(names)} classes, the model has {outputs}"
            )
        return _renamed(known, names, labels, checkpoint, warn) if known and not guess else names
    if known:
        if guess:
            warn(
                f"warning: {checkpoint.label} has no class names; its {outputs} outputs are read "
                f"as those of {guess}, the usual ones of this model (other names: --labels FILE)"
            )
        return known
    if outputs is None:
        raise UserError(f"{checkpoint.label} has no class names; give them with --labels FILE")
    warn(f"warning: {checkpoint.label} has no class names; numbers stand for them (--labels FILE)")
    return [f"class {index}" for index in range(outputs)]


def _renamed(
    known: list[str],
    names: list[str],
    labels: str | os.PathLike,
    checkpoint: Checkpoint,
    warn: Callable[[str], None],
) -> list[str]:
    """What to call outputs whose names the checkpoint knows: --labels may translate these names.

    It may not move them. Where it holds the same names in another order, each output keeps its
    own; where only some names stand in another place, nobody knows what was meant.
    """
    file = os.fspath(labels)
    match = match_classes(known, names)
    if match.same_names and not match.same_order:
        warn(
            f"{file} has the classes of {checkpoint.label} in another order; that of the "
            "checkpoint counts"
        )
        return [names[match.rows.index(row)] for row in range(len(known))]
    moved = [i for i, row in enumerate(match.rows) if row is not None and row != i]
    if moved:
        first = moved[0]
        raise UserError(
            f"{file} calls output {first} {names[first]!r}, which is output {match.rows[first]} of "
            f"{checkpoint.label}; output {first} is {known[first]!r}. Leave --labels out, or give "
            "its names in the order of the outputs"
        )
    pairs = [f"{old} -> {new}" for old, new in zip(known, names, strict=True) if old != new]
    if pairs:
        warn(
            f"{file} renames {len(pairs)} of the {len(known)} classes of {checkpoint.label}: "
            f"{first_few(pairs, 3)}"
        )
    return names


def _check_kinds(model: Any, spec: Any, classes: Any, process: Any) -> None:
    """Refuse what is not even of the right kind, and say what is."""
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model is a {type(model).__name__}; Predictor takes a torch.nn.Module. "
            "Predictor.load takes names and files"
        )
    if not isinstance(spec, ClipSpec):
        raise UserError(f"spec is a {type(spec).__name__}; it must be a hiera_video.ClipSpec")
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise UserError(
            f"classes is a {type(classes).__name__}; it must be a list of names, one per output"
        )
    if process is not None and not callable(getattr(process, "call", None)):
        raise UserError(
            f"process is a {type(process).__name__}; it must be what "
            "hiera_video.video.decoding_process.decoding_process() returns, or None to read "
            "videos here"
        )


def _checked_views(views: Any) -> tuple[int, int]:
    """(temporal views, spatial crops) from a pair or from "5x3"; UserError for anything else."""
    if isinstance(views, str):
        return parse_views(views)
    pair = tuple(views) if isinstance(views, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(n, int) for n in pair):
        raise UserError(f"views={views!r} must be (temporal views, spatial crops), such as (5, 3)")
    if pair[0] < 1:
        raise UserError(f"views={views}: at least 1 temporal view")
    check_num_crops(pair[1])
    return pair


def _check_path(path: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise UserError(
            f"a {type(path).__name__} is no path: give one video at a time, as a string or Path"
        )


def _check_fits(model: nn.Module, spec: ClipSpec, classes: Sequence[str]) -> None:
    """Refuse a model, a clip and names that do not go together, before any video is read."""
    require_fitting_clips(model, spec)
    outputs = getattr(model, "num_classes", None)
    if outputs is not None and len(classes) != outputs:
        raise UserError(f"{len(classes)} class names for a model with {outputs} outputs")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
