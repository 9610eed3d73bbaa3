"""Damaged files by the thousand: each is read, or refused with a reason, and costs nothing else.

Videos that exist are changed by a number (`mutate`), so a file that breaks something is made again
from what the failing test prints. They are read in child processes with limits of time and memory.
"""

import os
import random
import resource
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from clips import cut_clip, write_clip
from test_checkpoint import flips, state_of
from tiny_runs import same

from hiera_video.engine import checkpoint
from hiera_video.errors import WeightsError
from hiera_video.models.weights.file import read_checkpoint
from hiera_video.video.container import demux
from hiera_video.video.decode import probe, read_frames
from hiera_video.video.decoders import available_decoders
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")

TIME_LIMIT = 30.0
MEMORY_LIMIT = 1 << 30

# ---- damage -------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
BOXES = "moov mvhd trak tkhd mdhd stsd stts ctts stss stsc stsz stco elst avcC mdat moof trun"
NAMES = tuple(name.encode() for name in [*BOXES.split(), "idx1", "strh", "strf", "movi"])


def mutate(raw: bytes, other: bytes, number: int) -> bytes:
    """`raw` with one to four pieces of damage, decided by `number` alone."""
    dice = random.Random(number)
    out = bytearray(raw)
    for _ in range(dice.choice((1, 1, 2, 4))):
        if not out:
            break
        dice.choice((flip, flip, write_number, write_number, blot, cut, repeat, splice, shorten))(
            out, other, dice
        )
    return bytes(out)


def place(out: bytearray, dice: random.Random) -> int:
    """Anywhere; half of the time where the file describes itself: its headers and boxes."""
    if dice.random() < 0.5:
        found = [at for name in NAMES if (at := out.find(name)) >= 0]
        start = dice.choice([0, *found])
        return min(start + dice.randrange(64), len(out) - 1)
    return dice.randrange(len(out))


def flip(out, other, dice):
    for _ in range(dice.choice((1, 4, 32))):
        out[place(out, dice)] ^= 1 << dice.randrange(8)


def write_number(out, other, dice):
    at = place(out, dice)
    layout = dice.choice((">I", "<I", ">H", ">B"))
    value = dice.choice(NUMBERS) & (256 ** struct.calcsize(layout) - 1)
    out[at : at + struct.calcsize(layout)] = struct.pack(layout, value)


def blot(out, other, dice):
    at, length = place(out, dice), dice.choice((4, 64, 4096))
    piece = dice.choice((bytes(length), b"\xff" * length, dice.randbytes(length)))
    out[at : at + length] = piece[: len(out) - at]


def cut(out, other, dice):
    at = place(out, dice)
    del out[at : at + dice.choice((1, 8, 1000))]


def repeat(out, other, dice):
    at = place(out, dice)
    out[at:at] = out[at : at + dice.choice((1, 8, 1000))]


def splice(out, other, dice):
    at, start = place(out, dice), dice.randrange(len(other))
    out[at:at] = other[start : start + dice.choice((16, 500, 5000))]


def shorten(out, other, dice):
    del out[dice.randrange(len(out)) :]


# ---- reading in a child -------------------------------------------------------------------------


