"""`hiera-video doctor --measure`: how long each runtime takes for one clip on this machine.

Every runtime has a process of its own, since two in one process keep each other's threads waiting.
They take turns, so that what else the machine does meets them all; medians are compared. Each gets
the same clips, and its logits are compared with those of PyTorch in float32.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.classifier import Classifier, load_classifier
from hiera_video.errors import RunFailed, UserError
from hiera_video.export.clips import COMPARED_FROM, generated_clips
from hiera_video.export.on_demand import kind_of, load_in_runtime
from hiera_video.export.parity import Parity, compare
from hiera_video.files import atomic_write
from hiera_video.progress import Progress
from hiera_video.runtimes.libraries import INSTALL
from hiera_video.runtimes.load import exported_kind
from hiera_video.runtimes.measured import (
    LIBRARIES,
    Record,
    cpu_name,
    installed_version,
    installed_versions,
    store_record,
)
from hiera_video.scoring import DTYPES, native_on_cpu, takes_images
from hiera_video.video.processes import usable_cores

ROUNDS = 5
CLIPS = 8
"""Clips whose logits are compared, as many as an export compares; the first one is timed."""

SHORTEST = 0.1
"""Seconds that a measurement takes at least; quicker calls are repeated in it."""

PATIENCE = 900.0
"""Seconds after which a process that does not answer is ended; the first answer may take an
export."""

WAYS = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
)
"""Runtimes and number formats that are measured where they are there."""

Say = Callable[[str], None]


@dataclass
class Way:
    """One runtime in one number format, and what was measured of it."""

    runtime: str
    dtype: str
    seconds: list[float] = field(default_factory=list)
    """Of one clip, one for each round."""
    parity: Parity | None = None
    """To PyTorch in float32; None of that itself."""
    failed: str = ""
    """Why it does not count."""

    @property
    def name(self) -> str:
        """As the record calls it."""
        return f"{self.runtime} {self.dtype}"

    @property
    def median(self) -> float:
        """Seconds of one clip."""
        return statistics.median(self.seconds)


def measure_runtimes(weights: str, say: Say) -> int:
    """Measure the runtimes for weights, print a table, and remember what `--runtime auto` takes.

    Args:
        weights: what `--weights` takes, but for exported files.
        say: called with each line that the user should read.

    Returns the exit code: 1 if PyTorch itself could not be measured.
    Raises UserError, WeightsError for weights that cannot be used, RunFailed if the result cannot
    be stored.
    """
    if exported_kind(weights) is not None:
        raise UserError(f"--weights {weights} is exported already; name the checkpoint")
    found = load_classifier(None, weights, None, spec=None, model_kwargs={}, warn=say)
    kind = kind_of(found)
    say(f"{weights}: {found.name}, clips {found.spec.in_words()}")
    say(f"one clip in a call, {cpu_name()}, {kind.threads} threads, medians of {ROUNDS} rounds")
    if (load := _load_of_others()) > 0.5:
        say(f"note: other work keeps {load:.1f} of {usable_cores()} cores busy; measure when idle")
    ways, absent = available()
    clips = _clips(found)
    del found  # the processes load it themselves
    with tempfile.TemporaryDirectory(prefix="hiera_video_measure_") as folder:
        place = Path(folder, "clips.npy")
        with atomic_write(place) as file:
            np.save(file, clips.numpy())
        _measure(ways, Job(weights, str(place), kind.threads), say)
    _print(ways, absent, say)
    usable = {way.name: way.median for way in ways if not way.failed}
    if "torch fp32" not in usable:
        return 1
    record = Record(time.strftime("%Y-%m-%d"), installed_versions(), usable)
    path = store_record(kind, record)
    for dtype in ("fp32", "bf16") if "torch bf16" in usable else ("fp32",):
        best, gain = record.fastest(dtype)
        how = "no other is clearly faster" if best == "torch" else f"{gain:.1f} times torch"
        say(f"--runtime auto takes {best} in {dtype} ({how})")
    say(f"remembered in {path}")
    return 0


def available() -> tuple[list[Way], list[str]]:
    """The ways that can be measured here, and a line for each reason why others cannot."""
    missing = {name for name in ("onnx", "openvino") if installed_version(LIBRARIES[name]) is None}
    ways = [Way(*way) for way in WAYS if way[0] not in missing]
    libraries = [LIBRARIES[name] for name in missing]
    lines = [f"no {name}: pip install {INSTALL[name]}" for name in libraries]
    if not native_on_cpu(torch.bfloat16):
        ways = [way for way in ways if way.dtype != "bf16"]
        lines.append("no bf16 in this processor")
    return ways, sorted(lines)


def _load_of_others() -> float:
    """Processes that wanted a core in the last minute, less this one; 0 where it is not known."""
    try:
        return os.getloadavg()[0] - 1
    except (AttributeError, OSError):
        return 0.0


def _clips(found: Classifier) -> Tensor:
    clips = generated_clips(found.spec, CLIPS, COMPARED_FROM)
    return clips.squeeze(2) if takes_images(found.model) else clips


def _print(ways: Sequence[Way], absent: Sequence[str], say: Say) -> None:
    usual = ways[0]
    say("runtime   dtype  ms a clip  lowest-highest  times torch  difference  highest class")
    for way in ways:
        start = f"{way.runtime:8}  {way.dtype:5}"
        if way.failed:
            say(f"{start}  {way.failed}")
            continue
        spread = f"{1e3 * min(way.seconds):.4g}-{1e3 * max(way.seconds):.4g}"
        gain = "" if usual.failed else f"{usual.median / way.median:.2f}"
        line = f"{start}  {1e3 * way.median:9.4g}  {spread:>14}  {gain:>11}"
        if way.parity is not None:
            same = f"{round(way.parity.agreement * way.parity.clips)} of {way.parity.clips}"
            line += f"  {way.parity.relative:10.1e}  {same:>13}"
        say(line)
    for text in absent:
        say(text)


# ---- the processes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What every process is told."""

    weights: str
    clips: str
    """A .npy file."""
    threads: int


