"""Label video files: ranked labels, and for long videos labels of each stretch of time.

    predictor = Predictor.load("runs/mine/checkpoints/best.pyth")   # or "hiera_base_16x224"
    print(predictor("clip.mp4"))
    for window in predictor.timeline("long.mp4", seconds=5):
        print(window.start, window.labels[0])

Decoding, sampling, views and softmax are those of the test (`data/views.py`, `scoring.py`), so a
video gets the labels that the test counted. `classifier.py` finds the model and its weights.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hiera_video.batched_scores import BatchedScores
from hiera_video.classifier import load_classifier
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.transforms.normalize import normalize_clips
from hiera_video.data.views import Reader, parse_views, read_shared_crops, views_of
from hiera_video.errors import DecodeError, RunFailed, UserError
from hiera_video.explanation.explain import Explanation, VideoViews, explain_views
from hiera_video.export.on_demand import load_in_runtime
from hiera_video.models.contract import takes_boxes
from hiera_video.prediction import Label, Prediction, Window
from hiera_video.scoring import (
    ScoreSettings,
    choose_device,
    choose_dtype,
    require_fitting_clips,
    view_scores,
)
from hiera_video.video.crops import check_num_crops, crop_areas
from hiera_video.video.decode import open_video
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.guarded_video import MOST_BYTES, GuardedVideo, ViewRequest, read_ahead
from hiera_video.video.sampling import Indices, window_clips
from hiera_video.video.view_crops import ViewCrops

USUAL_BATCH = {"cpu": 4, "cuda": 32}
"""Kind of device -> views per forward pass, unless the user says another number."""

T = TypeVar("T")

OnProgress = Callable[[float], None]
"""Called with the fraction of a video's work that is done, 0 to 1."""


