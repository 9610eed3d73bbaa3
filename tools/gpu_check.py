"""Check the whole GPU path and measure it, in five minutes: `make gpu-check`.

    python tools/gpu_check.py                   # checks, then the short list of benchmarks
    python tools/gpu_check.py --only parity     # the checks whose names contain a word

Writes one Markdown file with card, versions and date, and prints its path. Without a card it
checks nothing, says so, and exits 0. Exit codes: 0 all that could be tried holds (what could not is
listed); 1 something does not hold.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that a checkout is enough

import torch

from hiera_video import cli, files
from hiera_video.benchmarks import machine
from hiera_video.benchmarks.gpu_checks import CHECKS, NotHere, Place
from hiera_video.errors import kind_and_line

SHORT = "--dtype bf16 --repeats 3 --no-memory --device cuda"
MODEL = f"model --modes forward --no-others {SHORT}"
VIDEOS = f"{MODEL} --batch 32 --names hiera_base_16x224 hiera_large_16x224"
BENCHMARKS = {
    "model: videos": VIDEOS,
    "pretrain": "pretrain --names mae_hiera_base_16x224 mae_hiera_large_16x224 --no-others "
    f"--batch 32 --png= {SHORT}",
    "model: images": f"{MODEL} --batch 128 --names hiera_base_224 hiera_large_224",
    "ladder L": f"ladder --size large --input video --batch 8 --png= {SHORT}",
    "model: videos, compiled": f"{VIDEOS} --compile",
}
"""Title -> command line of `hiera-video benchmark`, in the order of their value: the last
ones are left out where the time is up."""

LEAST = 20.0
"""Seconds below which nothing new is started."""

HELD, FAILED, NOT_TRIED = "holds", "FAILED", "not tried"


@dataclass
class Outcome:
    """How one check ended."""

    name: str
    state: str
    seen: str
    """What was seen, or why it failed or was not tried."""
    seconds: float = 0.0


def main(argv: Sequence[str]) -> int:
    """Check and measure; returns the exit code."""
    args = parser().parse_args(argv)
    if args.child:
        return run_checks(args.only, Place(torch.device(args.child), small=args.child == "cpu"))
    names = [name for name in CHECKS if not args.only or any(w in name for w in args.only)]
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was checked")
        return 0
    end = time.monotonic() + 60 * args.minutes
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = check_all(names, "cuda", end=end)
    benchmarks = {} if args.only else BENCHMARKS
    tables = {}
    for title, words in benchmarks.items():
        outcome, tables[title] = measure(title, words, folder, end)
        outcomes.append(outcome)
    report = folder / "report.md"
    files.write_text(report, markdown(outcomes, tables))
    print(report)
    return int(any(outcome.state == FAILED for outcome in outcomes))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--out", default="runs/gpu_check", metavar="FOLDER", help="of the report (runs/gpu_check)")
    add("--minutes", type=float, default=4.8, help="what does not fit is left out (4.8)")
    add("--only", nargs="+", metavar="WORD", help="only checks with a word in their names")
    add("--child", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    return parser


# ---- checks -------------------------------------------------------------------------------------
#
# They run in a process of their own: an illegal access of a kernel ends every later call there.


def run_checks(names: Sequence[str], place: Place) -> int:
    """Run checks in this process; one JSON line for each."""
    for name in names:
        began = time.monotonic()
        try:
            outcome = Outcome(name, HELD, CHECKS[name](place))
        except NotHere as reason:
            outcome = Outcome(name, NOT_TRIED, str(reason))
        except ModuleNotFoundError as error:
            outcome = Outcome(name, NOT_TRIED, f"needs {error.name}, which is not installed")
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome(name, FAILED, kind_and_line(error))
        outcome.seconds = round(time.monotonic() - began, 1)
        print(json.dumps(asdict(outcome)), flush=True)
        if outcome.state == FAILED and place.device.type == "cuda":
            return 1  # the next one runs in a new process: this error cannot affect it
    return 0


def check_all(names: Sequence[str], device: str, *, end: float) -> list[Outcome]:
    """Run checks in child processes until they are done or the time is up."""
    outcomes: list[Outcome] = []
    left = list(names)
    while left and end - time.monotonic() > LEAST:
        found = from_child(left, device, end - time.monotonic())
        outcomes += found
        left = left[len(found) :]
    return outcomes + [Outcome(name, NOT_TRIED, "the time was up") for name in left]


def from_child(names: Sequence[str], device: str, seconds: float) -> list[Outcome]:
    """Run checks in one child process; the last outcome may be that it ended or took too long."""
    command = [sys.executable, __file__, "--child", device, "--only", *names]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=machine.child_environment()
    ) as child:
        try:
            text, _ = child.communicate(timeout=seconds)
            ending = f"its process ended with exit code {child.returncode}"
        except subprocess.TimeoutExpired:
            child.kill()
            text, _ = child.communicate()
            ending = "the time was up"
    outcomes = read_outcomes(text)
    if len(outcomes) == len(names) or (outcomes and outcomes[-1].state == FAILED):
        return outcomes
    state = NOT_TRIED if ending == "the time was up" else FAILED
    return [*outcomes, Outcome(names[len(outcomes)], state, ending)]


def read_outcomes(text: str) -> list[Outcome]:
    """The outcomes among the lines that a child has printed; prints each."""
    found = []
    for line in text.splitlines():
        if line.startswith('{"name": '):
            outcome = Outcome(**json.loads(line))
            print(f"{outcome.name}: {outcome.state}, {outcome.seconds} s: {outcome.seen}")
            found.append(outcome)
    return found


# ---- benchmarks ---------------------------------------------------------------------------------


def measure(title: str, words: str, folder: Path, end: float) -> tuple[Outcome, str]:
    """Run one benchmark; returns how it ended, and its Markdown."""
    began = time.monotonic()
    if end - began < LEAST:
        return Outcome(title, NOT_TRIED, "the time was up"), "Not measured: the time was up.\n"
    print(f"measuring {title}")
    file = folder / f"{re.sub('[^a-z]+', '_', title.lower())}.md"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "hiera_video", "benchmark", *shlex.split(words)]
    state, reason = HELD, "measured"
    try:
        done = subprocess.run(
            [*command, "--markdown", str(file)],
            timeout=end - began,
            capture_output=True,
            text=True,
            env=machine.child_environment(),
        )
        if done.returncode:
            state, reason = FAILED, f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired:
        state, reason = NOT_TRIED, "the time was up"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if state != HELD:
        text += f"\nNot complete: {reason}\n"
    return Outcome(title, state, reason, round(time.monotonic() - began, 1)), text


# ---- the report ---------------------------------------------------------------------------------


def markdown(outcomes: Sequence[Outcome], tables: dict[str, str]) -> str:
    """The report: conditions, one row for each check, the table of each benchmark."""
    facts = machine.machine_facts(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    line = ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)
    rows = [f"| {o.name} | {o.state} | {o.seconds} | {one_line(o.seen)} |" for o in outcomes]
    parts = [
        "# What was checked and measured on a GPU\n",
        line + "\n",
        "## Checks\n",
        "\n".join(["| check | outcome | s | seen |", "|---|---|---|---|", *rows]) + "\n",
    ]
    for title, text in tables.items():
        parts += [f"## {title}\n", text]
    return "\n".join(parts)


def one_line(text: str) -> str:
    """A text as a cell of a table."""
    return " ".join(text.split()).replace("|", "/")


if __name__ == "__main__":
    cli.run(main)