def _measure(ways: Sequence[Way], job: Job, say: Say) -> None:
    """Fill in seconds and parity, or why there are none."""
    with contextlib.ExitStack() as stack:
        running: list[tuple[Way, Runner]] = []
        expected = None
        # not ticking: a second thread would disturb what is timed
        shown = stack.enter_context(Progress("started", len(ways), unit="runtimes", ticking=False))
        for started, way in enumerate(ways):
            shown.to(started)
            try:
                runner = stack.enter_context(_started(way, job, say))
                logits = np.asarray(runner.answer()["logits"], dtype=np.float32)
            except RunFailed as error:
                way.failed = str(error)
                continue
            if expected is None and way.name == "torch fp32":
                expected = logits
            elif expected is not None:
                way.parity = compare(expected, logits)
                way.failed = way.parity.failure(way.dtype) or ""
            running.append((way, runner))
        shown.begin("timed", ROUNDS, unit="rounds")
        for finished in range(ROUNDS):
            shown.to(finished)
            for way, runner in running:
                with _failing(way):
                    way.seconds.append(runner.time())


@contextlib.contextmanager
def _failing(way: Way) -> Iterator[None]:
    try:
        yield
    except RunFailed as error:
        way.failed = way.failed or str(error)


@contextlib.contextmanager
def _started(way: Way, job: Job, say: Say) -> Iterator[Runner]:
    """Start the process of one runtime; it is ended with the block."""
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from {__name__} import child; child()"
    words = json.dumps({**asdict(job), "runtime": way.runtime, "dtype": way.dtype})
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+", errors="backslashreplace") as errors,
        subprocess.Popen(
            [sys.executable, "-c", code, words], stdin=pipe, stdout=pipe, stderr=errors, text=True
        ) as process,
    ):
        try:
            yield Runner(process, errors, lambda line: say(f"{way.name}: {line}"))
        finally:
            process.kill()


class Runner:
    """A process that holds one runtime; it works when it is asked to, and waits otherwise."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str], say: Say) -> None:
        self._process, self._errors, self._say = process, errors, say

    def time(self) -> float:
        """Seconds of one clip, measured now."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; `answer` says why
            self._process.stdin.write("time\n")
            self._process.stdin.flush()
        return float(self.answer()["seconds"])

    def answer(self) -> dict[str, Any]:
        """The next answer; lines before it are for the user.

        Raises RunFailed if the process ends without one, or does not answer.
        """
        assert self._process.stdout is not None
        limit = threading.Timer(PATIENCE, self._process.kill)
        limit.start()
        try:
            for line in self._process.stdout:
                said: dict[str, Any] = json.loads(line)
                if "say" not in said:
                    return said
                self._say(said["say"])
        finally:
            in_time = limit.is_alive()
            limit.cancel()
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:]
        reason = last[0] if last and in_time else f"no answer in {PATIENCE:g} s"
        raise RunFailed(f"failed: {reason[:200]}")


def child() -> None:
    """What the process of a `Runner` does: load, give logits, then time a clip for each line."""
    # What libraries print must not get among the answers.
    answers = os.dup(1)
    os.dup2(2, 1)

    def answer(**content: Any) -> None:
        text = memoryview(json.dumps(content).encode("ascii") + b"\n")
        while text:
            text = text[os.write(answers, text) :]

    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    try:
        model = _load(order, lambda line: answer(say=line))
        clips = torch.from_numpy(np.load(order["clips"]))
        call = _caller(model, order["runtime"], order["dtype"])
        rows = [call(clip[None]) for clip in clips]
        answer(logits=torch.cat(rows).float().tolist())
        for _ in sys.stdin:
            answer(seconds=_seconds(lambda: call(clips[:1])))
    except (RunFailed, ValueError) as error:  # UserError and WeightsError are ValueErrors
        sys.exit(str(error).replace("\n", " "))


def _load(order: dict[str, Any], say: Say) -> nn.Module:
    weights = order["weights"]
    settings = {"dtype": order["dtype"], "device": "cpu"}
    found = load_in_runtime(
        order["runtime"],
        (None, weights, None),
        settings,
        lambda: load_classifier(None, weights, None, spec=None, model_kwargs={}, warn=_nothing),
        say,
    )
    return found.model.eval()


def _nothing(line: str) -> None:
    """Lines about the weights were said once."""


def _caller(model: nn.Module, runtime: str, dtype: str) -> Callable[[Tensor], Tensor]:
    """A forward pass as labelling makes it."""
    autocast = runtime == "torch" and dtype != "fp32"

    @torch.inference_mode()
    def call(clips: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=DTYPES[dtype], enabled=autocast):
            logits: Tensor = model(clips)
        return logits

    return call


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of a call, of as many as `SHORTEST` takes, after one that nobody times: while the
    others worked, the processor's caches were theirs."""
    call()
    calls, began = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        spent = time.perf_counter() - began
        if spent >= SHORTEST:
            return spent / calls