class Predictor:
    """Labels video files with a model: path in, `Prediction` out.

    Args:
        model: returns logits [B, num_classes]; it is put into eval mode and moved to `device`.
        spec: how the model's clips are sampled, cropped and normalised.
        classes: names of the outputs, in their order.
        views: temporal views x spatial crops, (5, 3) or "5x3"; scores are averaged over them.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1".
        dtype: "auto" (float32 on a CPU; bfloat16 or float16 on a GPU), "fp32" (on a GPU with
            products in TF32, see `scoring.tf32_products`), "fp16", "bf16".
        batch_size: most views per forward pass; any value gives the same scores, but for rounding.
            None: 4 on a CPU; on a GPU 32, or fewer where the memory is full.
        decoder: "auto" or the name of one, see `video/decode.py`.
        multi_label: the model was trained with a yes or no per class: sigmoid, not softmax.
        process: child processes that read the files (`video.decoding_process`), so that
            a file that crashes or hangs a decoder raises DecodeError. None: read them here.
        model_name: for the results.
        weights_name: for the results.
        warn: called with each line that the user should read; stderr by default.

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
        batch_size: int | None = None,
        decoder: str = "auto",
        multi_label: bool = False,
        process: GuardedPool | None = None,
        model_name: str = "",
        weights_name: str = "",
        warn: Callable[[str], None] | None = None,
    ) -> None:
        _check_types(model, spec, classes, process)
        num_views, num_crops = _checked_views(views)
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1 view per forward pass")
        _check_fits(model, spec, classes)
        self.device = choose_device(device)
        self._warn = warn or _print_to_stderr
        prepare_after_fork(self.device, self._warn)
        self.dtype, slow = choose_dtype(dtype, self.device)
        if slow:
            self._warn(f"warning: {slow}")
        self.model = model.to(self.device).eval()
        self.spec = spec
        self.classes = list(classes)
        self.views = (num_views, num_crops)
        self.batch_size = batch_size or USUAL_BATCH[self.device.type]
        self._smaller_batches = batch_size is None
        self.decoder = decoder
        self.multi_label = multi_label
        self.process = process
        self.model_name = model_name or type(model).__name__
        self.weights_name = weights_name

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        labels: str | os.PathLike[str] | None = None,
        *,
        spec: ClipSpec | None = None,
        model_kwargs: dict[str, Any] | None = None,
        runtime: str = "auto",
        warn: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> Predictor:
        """Build a predictor from names and files.

            Predictor.load("runs/mine/checkpoints/best.pyth")
            Predictor.load("hiera_large_16x224")
            Predictor.load("hiera_large_16x224", "my_weights.pth", labels="names.txt")

        Args:
            model: a registered name. Without `weights`, anything else is taken as them: a file, an
                address, a published name, "camera_motion". None: the model that the weights are
                for.
            weights: a checkpoint file, an address, a published name, or the name of a model for its
                published classifier; or a file that `hiera-video export` wrote. None: the
                published Kinetics-400 weights of `model`. If no
                model is named either, and those cannot be downloaded: the small model that comes
                with the package, with a warning. Named weights are never replaced by others.
            labels: file of class names, or the name of a known list: the names of the outputs, in
                their order. Where the checkpoint has names for its outputs, these translate them,
                and the order stays the checkpoint's. None: the checkpoint's names.
            spec: replaces the sampling and normalisation that come with the weights.
            model_kwargs: further arguments of the model's builder.
            runtime: what computes: "torch", "onnx" (ONNX Runtime) or "openvino", each on a CPU but
                for torch. Weights are exported once, into the cache. "auto": the fastest that
                `hiera-video doctor --measure` found for such weights on this machine, PyTorch where
                nothing was measured, and for an exported file what the file is for.
            warn: called with each line that the user should read; stderr by default.
            settings: `views`, `device`, `dtype`, `batch_size`, `decoder`, `multi_label`, `process`.

        Raises:
            UserError, WeightsError: unknown names, missing or unfit files.
        """
        warn = warn or _print_to_stderr
        # A mistyped name is an error here, before a download.
        device = choose_device(settings.get("device", "auto"))
        choose_dtype(settings.get("dtype", "auto"), device)
        prepare_after_fork(device, warn)
        found = load_in_runtime(
            runtime,
            (model, weights, labels),
            settings,
            lambda: load_classifier(
                model, weights, labels, spec=spec, model_kwargs=model_kwargs or {}, warn=warn
            ),
            warn,
        )
        if takes_boxes(found.model):
            warn(
                f"{found.weights} scores boxes, and the whole picture is taken as one here; "
                "hiera-video detect labels the people in it"
            )
        settings.setdefault("multi_label", found.multi_label)
        return cls(
            found.model,
            spec=spec or found.spec,
            classes=found.classes,
            model_name=found.name,
            weights_name=found.weights,
            warn=warn,
            **settings,
        )

    def __call__(
        self, path: str | os.PathLike[str], *, top_k: int = 5, on_progress: OnProgress | None = None
    ) -> Prediction:
        """Label a whole video, as the test does: the `top_k` classes of highest score.

        Raises DecodeError for a file that cannot be decoded, RunFailed if the model cannot be run
        on it, UserError for anything that is not a path.
        """
        _check_path(path)
        if top_k < 1:
            raise UserError(f"top_k={top_k} must be at least 1 label")
        prepare_after_fork(self.device, self._warn)
        with self._open(path) as reader:
            clips = self._clips(reader, views_of(reader, self.spec, self.views[0]))
        done = 0

        def advance(views_done: int) -> None:
            nonlocal done
            done += views_done
            if on_progress is not None:
                on_progress(done / len(clips))

        return replace(self.blank(path), labels=self._rank(self._scores(clips, advance), top_k))

    def timeline(
        self,
        path: str | os.PathLike[str],
        seconds: float,
        *,
        top_k: int = 5,
        on_progress: OnProgress | None = None,
    ) -> Iterator[Window]:
        """Yield the labels of each window of `seconds` of a video, in bounded memory.

        `video.sampling.window_clips` says where windows begin and end, and which clips are scored
        for them. Raises what a call of the predictor raises, after the windows before the error.
        """
        _check_path(path)
        num_views, _ = self.views
        prepare_after_fork(self.device, self._warn)
        with self._open(path) as reader:
            info = reader.info
            for window in window_clips(info.times, info.fps, self.spec, seconds, num_views):
                clips = self._clips(reader, window.views)
                labels = tuple(self.label_clips(clips, top_k=top_k))
                yield Window(start=window.start, end=window.end, labels=labels)
                if on_progress is not None:
                    on_progress(min(window.end / max(info.duration, window.end), 1.0))

    def explain(
        self,
        path: str | os.PathLike[str],
        *,
        label: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Explanation:
        """Show why a video has a label: what in the clip that speaks most for it does so.

        Args:
            path: the video.
            label: one of `classes`; None: the video's first label.
            on_progress: called with the fraction of the work that is done.

        Raises what a call of the predictor raises, and UserError for another label and for an
        exported file, which has no gradients.
        """
        _check_path(path)
        prepare_after_fork(self.device, self._warn)
        with self._open(path) as reader:
            views = views_of(reader, self.spec, self.views[0])
            read = VideoViews(
                os.fspath(path),
                self._clips(reader, views),
                reader.info.times[views],
                crop_areas(
                    reader.info.height, reader.info.width, self.spec.crop_size, self.views[1]
                ),
            )
        try:
            return explain_views(
                self.model, read, self._settings(), self.classes, label, on_progress
            )
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error

    def label_clips(self, clips: Tensor, *, top_k: int = 5) -> list[Label]:
        """Rank the labels of clips uint8 [V, 3, T, H, W] of one video, by their mean scores."""
        return self._rank(self._scores(clips), top_k)

    def label_files(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        top_k: int = 5,
        on_progress: OnProgress | None = None,
    ) -> Iterator[Prediction]:
        """Label many files: yield a `Prediction` for each, in their order.

        Faster than one call for each: the processes of `process` read the next files while the
        model works, and on a GPU views of several files share forward passes. Memory is bounded.
        A file that cannot be labelled has an `error`; the others are not disturbed.

        on_progress: called with the number of files that are done, a started one as its share.
        Raises UserError for anything that is not a path.
        """
        names = (os.fspath(path) for path in map(_checked_path, paths))
        for name, found in self.label_read(
            self._read_all(names), top_k=top_k, on_progress=on_progress
        ):
            if isinstance(found, str):
                yield self.blank(name, found)
            else:
                yield replace(self.blank(name), labels=found)

    def label_read(
        self,
        read: Iterable[tuple[T, ViewCrops | DecodeError]],
        *,
        top_k: int = 5,
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[T, list[Label] | str]]:
        """`label_files` for whoever reads the files: labels of crops, or why there are none.

        read: pairs of anything and the crops of a video's views; the first comes out beside the
        labels, in the same order.
        """
        if top_k < 1:
            raise UserError(f"top_k={top_k} must be at least 1 label")
        prepare_after_fork(self.device, self._warn)
        done = 0.0

        def advance(key: T, share: float) -> None:
            nonlocal done
            done += share
            if on_progress is not None:
                on_progress(done)

        queue = BatchedScores(
            self.model,
            self._settings(),
            self.device,
            on_clips=advance,
            smaller=self._smaller_batch,
        )
        for key, crops in read:
            if isinstance(crops, ViewCrops):
                queue.add(key, crops.stacked(pinned=self.device.type == "cuda"))
            else:
                queue.add(key, crops)
                advance(key, 1.0)
            for which, outcome in queue.finished():
                yield which, self._labels_or_reason(outcome, top_k)
        for which, outcome in queue.finished(wait=True):
            yield which, self._labels_or_reason(outcome, top_k)

    def _read_all(self, names: Iterable[str]) -> Iterator[tuple[str, ViewCrops | DecodeError]]:
        """Yield (name, views) of each file, in their order."""
        if isinstance(self.process, GuardedPool):
            request = ViewRequest(self.spec, *self.views, self.decoder)
            if request.most_bytes <= MOST_BYTES:
                kept, handed = itertools.tee(names)
                yield from zip(kept, read_ahead(handed, request, self.process), strict=True)
                return
        for name in names:
            try:
                with self._open(name) as reader:
                    views = views_of(reader, self.spec, self.views[0])
                    yield name, read_shared_crops(reader, views, self.spec, self.views[1])
            except DecodeError as error:
                yield name, error

    def _labels_or_reason(self, outcome: Tensor | Exception, top_k: int) -> list[Label] | str:
        """What came out for one of many videos."""
        try:
            if isinstance(outcome, torch.OutOfMemoryError):
                raise self._out_of_memory() from outcome
            if isinstance(outcome, Exception):
                raise outcome
            return self._rank(self._checked(outcome), top_k)
        except DecodeError as error:
            return error.reason
        except RunFailed as error:
            return str(error)

    def _open(self, path: str | os.PathLike[str]) -> Reader:
        if self.process is None:
            return open_video(path, self.decoder)
        return GuardedVideo(path, self.process, self.decoder)

    def _clips(self, reader: Reader, views: Indices) -> Tensor:
        """The clips of an open video as they travel to the device: uint8 [V, 3, T, H, W]."""
        crops = read_shared_crops(reader, views, self.spec, self.views[1])
        return crops.stacked(pinned=self.device.type == "cuda")

    def blank(self, path: str | os.PathLike[str], error: str | None = None) -> Prediction:
        """Return a `Prediction` for `path` without labels, to be filled in or for a failed file."""
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

    def _settings(self) -> ScoreSettings:
        prepare = functools.partial(normalize_clips, spec=self.spec)
        return ScoreSettings(self.batch_size, self.dtype, self.multi_label, prepare)

    def _scores(self, clips: Tensor, on_views: Callable[[int], None] | None = None) -> Tensor:
        """Score the views uint8 [V, 3, T, H, W] of one video: float32 [num_classes]."""
        while True:
            try:
                scores = view_scores(
                    self.model, clips, self._settings(), device=self.device, on_views=on_views
                )
                return self._checked(scores)
            except torch.OutOfMemoryError as error:
                if self._smaller_batch() is None:
                    raise self._out_of_memory() from error

    def _smaller_batch(self) -> int | None:
        """Halve the batch after the GPU's memory was full, unless the user chose it; None: no."""
        if not self._smaller_batches or self.batch_size == 1:
            return None
        self.batch_size //= 2
        self._warn(f"note: the GPU's memory is full; {self.batch_size} views per forward pass now")
        torch.cuda.empty_cache()
        return self.batch_size

    def _out_of_memory(self) -> RunFailed:
        return RunFailed(
            f"out of GPU memory with {self.batch_size} views per forward pass; "
            "try --batch-size 1, or --device cpu"
        )

    def _checked(self, scores: Tensor) -> Tensor:
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
"""Id of the process that made the first predictor, the one that has PyTorch's threads."""

