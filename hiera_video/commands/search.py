"""Find videos that are similar to others, map them all, or see how well classes can be told.

    hiera-video features videos/ --weights camera_motion --out features.parquet
    hiera-video search features.parquet clip.mp4 --top 5
    hiera-video search features.parquet clips/ --json
    hiera-video search features.parquet clip.mp4 --top 10 --html similar/
    hiera-video search features.parquet --map map/
    hiera-video search features.parquet --probe labels.csv --group source

A query is described as the table was: by the same weights, layer and views. The score is the
cosine. --html writes a page of them, too, with a picture of each. --map writes a page with all
videos of the table as points of a plane, alike near alike. --probe reads a list of labelled
videos, fits logistic regression and nearest neighbours in cross-validation, in which the videos of
one group are held out together, and prints their accuracy.

Exit codes: 0 done; 1 a query could not be read (the others are answered); 2 wrong use; 130
interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hiera_video import cli
from hiera_video.commands import usage
from hiera_video.errors import DecodeError, RunFailed, UserError
from hiera_video.progress import Progress, counted
from hiera_video.video.decoding_process import decoding_process
from hiera_video.video.find import InputFile, expand_paths

if TYPE_CHECKING:
    from hiera_video.features.describe import Described, Describer
    from hiera_video.features.page import Answer
    from hiera_video.features.probe import LabelledVectors, ProbeResult
    from hiera_video.features.search import Neighbour
    from hiera_video.features.settings import FeatureSettings
    from hiera_video.map_page.page import MapContent
    from hiera_video.video.guarded_pool import GuardedPool


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video search") -> int:
    """Run one command line; returns the exit code."""
    args = _arguments(prog).parse_args(argv)
    _check(args, prog)
    if args.map is not None:
        return _map(args)
    return _probe(args) if args.probe else _search(args)


def _check(args: argparse.Namespace, prog: str) -> None:
    """Refuse flags that do not go together."""
    if bool(args.queries) + bool(args.probe) + (args.map is not None) != 1:
        raise UserError(
            f"name either videos to search for ({prog} features.parquet clip.mp4), or labels "
            f"({prog} features.parquet --probe labels.csv), or a folder for a map of all "
            f"({prog} features.parquet --map map/)"
        )
    if args.top < 1:
        raise UserError(f"--top {args.top}: at least 1")
    if args.html is not None and not args.queries:
        raise UserError("--html is a page of neighbours; name videos to search for")
    if args.map is None and (args.labels is not None or args.map_method != "pca"):
        raise UserError("--labels and --map-method are for a map; add --map FOLDER")


def _arguments(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=usage(__doc__, "search", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("table", metavar="FEATURES", help="a table of hiera-video features")
    add("queries", nargs="*", metavar="QUERY", help="video files, folders, globs in quotes")
    add("--top", type=int, default=10, metavar="N", help="neighbours of each query (default: 10)")
    add("--json", action="store_true", help="one JSON document on stdout instead of the table")
    add("--html", metavar="FOLDER", help="write a page too: the neighbours and their pictures")
    add("--map", metavar="FOLDER", help="write a page that shows all videos as points of a plane")
    add(
        "--map-method",
        default="pca",
        metavar="pca|umap",
        help="how they are placed (default: pca; umap needs pip install umap-learn)",
    )
    add(
        "--labels",
        metavar="LABELS",
        help="colours of the map: a labels.csv, or what else training reads; folders: the names of "
        "the videos' folders (default, where these divide them into groups); none",
    )
    add("--probe", metavar="LABELS", help="a labels.csv, or what else training reads")
    add(
        "--group",
        default="",
        metavar="COLUMN",
        help="column of LABELS, or a regular expression for paths, of what is held out together "
        '(default: the column "source" or "group")',
    )
    add("--folds", type=int, default=5, metavar="N", help="of the cross-validation (default: 5)")
    add("--weights", metavar="W", help="where the weights are now (default: as the table says)")
    add(
        "--engine",
        default="auto",
        metavar="auto|exact|faiss",
        help="what compares (default: faiss where it is installed)",
    )
    add("--batch-size", type=int, default=4, metavar="N", help="most clips per forward pass (4)")
    add("--device", default="auto", metavar="auto|cpu|cuda", help="default: auto")
    add("--decoder", default="auto", metavar="NAME", help="auto, torchcodec, pyav or decord (auto)")
    cli.add_import_argument(parser)
    return parser


# ---- neighbours ---------------------------------------------------------------------------------


def _search(args: argparse.Namespace) -> int:
    from hiera_video.features.page import PageWriter, require_replaceable
    from hiera_video.features.table import read_settings

    settings = read_settings(args.table)
    files = expand_paths(args.queries)
    if args.html is not None:
        require_replaceable(args.html)  # before anything is computed
    with decoding_process() as process:
        with contextlib.redirect_stdout(sys.stderr), Progress("loading the model"):
            describer = _describer(args, settings, process)
        answers = _answers(args, describer, files)
        _print(answers, as_json=args.json)
        if args.html is not None:
            with Progress("pictures read", unit="videos") as progress:
                writer = PageWriter(args.html, process, args.decoder, progress.report)
                page = writer(answers, settings, args.table)
            _warn(f"wrote {cli.printable(page)}")
    return cli.FAILED if any(answer.error for answer in answers) else cli.DONE


def _answers(
    args: argparse.Namespace, describer: Describer, files: Sequence[InputFile]
) -> list[Answer]:
    """Each query with its neighbours, or with the reason why there are none."""
    from hiera_video.features.page import Answer, Moment

    queries = counted(files, "described", len(files), unit="queries")
    described = [_described(describer, file) for file in queries]
    found = iter(_neighbours(args, [one.vectors[0] for one, _ in described if one is not None]))
    answers = []
    for (path, _), (one, error) in zip(files, described, strict=True):
        if one is None:
            answers.append(Answer(path, None, [], error))
        else:
            answers.append(Answer(path, Moment(path, one.starts[0], one.ends[0]), next(found)))
    return answers


def _describer(
    args: argparse.Namespace, settings: FeatureSettings, process: GuardedPool
) -> Describer:
    """What describes the queries as the table was; UserError where the weights are others."""
    from hiera_video.errors import WeightsError
    from hiera_video.features.describe import Describer
    from hiera_video.features.encoder import EncoderOptions, load_encoder

    if not args.weights and "://" in settings.weights:
        # the table may be a stranger's: what is fetched is the user's choice
        raise UserError(
            f"{args.table} was made with weights from an address; to fetch them from there, add "
            f"--weights {settings.weights}"
        )
    options = EncoderOptions(
        model=settings.model,
        layer=settings.layer,
        pool=settings.pool,
        device=args.device,
        dtype=settings.computed_in,
        batch_size=args.batch_size,
    )
    try:
        encoder = load_encoder(args.weights or settings.weights, options, warn=_warn)
    except WeightsError as error:
        if args.weights:
            raise
        raise WeightsError(
            f"the weights that made {args.table}: {error}; say where they are with --weights"
        ) from None
    if encoder.sha256 != settings.weights_sha256:
        raise UserError(
            f"{encoder.weights} are not the weights that made {args.table} (SHA-256 "
            f"{encoder.sha256[:16]} here, {settings.weights_sha256[:16]} there): vectors of "
            "different weights cannot be compared. Name the right ones with --weights"
        )
    return Describer(encoder, views=settings.views, process=process, decoder=args.decoder)


def _described(describer: Describer, file: InputFile) -> tuple[Described | None, str | None]:
    """The vector of a query, or None and the reason."""
    error = file.error
    try:
        if error is None:
            return describer(file.path), None
    except DecodeError as failure:
        error = failure.reason
    except RunFailed as failure:
        error = str(failure)
    _warn(f"error: {cli.printable(file.path)}: {error}")
    return None, error


def _neighbours(args: argparse.Namespace, vectors: Sequence[Any]) -> list[list[Neighbour]]:
    import numpy as np

    from hiera_video.features.search import nearest
    from hiera_video.features.table import read_batches

    if not vectors:
        return []
    batches = read_batches(args.table)
    return nearest(batches, np.stack(vectors), top=args.top, engine=args.engine)


def _print(answers: Sequence[Answer], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "query": answer.path,
                "neighbours": [one.to_dict() for one in answer.neighbours],
                "error": answer.error,
            }
            for answer in answers
        ]
        print(json.dumps(rows, indent=2))
        return
    for answer in answers:
        print(cli.printable(answer.path))
        if answer.error is not None:
            print(f"      error: {answer.error}")
        for rank, one in enumerate(answer.neighbours, 1):
            span = f"{one.start:8.1f} - {one.end:8.1f} s"
            print(f"  {rank:3d} {one.score:8.4f}  {span}  {cli.printable(one.path)}")


# ---- a map ---------------------------------------------------------------------------------------


def _map(args: argparse.Namespace) -> int:
    from hiera_video.map_page.collection import read_collection
    from hiera_video.map_page.labels import labels_of
    from hiera_video.map_page.page import MapContent, MapWriter, folder_of
    from hiera_video.map_page.projection import check_method, project

    folder_of(args.map).require_replaceable()  # before anything is computed
    check_method(args.map_method)
    with decoding_process() as process:
        collection = read_collection(args.table)
        labels = labels_of(collection.paths, args.labels)
        with Progress("placed on a plane"):
            projection = project(collection.vectors, args.map_method)
        content = MapContent(collection, labels, projection)
        if args.json:
            print(json.dumps(_map_facts(content), indent=2))
        else:
            for line in _map_lines(content):
                print(cli.printable(line))
        page = MapWriter(args.map, process, args.decoder)
        try:
            with Progress("pictures read", unit="videos") as progress:
                page(content, progress.report)
        finally:  # also when it is interrupted: it is written with the pictures that there are
            if page.written:
                _warn(f"wrote {cli.printable(page.index)}")
    return cli.DONE


def _map_facts(content: MapContent) -> dict[str, Any]:
    collection, projection = content.collection, content.projection
    known = {label for label in content.labels.of if label is not None}
    return {
        "videos": len(collection.paths),
        "vectors": len(collection.vectors),
        "failed": [{"path": path, "error": error} for path, error in collection.failed],
        "labels": len(known),
        "method": projection.method,
        "variance": None if projection.shares is None else list(projection.shares),
        "nearest": projection.nearest,
        "nearest_kept": projection.kept,
    }


def _map_lines(content: MapContent) -> Iterator[str]:
    collection, projection = content.collection, content.projection
    failed = f"; {len(collection.failed)} failed and are not on it" if collection.failed else ""
    yield f"{len(collection.paths)} videos on the map ({len(collection.vectors)} vectors){failed}"
    yield content.labels.source
    if projection.shares is not None:
        first, second = projection.shares
        yield f"PCA: the axes hold {first:.1%} and {second:.1%} of the variance"
    if projection.nearest:
        yield (
            f"of the {projection.nearest} most alike by the cosine, {projection.kept:.1f} are "
            f"among the {projection.nearest} nearest on the map"
        )


# ---- classes ------------------------------------------------------------------------------------


def _probe(args: argparse.Namespace) -> int:
    from hiera_video.features import probe
    from hiera_video.features.table import read_batches, read_settings

    if args.folds < 2:
        raise UserError(f"--folds {args.folds}: at least 2")
    settings = read_settings(args.table)
    listed = probe.read_labels(args.probe, args.group)
    data = probe.join(read_batches(args.table), listed, args.table)
    data = probe.without_tokens(data, settings.shape)
    with Progress("cross-validated", unit="folds") as progress:
        results = probe.probe(data, folds=args.folds, on_progress=progress.report)
    facts = {
        "videos": len(data.labels),
        "vectors": len(data.vectors),
        "listed": len(listed.videos),
        "classes": list(data.classes),
        "groups": len(set(data.groups)),
        "folds": min(args.folds, len(set(data.groups))),
        "most_common": probe.most_common(data),
    }
    if args.json:
        print(json.dumps({**facts, "probes": [r.to_dict() for r in results]}, indent=2))
    else:
        for line in _probe_table(facts, results, data):
            print(cli.printable(line))
    return cli.DONE


def _probe_table(
    facts: dict[str, Any], results: Sequence[ProbeResult], data: LabelledVectors
) -> Iterator[str]:
    from hiera_video.errors import first_few

    yield (
        f"{facts['videos']} of {facts['listed']} listed videos have vectors ({facts['vectors']}); "
        f"{len(data.classes)} classes: {first_few(data.classes, 8)}"
    )
    yield f"{facts['folds']} folds, {facts['groups']} groups that are held out together"
    if not data.grouped:
        yield (
            "note: each video is a group by itself: too high where videos share a room, a person "
            "or a recording; name it with --group"
        )
    for result in results:
        ((setting, values),) = result.chosen.items()
        chosen = ", ".join(f"{value:g}" for value in sorted(set(values)))
        yield (
            f"{result.name:20} {result.accuracy:7.1%}  (95 %: {result.low:.1%} to "
            f"{result.high:.1%}; {setting} {chosen})"
        )
    yield f"{'most common class':20} {facts['most_common']:7.1%}"


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