def read_mutant(item):
    """(frames, bytes): frames of one damaged file, and the most memory this process ever held."""
    source, other, number, decoder = item
    damaged = mutate(Path(source).read_bytes(), Path(other).read_bytes(), number)
    with tempfile.NamedTemporaryFile(suffix=Path(source).suffix) as file:
        file.write(damaged)
        file.flush()
        info = probe(file.name, decoder, time_limit=TIME_LIMIT / 2)
        last = info.num_frames - 1
        wanted = [0, last // 2, last, 0]
        frames = read_frames(file.name, wanted, decoder, info=info, time_limit=TIME_LIMIT / 2)
        if tuple(frames.shape) != (4, 3, info.height, info.width):
            raise AssertionError(f"frames of shape {tuple(frames.shape)} from {item}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return info.num_frames, peak * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small video of every kind that PyAV writes."""
    folder = tmp_path_factory.mktemp("seeds")
    small = {"frames": 20, "size": (64, 48)}
    whole = write_clip(folder / "b.mp4", **small, b_frames=2, audio=True)
    return [
        whole,
        write_clip(folder / "a.mp4", **small, rotation=90),
        cut_clip(whole, folder / "cut.mp4", seconds=0.2),
        write_clip(folder / "a.mkv", **small, start=1.5),
        write_clip(folder / "a.avi", **small, codec="mpeg4"),
        write_clip(folder / "a.ts", **small, b_frames=1),
        write_clip(folder / "a.mov", **small, codec="mjpeg", pix_fmt="yuvj420p"),
        write_clip(folder / "a.webm", **small, codec="libvpx-vp9"),
        write_clip(folder / "a.flv", **small, codec="flv"),
    ]


def outcomes(seeds, count):
    """What became of `count` mutants of the seeds: how many of each kind, and the most memory.

    Any exception but DecodeError is a bug and is raised here, with the mutant in its note.
    """
    seeds = [str(path) for path in seeds]
    decoders = ["auto", *(name for name, failure in available_decoders().items() if not failure)]
    items = [
        (seeds[i % len(seeds)], seeds[(i * 7 + 1) % len(seeds)], i, decoders[i % len(decoders)])
        for i in range(count)
    ]
    kinds, peak, lost = Counter(), 0, []
    with GuardedPool(
        read_mutant, workers=2, time_limit=TIME_LIMIT, memory_limit=MEMORY_LIMIT
    ) as pool:
        for item, outcome in pool.map(items):
            if isinstance(outcome, WorkerFailure):
                kinds[outcome.kind] += 1
                if outcome.kind != "refused":
                    lost.append((item, outcome.reason))
            else:
                kinds["read"] += 1
                peak = max(peak, outcome[1])
    print(f"{count} mutants of {len(seeds)} files: {dict(kinds)}, {peak >> 20} MiB; lost: {lost}")
    return kinds, peak, lost


def test_damaged_videos_are_read_or_refused(made):
    kinds, peak, lost = outcomes(made, 90)
    assert kinds.total() == 90
    assert min(kinds["read"], kinds["refused"]) >= 10  # the damage is neither nothing nor all
    assert peak < 1 << 30
    assert not [loss for loss in lost if loss[0][3] in ("auto", "pyav")]


def test_packets_of_streams_that_begin_in_mid_file_are_passed_over():
    """PyAV trips over them with an IndexError, now and then; found by the two thousand below."""

    class Container:
        def __init__(self):
            self.left = ["a", "b", IndexError("list index out of range"), "c"]

        def demux(self, stream):
            while self.left:
                packet = self.left.pop(0)
                if isinstance(packet, Exception):
                    raise packet
                yield packet

    assert list(demux(Container(), "video")) == ["a", "b", "c"]


@pytest.mark.slow
def test_two_thousand_damaged_videos(made, repository):
    """With the real and the hostile files where they are present."""
    seeds = list(made)
    folder = repository.parent / "shared" / "data"
    for path in sorted(folder.glob("clips/*.*")) + sorted(folder.glob("hostile/*.*")):
        if 100 < path.stat().st_size < 400_000 and path.suffix not in (".csv", ".txt"):
            seeds.append(path)
    kinds, peak, lost = outcomes(seeds, 2000)
    assert kinds.total() == 2000
    assert kinds["read"] > 200
    assert kinds["refused"] > 200
    assert peak < 1 << 30
    assert not kinds["time"], lost
    assert not [loss for loss in lost if loss[0][3] in ("auto", "pyav")]


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_single_bit_of_a_checkpoint(tmp_path):
    """Each is refused, or changes nothing that is read: names of the archive, times, padding."""
    state = state_of(size=20)
    checkpoint.save(state, tmp_path / "good.pyth")
    raw = (tmp_path / "good.pyth").read_bytes()
    kinds = Counter(
        "refused" if loaded is None else "same" if same(loaded, state) else f"bit {bit}"
        for bit, loaded in flips(tmp_path / "bad.pyth", raw, range(8 * len(raw)))
    )
    print(dict(kinds))
    assert set(kinds) == {"refused", "same"}


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_weights_are_read_or_refused(tmp_path, count):
    state, path = state_of(size=300), tmp_path / "x.pyth"
    checkpoint.save(state, path)
    raw = path.read_bytes()
    kinds = Counter()
    for number in range(count):
        path.write_bytes(mutate(raw, raw, number))
        try:
            found = read_checkpoint(path).state_dict
        except WeightsError:
            kinds["refused"] += 1
        else:
            kinds["same" if same(found, state["model_state"]) else f"mutant {number}"] += 1
    assert set(kinds) <= {"refused", "same"}
    assert kinds["refused"] > count / 2