_noted_in: int | None = None
"""Id of the forked process that was told that it computes on one thread."""


def prepare_after_fork(device: torch.device, warn: Callable[[str], None]) -> None:
    """Let a process that was forked from one with a predictor use predictors too, on one thread.

    A fork (gunicorn --preload, multiprocessing's Pool) copies the models but not PyTorch's threads,
    and the next forward pass would wait for these for ever. In other processes this does nothing.
    Raises RunFailed where the parent process uses the GPU, which cannot be shared.
    """
    global _used_in, _noted_in
    if _used_in is None:
        _used_in = os.getpid()
    if _used_in == os.getpid():
        return
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise RunFailed(
            "this process was forked from one that uses the GPU, so it cannot use the GPU; start "
            "it with spawn, or load the predictor only after the fork"
        )
    torch.set_num_threads(1)  # at every call: what counts is the thread that computes
    if _noted_in != os.getpid():
        _noted_in = os.getpid()
        warn(
            "note: this process was forked from one that has used a predictor, and computes on "
            "one thread; to use more, start it with spawn, or load the predictor only after the "
            "fork"
        )


# ---- checks ----


def _check_types(model: Any, spec: Any, classes: Any, process: Any) -> None:
    """Raise UserError for an argument of a wrong type, and say what is expected."""
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
    """Return (temporal views, spatial crops) of a pair or "5x3"; UserError for anything else."""
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
            f"a {type(path).__name__} is not a path: give one video at a time, as a string or Path"
        )


def _checked_path(path: Any) -> str | os.PathLike[str]:
    _check_path(path)
    checked: str | os.PathLike[str] = path
    return checked


def _check_fits(model: nn.Module, spec: ClipSpec, classes: Sequence[str]) -> None:
    """Raise UserError where model, clips and class names do not fit each other."""
    require_fitting_clips(model, spec)
    outputs = getattr(model, "num_classes", None)
    if outputs is not None and len(classes) != outputs:
        raise UserError(f"{len(classes)} class names for a model with {outputs} outputs")


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
