"""How labelling data sets scales, measured: run by hand, for docs/label_dataset.md.

python tests/scale_model.py actors 1 4 16 64     a model that sleeps, with Ray
python tests/scale_model.py rows 10000000        what the folder of a job costs, without Ray
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT.parent), str(ROOT)])

from scale_parts import outcome  # noqa: E402

from hiera_video.scale import run  # noqa: E402
from hiera_video.scale.blocks import JobFolder, table_of  # noqa: E402
from hiera_video.scale.cluster import Actors, cluster  # noqa: E402
from hiera_video.scale.job import Job, Settings, part_sizes  # noqa: E402
from hiera_video.scale.outcome import Equipment  # noqa: E402
from hiera_video.scale.rows import Fingerprint, in_parts, read_rows  # noqa: E402

SETTINGS = Settings("labels", "none", "none", "0" * 64, (1, 1), "fp32", "auto", top_k=1)


def begin(folder: JobFolder, source: str, actors: int, block_rows: int | None = None) -> Job:
    """Begin a job as the command does, with its blocks or with others."""
    hashed = Fingerprint()
    _, part_rows = part_sizes(0, 1, 0)
    for part, rows in enumerate(in_parts(read_rows(source), part_rows)):
        hashed.add(rows)
        folder.write_input(part, rows)
    block_rows = block_rows or part_sizes(hashed.rows, actors, 0)[0]
    job = Job(
        *(SETTINGS, source, "/", hashed.rows, hashed.text(), block_rows, part_rows, {}),
    )
    job.write(folder.job_file)
    return job


def listed(folder: str, count: int) -> str:
    """A Parquet file of so many paths."""
    import pyarrow
    import pyarrow.parquet as pq

    place = os.path.join(folder, "list.parquet")
    schema = pyarrow.schema([("path", pyarrow.string())])
    with pq.ParquetWriter(place, schema) as writer:
        for first in range(0, count, 1 << 16):
            numbers = range(first, min(first + (1 << 16), count))
            names = [f"bucket/videos/{n // 1000:07d}/{n:010d}.mp4" for n in numbers]
            writer.write_table(pyarrow.table({"path": names}, schema=schema))
    return place


def measure_actors(counts: list[int], rows_each: int = 160) -> None:
    """Rows a second of a model that sleeps 0.2 s a row, with so many actors."""
    for count in counts:
        with tempfile.TemporaryDirectory() as place, cluster(None):
            folder = JobFolder(Path(place) / "out")
            lock = folder.open()
            job = begin(folder, listed(place, rows_each * count), count, 8)
            tally = run.Tally()
            equipment = Equipment(maker="scale_parts:make_sleeping")
            actors = Actors(count, 1.0 / count)

            def work(tasks, folder=folder, actors=actors, equipment=equipment):
                return run.ray_blocks(folder, tasks, actors, equipment)

            first: dict[str, float] = {}
            moments: list[tuple[float, int]] = []

            def on_done(done, tally=tally, first=first, moments=moments):
                tally.add(done)
                first.setdefault(done.worker, time.monotonic())
                moments.append((time.monotonic(), done.rows))

            began = time.monotonic()
            run.run_job(folder, job, work, {}, on_done, count)
            all_up = max(first.values())
            half = [n for at, n in moments if at > all_up]
            seconds = moments[-1][0] - all_up
            rate = sum(half) / seconds if half else float("nan")
            print(
                f"{count} actors, {job.rows} rows in blocks of {job.block_rows}: all up after "
                f"{all_up - began:.0f} s, then {rate:.1f} rows/s of {count / 0.2:.0f} "
                f"({rate * 0.2 / count:.0%}); {tally.lines(count, 1)[-1]}",
                flush=True,
            )
            lock.close()


def peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most"


def measure_rows(count: int) -> None:
    """What beginning, resuming and ending a job of so many rows costs."""
    place = tempfile.mkdtemp()
    source = listed(place, count)
    folder = JobFolder(Path(place) / "out")
    lock = folder.open()

    spent = time.process_time()

    def told(what: str, began: float) -> None:
        nonlocal spent
        here, spent = time.process_time() - spent, time.process_time()
        seconds = f"{time.monotonic() - began:.1f} s, {here:.1f} s of a processor"
        print(f"{what}: {seconds}, {peak()}", flush=True)

    began = time.monotonic()
    job = begin(folder, source, 64)
    told(f"{count:,} rows, {job.blocks:,} blocks, {job.parts} parts: begun", began)

    began = time.monotonic()
    hashed = Fingerprint()
    for rows in in_parts(read_rows(source), job.part_rows):
        hashed.add(rows)
    assert hashed.text() == job.fingerprint
    told("the input compared", began)

    began = time.monotonic()
    todo = [block for _, blocks in folder.todo(job) for block in blocks]
    tasks = run.tasks_of(todo, 64)
    told(f"what is to do listed, {len(tasks)} tasks", began)

    began = time.monotonic()
    for block in job.blocks_of(0):
        rows = folder.rows(job, block)
        folder.write_block(job, block, table_of(job, rows, map(outcome, rows)))
    told(f"one part written, {len(job.blocks_of(0))} blocks", began)
    began = time.monotonic()
    folder.merge(job, 0, {})
    told("one part merged", began)

    for part in range(1, job.parts - 1):  # parts have their own rows; here it is their number
        os.link(folder.part_file(0), folder.part_file(part))
    began = time.monotonic()
    todo = [block for _, blocks in folder.todo(job) for block in blocks]
    told(f"listed with all parts but one done: {len(todo)} blocks left", began)
    began = time.monotonic()
    run.counts_of(folder, job)
    told("counted", began)
    lock.close()
    shutil.rmtree(place)


def timed(words: list[str]) -> tuple[float, float]:
    """Run a command; returns its seconds, and those of processors that all its processes took."""
    import psutil

    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(words, stdout=said, stderr=said)
        spent: dict[int, float] = {}
        names: dict[int, str] = {}
        top = psutil.Process(process.pid)
        while process.poll() is None:
            for one in [top, *top.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = one.cpu_times()
                    names[one.pid] = "readers" if "forkserver" in str(one.cmdline()) else one.name()
                    spent[one.pid] = times.user + times.system
            time.sleep(0.25)
        said.seek(0)
        assert process.returncode == 0, said.read().decode()
    by_name: dict[str, float] = {}
    for pid, seconds in spent.items():
        by_name[names[pid]] = by_name.get(names[pid], 0) + seconds
    most = sorted(by_name.items(), key=lambda pair: -pair[1])[:8]
    print("  ", ", ".join(f"{name} {seconds:.1f}" for name, seconds in most), flush=True)
    return time.monotonic() - began, sum(spent.values())


def measure_overhead(few: int, many: int, times: int) -> None:
    """The demo and this on the same clips, by turns: medians of seconds and processor seconds."""
    from clips import write_clip

    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for i in range(20):
            clip = write_clip(f"{place}/{i}.mp4", frames=48, first_index=50 * i, size=(320, 240))
            for count in (few, many):
                for name in range(i, count, 20):
                    os.makedirs(f"{place}/{count}", exist_ok=True)
                    os.link(clip, f"{place}/{count}/{name:06d}.mp4")
        for turn in range(times):
            for count in (few, many):
                given = [f"{place}/{count}", "--weights", "camera_motion"]
                out = ["--out", f"{place}/{count}_{turn}", "--actors", "2"]
                demo = [sys.executable, f"{ROOT.parent}/demo/predict.py", *given]
                this = [sys.executable, f"{ROOT.parent}/tools/label_dataset.py", *given, *out]
                for name, words in ((f"demo {count}", demo), (f"data set {count}", this)):
                    found.setdefault(name, []).append(timed(words))
                    print(name, *(f"{x:.1f}" for x in found[name][-1]), os.getloadavg(), flush=True)
    for name, runs in found.items():
        wall, spent = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name}: {wall:.1f} s, {spent:.1f} s of processors", flush=True)


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    if what == "actors":
        measure_actors([int(number) for number in numbers])
    elif what == "overhead":
        measure_overhead(*map(int, numbers))
    else:
        measure_rows(int(numbers[0]))
