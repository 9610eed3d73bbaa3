"""Label or describe a data set with many processes, on this machine or on a cluster of Ray.

    hiera-video label-dataset videos/ --weights camera_motion --out labels/
    hiera-video label-dataset clips.parquet --weights best.pyth --out labels/ --actors 8
    hiera-video label-dataset videos/ --weights best.pyth --task features --out vectors/
    hiera-video label-dataset clips.csv --weights best.pyth --out labels/ --gpus-per-actor 1 \\
        --address auto

The input is a folder or a glob of videos, a list (.txt), or a table (.csv, .parquet) with a column
path and, for parts of videos, start and end in seconds. The result is a folder of Parquet files
with one row for each row of the input: labels and scores, or a vector, or an error. The same
command again does what is not done yet, however it was stopped. With other weights, settings or
another input it is refused.

Exit codes: 0 every row has its labels, its vector or its error; 1 the run failed, or not one row
could be read; 2 wrong use; 130 interrupted (what is done is kept).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hiera_video import cli
from hiera_video.commands import usage
from hiera_video.errors import UserError, hide_secrets
from hiera_video.files import sha256_of
from hiera_video.progress import LOG_SECONDS, Progress

if TYPE_CHECKING:
    from hiera_video.scale.blocks import JobFolder
    from hiera_video.scale.cluster import Actors
    from hiera_video.scale.job import Job, Settings
    from hiera_video.scale.outcome import Equipment
    from hiera_video.scale.worker import Done


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video label-dataset") -> int:
    """Run one command line; returns the exit code."""
    args = _arguments(prog).parse_args(argv)
    _check(args)
    from hiera_video.scale.blocks import JobFolder

    folder = JobFolder(args.out)
    with folder.open():
        with Progress("looking at the job"):
            job = _job(folder, args)
        folder.clean(job)
        if any(True for _ in folder.todo(job)):
            code = _work(folder, job, args)
            if code != cli.DONE:
                return code
        return _summary(folder, job)


def _arguments(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=usage(__doc__, "label-dataset", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "input",
        metavar="INPUT",
        help="a folder, a glob in quotes, a list or a table of videos; or the address of one",
    )
    add("--weights", required=True, metavar="W", help="checkpoint file, address, published name")
    add("--out", required=True, metavar="DIR", help="folder of the result; made if need be")
    add("--task", default="labels", choices=("labels", "features"), help="default: labels")
    add("--address", metavar="ADDRESS", help="a cluster of Ray: auto, HOST:PORT or ray://HOST:PORT")
    add("--actors", type=int, metavar="N", help="processes with a model (one a processor, or GPU)")
    add("--cpus-per-actor", type=float, metavar="C", help="share of Ray's processors of each")
    add("--gpus-per-actor", type=float, default=0.0, metavar="G", help="GPUs of each (0)")
    add("--readers", type=int, default=1, metavar="N", help="processes that decode, per actor (1)")
    add("--model", metavar="NAME", help="a registered model (default: what the weights are for)")
    add("--labels", metavar="FILE", help="class names, one a line, or the name of a known list")
    add("--top-k", type=int, default=5, metavar="K", help="labels per row (default: 5)")
    add("--layer", metavar="NAME", help="of features: head, stage1 to stage4")
    add("--pool", default="mean", metavar="mean|mean_max|tokens", help="of features (mean)")
    add("--store", default="fp32", choices=("fp32", "fp16"), help="numbers of vectors (fp32)")
    add("--views", metavar="KxS", help="clips in time x crops in space (5x3; features: 2x1)")
    add("--batch-size", type=int, metavar="N", help="most clips per forward pass (4, GPU 32)")
    add("--dtype", default="auto", metavar="auto|fp32|fp16|bf16", help="auto: fp32, on a GPU bf16")
    add("--decoder", default="auto", metavar="NAME", help="auto, torchcodec, pyav or decord (auto)")
    cli.add_import_argument(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    from hiera_video.scale.cluster import require_ray
    from hiera_video.scale.rows import require_input

    require_ray()
    require_input(args.input)
    if args.top_k < 1:
        raise UserError(f"--top-k {args.top_k}: at least 1")
    if args.readers < 1:
        raise UserError(f"--readers {args.readers}: at least 1")
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: at least 1")
    if os.path.exists(args.out) and not os.path.isdir(args.out):
        raise UserError(f"--out {args.out} is a file; name a folder")
    if args.task == "labels" and (args.layer is not None or args.pool != "mean"):
        raise UserError("--layer and --pool are of --task features")


# ---- what the job is ----------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> Settings:
    # Imported here: torch takes seconds to import, and --help and typing errors need not wait.
    cli.import_torch()
    from hiera_video.classifier import read_labels
    from hiera_video.data.views import parse_views
    from hiera_video.scale.job import FEATURES, Settings
    from hiera_video.scale.labelling import weights_of
    from hiera_video.scale.run import absolute
    from hiera_video.scoring import DTYPES

    if args.dtype != "auto" and args.dtype not in DTYPES:
        raise UserError(f"--dtype {args.dtype}: choose auto, fp32, fp16 or bf16")
    with contextlib.redirect_stdout(sys.stderr):
        model, sha256 = weights_of(args.weights, args.model)
    dtype = args.dtype if args.dtype != "auto" else "bf16" if args.gpus_per_actor else "fp32"
    vectors = args.task == FEATURES
    usual = "5x3" if not vectors else "1x1" if args.pool == "tokens" else "2x1"
    names = None if args.labels is None or vectors else read_labels(args.labels)
    return Settings(
        task=args.task,
        model=model,
        weights=absolute(args.weights),
        weights_sha256=sha256,
        views=parse_views(args.views or usual),
        computed_in=dtype,
        decoder=args.decoder,
        top_k=0 if vectors else args.top_k,
        labels="" if names is None else absolute(args.labels),
        labels_sha256=""
        if names is None
        else hashlib.sha256("\n".join(names).encode()).hexdigest(),
        layer=(args.layer or "") if vectors else "",
        pool=args.pool if vectors else "",
        stored_as=args.store if vectors else "",
    )


def _asked(args: argparse.Namespace) -> dict[str, str]:
    """The options that decide what a row becomes."""
    names = ("task", "model", "views", "dtype", "decoder", "top_k", "layer", "pool", "store")
    asked = {name: str(getattr(args, name)) for name in names}
    asked["on"] = "GPUs" if args.gpus_per_actor else "processors"
    if args.labels is not None:  # a file whose content may be another one now
        there = os.path.isfile(args.labels)
        asked["labels"] = sha256_of(args.labels) if there else str(args.labels)
    return asked


def _job(folder: JobFolder, args: argparse.Namespace) -> Job:
    """The job of this command: the one that its folder holds, or a new one.

    Raises UserError where the folder holds another one, and what is wrong with weights and input.
    """
    from hiera_video.scale.job import require_same, settings_again
    from hiera_video.scale.rows import Fingerprint, folder_of_paths, in_parts, read_rows

    stored = folder.job()
    if stored is None:
        return _new_job(folder, args, _settings(args))
    settings = settings_again(stored, args.weights, _asked(args)) or _settings(args)
    hashed = Fingerprint()
    for rows in in_parts(read_rows(args.input), stored.part_rows):
        hashed.add(rows)
    root = folder_of_paths(args.input)
    require_same(stored, settings, (hashed.rows, hashed.text()), root)
    return stored


def _new_job(folder: JobFolder, args: argparse.Namespace, settings: Settings) -> Job:
    """Try the model, write the rows that are to be done, and then that there is a job."""
    from hiera_video.scale.job import Job, part_sizes
    from hiera_video.scale.rows import Fingerprint, folder_of_paths, in_parts, read_rows
    from hiera_video.video.processes import usable_cores

    # the trial of the model is on a processor, whatever the actors compute in
    length = _length(
        dataclasses.replace(settings, computed_in="fp32") if args.gpus_per_actor else settings
    )
    _, part_rows = part_sizes(0, 1, length)  # the number of rows decides on blocks alone
    hashed = Fingerprint()
    for part, rows in enumerate(in_parts(read_rows(args.input), part_rows)):
        hashed.add(rows)
        folder.write_input(part, rows)
    block_rows, _ = part_sizes(hashed.rows, args.actors or usable_cores(), length)
    job = Job(
        settings=settings,
        source=hide_secrets(args.input),
        root=folder_of_paths(args.input),
        rows=hashed.rows,
        fingerprint=hashed.text(),
        block_rows=block_rows,
        part_rows=part_rows,
        asked=_asked(args),
        length=length,
    )
    job.write(folder.job_file)
    return job


def _length(settings: Settings) -> int:
    """Numbers of a vector, 0 of labels. Loads the model here once: what is wrong with it is an
    error before Ray is started."""
    import math

    from hiera_video.scale.job import LABELS
    from hiera_video.scale.labelling import load_predictor, load_vectors
    from hiera_video.scale.outcome import Equipment

    with contextlib.redirect_stdout(sys.stderr):
        if settings.task == LABELS:
            load_predictor(settings, Equipment(), None, warn=_say)
            return 0
        return math.prod(load_vectors(settings, Equipment(), warn=_say).shape)


# ---- the work -----------------------------------------------------------------------------------


def _work(folder: JobFolder, job: Job, args: argparse.Namespace) -> int:
    """Do what is not done; returns the exit code."""
    from hiera_video.scale.cluster import choose_actors, cluster
    from hiera_video.scale.outcome import Equipment
    from hiera_video.video.processes import usable_cores

    wanted = (args.actors, args.cpus_per_actor, args.gpus_per_actor)
    if args.address is None and not args.gpus_per_actor:
        choose_actors(*wanted, {"CPU": float(usable_cores())})  # refused before Ray is started
    # Ray prints on stdout what it thinks of processes that end; here that is work done again
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        cluster(args.address) as there,
    ):
        actors = choose_actors(*wanted, there)
        equipment = Equipment(
            device="cuda" if actors.gpus else "cpu",
            batch_size=args.batch_size,
            threads=actors.threads(there.get("CPU", 1.0)),
            readers=args.readers,
            imports=tuple(args.imports),
        )
        done = job.rows - sum(len(job.rows_of(b)) for _, bs in folder.todo(job) for b in bs)
        if done:
            _say(f"note: {done:,} of {job.rows:,} rows are in {args.out} already")
        _say(_plan(job, actors, equipment))
        return _run(folder, job, actors, equipment)


def _run(folder: JobFolder, job: Job, actors: Actors, equipment: Equipment) -> int:
    from hiera_video.scale.run import (
        Tally,
        Watchdog,
        ray_blocks,
        run_job,
        versions,
        waiting_for,
    )

    tally, began = Tally(), time.monotonic()
    waits_for = functools.partial(waiting_for, folder, job, actors, time.time())
    work = functools.partial(ray_blocks, folder, actors=actors, equipment=equipment)
    with (
        Progress("labelled", job.rows, unit="rows", log_every=LOG_SECONDS) as progress,
        Watchdog(waits_for, tally, _say),
    ):
        before = job.rows - sum(len(job.rows_of(b)) for _, bs in folder.todo(job) for b in bs)

        def on_done(done: Done) -> None:
            tally.add(done)
            progress.to(before + tally.rows)

        try:
            run_job(folder, job, work, {"versions": versions()}, on_done, actors.count)
        except KeyboardInterrupt:
            folder.forget_all_tries()
            _say(
                f"interrupted after {before + tally.rows:,} of {job.rows:,} rows; the same command "
                "goes on from there"
            )
            return cli.INTERRUPTED
    for line in tally.lines(actors.count, time.monotonic() - began):
        _say(line)
    return cli.DONE


def _plan(job: Job, actors: Actors, equipment: Equipment) -> str:
    return (
        f"{actors.count} actors of {actors.cpus:g} CPU, {actors.gpus:g} GPU, {equipment.threads} "
        f"threads and {equipment.readers} readers each; blocks of {job.block_rows} rows"
    )


def _summary(folder: JobFolder, job: Job) -> int:
    """Say what is in the folder; returns the exit code."""
    from hiera_video.scale.run import counts_of, error_lines

    counts = counts_of(folder, job)
    for line in error_lines(counts):
        print(line)
    what = "labelled" if not job.length else "described"
    print(
        f"{folder.path}: {counts.rows:,} rows, {counts.rows - counts.failed:,} {what}, "
        f"{counts.failed:,} errors"
    )
    if counts.failed == counts.rows:
        _say(f"error: not one of {counts.rows:,} rows could be {what}")
        return cli.FAILED
    return cli.DONE


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
