"""What a run says and writes: console lines, stdout.log, metrics.jsonl, TensorBoard, pictures.

On a terminal the last line is progress that redraws itself; in a pipe there are plain lines only.
`stdout.log` holds what was said plus SlowFast's `json_stats: {...}` lines; `metrics.jsonl` holds
the same records at full precision and is what the curves are drawn from.
"""

from __future__ import annotations

import contextlib
import decimal
import json
import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import simplejson
import torch
from torch import Tensor

from hiera_video.errors import UserError
from hiera_video.files import atomic_write, explained, write_text

METRICS = "metrics.jsonl"
LOG = "stdout.log"
TENSORBOARD = "tensorboard"
REDRAW_S = 0.2
CURVES_S = 60


class Report:
    """What a run says on the console and writes to its folder.

    A context manager, which closes its files. `folder=None` (other processes, dry runs) writes
    none, or none before `open` names the folder: lines said until then are written at that moment.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        quiet: bool = False,
        tensorboard: bool = False,
        stream: Any = None,
    ):
        self.folder, self.quiet = None, quiet
        self.stream = stream or sys.stdout
        self.live = not quiet and getattr(self.stream, "isatty", lambda: False)()
        self._drawn_at, self._line_open = 0.0, False
        self._curves_at = time.monotonic()
        self._log = self._metrics = self._tensorboard = None
        self._early: list[str] = []
        if folder is not None:
            self.open(folder, tensorboard=tensorboard)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, folder: Path, *, tensorboard: bool = False) -> None:
        """Write to files in `folder` from now on, first of all what was said before."""
        self.folder = folder
        self._log, self._metrics = _append_to(folder / LOG), _append_to(folder / METRICS)
        if tensorboard:
            self._tensorboard = _tensorboard_writer(folder / TENSORBOARD)
        for text in self._early:
            self._to_log(text)
        self._early.clear()

    def say(self, text: str) -> None:
        """A line for the reader, on the console and in stdout.log."""
        if self.folder is None and not self.quiet:
            self._early.append(text)
        self._to_log(text)
        self._to_console(text)

    def stats(self, kind: str, **values: Any) -> None:
        """A record: a `json_stats` line in stdout.log, full precision in metrics.jsonl."""
        record = {"_type": kind, **values}
        self._to_log(json_stats(record))
        if self._metrics is not None:
            _append(self._metrics, json.dumps(finite(record), sort_keys=True))

    def scalars(self, step: int, **values: float) -> None:
        """Curves for TensorBoard, where it is on."""
        if self._tensorboard is not None:
            with explained(self.folder / TENSORBOARD):
                for name, value in values.items():
                    self._tensorboard.add_scalar(name.replace("__", "/"), value, step)

    def picture(self, name: str, image: Tensor, step: int) -> Path | None:
        """An RGB picture, float [3, H, W] in [0, 1]: a PNG in pictures/ and in TensorBoard."""
        if self.folder is None:
            return None
        from torchvision.utils import save_image

        path = self.folder / "pictures" / f"{name}_{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            save_image(image, file, format="png")
        if self._tensorboard is not None:
            with explained(self.folder / TENSORBOARD):
                self._tensorboard.add_image(name, image, step)
        return path

    def progress(self, text: str, *, due: bool = False) -> None:
        """Redraw a terminal's last line, a few times a second; in a pipe, a line when `due`."""
        if not self.live:
            if due:
                self._to_console(text)
            return
        if time.monotonic() - self._drawn_at < REDRAW_S:
            return
        width = shutil.get_terminal_size().columns - 1
        self.stream.write("\r\x1b[K" + text[:width])
        self.stream.flush()
        self._drawn_at, self._line_open = time.monotonic(), True

    def curves(self, *, last: bool) -> None:
        """Draw curves.png anew, if that was not done lately or this is the last time."""
        if self.folder is not None and (last or time.monotonic() - self._curves_at > CURVES_S):
            draw_curves(self.folder)
            self._curves_at = time.monotonic()

    def close(self) -> None:
        """End the redrawn line and close the files."""
        self._end_line()
        for file in (self._log, self._metrics, self._tensorboard):
            if file is not None:
                with contextlib.suppress(
                    OSError
                ):  # what a full disk did not take was an error then
                    file.close()
        self._log = self._metrics = self._tensorboard = None

    def _to_console(self, text: str) -> None:
        if self.quiet:
            return
        self._end_line()
        print(text, file=self.stream, flush=True)

    def _to_log(self, text: str) -> None:
        if self._log is not None:
            _append(self._log, text)

    def _end_line(self) -> None:
        if self._line_open:
            self.stream.write("\r\x1b[K")
            self._line_open = False


def _append_to(path: Path) -> Any:
    # A name that is not valid UTF-8 is logged escaped.
    with explained(path):
        return open(path, "a", encoding="utf-8", errors="backslashreplace")


def _append(file: Any, line: str) -> None:
    with explained(file.name):
        file.write(line + "\n")
        file.flush()


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "TENSORBOARD.ENABLE needs the tensorboard package: pip install tensorboard, "
            "or set TENSORBOARD.ENABLE False"
        ) from None
    return SummaryWriter(str(folder))


# ---- records ------------------------------------------------------------------------------------


def json_stats(record: dict[str, Any]) -> str:
    """SlowFast's line: keys sorted, floats with five decimals, numbers and not strings."""
    five = {
        key: decimal.Decimal(f"{value:.5f}") if isinstance(value, float) else value
        for key, value in finite(record).items()
    }
    return "json_stats: " + simplejson.dumps(five, sort_keys=True, use_decimal=True)


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """nan and inf are no JSON: they become the strings "nan", "inf", "-inf"."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; an unfinished last line (the run was killed) is left out."""
    path = Path(folder) / METRICS
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def forget_after(folder: Path, step: int) -> None:
    """Drop records of steps after `step`: a resumed run will make them again."""
    kept = [r for r in read_metrics(folder) if r.get("step", 0) <= step]
    if (Path(folder) / METRICS).is_file():
        lines = [json.dumps(r, sort_keys=True) + "\n" for r in kept]
        write_text(Path(folder) / METRICS, "".join(lines))


# ---- times and memory ---------------------------------------------------------------------------


class Clock:
    """Speed of the last `window` steps: clips a second, share of time waiting for data, ETA."""

    def __init__(self, window: int = 50):
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=window)
        self._mark, self._waited = time.perf_counter(), 0.0

    def restart(self) -> None:
        """Begin a step now: what came before (evaluation, saving) was not training."""
        self._mark, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for data."""
        began = time.perf_counter()
        yield
        self.waited(time.perf_counter() - began)

    def waited(self, seconds: float) -> None:
        """So much of this step was waiting for data."""
        self._waited += seconds

    def step_done(self, clips: int) -> None:
        """The step is over and had `clips` clips."""
        now = time.perf_counter()
        self._steps.append((now - self._mark, self._waited, clips))
        self._mark, self._waited = now, 0.0

    @property
    def seconds(self) -> float:
        """Mean length of a step."""
        return sum(s[0] for s in self._steps) / max(len(self._steps), 1)

    @property
    def data_seconds(self) -> float:
        """Mean wait for data in a step."""
        return sum(s[1] for s in self._steps) / max(len(self._steps), 1)

    @property
    def clips_per_second(self) -> float:
        """Clips of this process only."""
        return sum(s[2] for s in self._steps) / max(sum(s[0] for s in self._steps), 1e-9)


def duration(seconds: float) -> str:
    """`0:07:31`, or `3 days, 4:10:00`."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = int(seconds + 0.5)
    days, rest = divmod(whole, 86400)
    text = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days} day{'s' * (days != 1)}, {text}" if days else text


def peak_memory(device: torch.device) -> int:
    """Bytes: the most the device's allocator held, or this process's own peak on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gibibytes(number: float) -> str:
    """`1.25G`, as nvidia-smi and SlowFast's logs count."""
    return f"{number / 2**30:.2f}G"


# ---- pictures -----------------------------------------------------------------------------------


def draw_curves(folder: Path) -> Path | None:
    """curves.png from metrics.jsonl: loss, learning rate, validation; None for an empty run."""
    records = read_metrics(folder)
    train = [r for r in records if r["_type"] == "train_iter_"]
    if not train:
        return None
    val = [r for r in records if r["_type"] == "val_epoch"]
    panels = [("loss", train, ("loss",)), ("learning rate", train, ("lr",))]
    names = [n for n in ("top1_err", "top5_err", "map") if any(n in r for r in val)]
    if names:
        panels.append(("validation", val, tuple(names)))
    figure, axes = _figure(len(panels))
    for axis, (title, source, keys) in zip(axes, panels, strict=True):
        for key in keys:
            points = [(r["step"], r[key]) for r in source if isinstance(r.get(key), int | float)]
            axis.plot(*zip(*points, strict=True), label=key) if points else None
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend()
    path = Path(folder) / "curves.png"
    _save(figure, path)
    return path


def draw_confusion(confusion: Tensor, classes: list[str], path: Path) -> None:
    """Picture of an int64 [C, C] confusion matrix, each row scaled to the videos it has."""
    import numpy as np

    counts = confusion.numpy()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.3 * len(classes), 24)
    figure, (axis,) = _figure(1, size=(side, side))
    image = axis.imshow(share, vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(image, ax=axis, fraction=0.046, label="share of the true class")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if len(classes) <= 60:
        # As they are: no formula between two $; bytes that are not valid UTF-8 are escaped.
        names = [name.encode("utf-8", "backslashreplace").decode() for name in classes]
        axis.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axis.set_yticks(range(len(names)), names, parse_math=False)
    if len(classes) <= 15:
        for row in range(len(classes)):
            for column in range(len(classes)):
                colour = "black" if share[row, column] > 0.6 else "white"
                axis.text(column, row, counts[row, column], ha="center", va="center", color=colour)
    _save(figure, path)


def _figure(panels: int, size: tuple[float, float] | None = None) -> tuple[Any, list[Any]]:
    # the object interface, without pyplot: no global state, no window, no display needed
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # constrained layout takes twice the time: only where class names need the room
    figure = Figure(figsize=size or (5 * panels, 4), layout="constrained" if size else None)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, panels, i + 1) for i in range(panels)]


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)
