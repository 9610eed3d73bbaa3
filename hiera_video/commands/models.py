"""List the models that can be built by name, and their weights.

    hiera-video models
    hiera-video models "hiera*"
    hiera-video models "mae_hiera_b*" --json

For each: the input (frames x height x width), parameters, 1e9 multiply-adds of a forward pass on
one clip or image, and the published weights with their accuracy and licence. --weights names them:
`hiera-video predict clip.mp4 --weights hiera_large_16x224.mae_k400_ft_k400`.

Exit codes: 0 done; 2 wrong use, or no model has such a name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hiera_video import cli
from hiera_video.commands import usage
from hiera_video.errors import UserError


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video models") -> int:
    """Run one command line; returns the exit code."""
    args = _arguments(prog).parse_args(argv)
    # Imported here: torch takes seconds to import, and --help need not wait.
    cli.import_torch()
    from hiera_video.models import list_models

    names = [name for pattern in args.patterns for name in list_models(pattern)]
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError(
            f"no model is named like {' or '.join(map(repr, args.patterns))}; patterns are those "
            'of a shell, in quotes: "hiera*", "*_16x224". Without one, all are listed'
        )
    rows = (_row(name, count=not args.fast) for name in names)
    if args.json:
        print(json.dumps(list(rows), indent=2))
    else:
        _print_table(rows, width=max(map(len, names)))
    return cli.DONE


def _arguments(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=usage(__doc__, "models", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("patterns", nargs="*", default=["*"], metavar="PATTERN", help='such as "hiera*" (all)')
    add("--json", action="store_true", help="one JSON list on stdout instead of the table")
    add("--fast", action="store_true", help="do not count multiply-adds")
    cli.add_import_argument(parser)
    return parser


def _row(name: str, *, count: bool) -> dict[str, Any]:
    """All that is known of a model, as JSON has it."""
    from hiera_video.models import build_model
    from hiera_video.models.cost import cost_of

    cost = cost_of(lambda: build_model(name), count=count)
    return {
        "model": name,
        "input": list(cost.input_size),
        "parameters": cost.parameters,
        "gmacs": cost.gmacs,
        "weights": list(_weights(name)),
    }


def _weights(model: str) -> Iterator[dict[str, Any]]:
    """The weights that are published for a model."""
    from hiera_video.models.weights.published import PUBLISHED, names_for

    for weights in names_for(model):
        row = PUBLISHED[model, weights]
        yield {
            "name": str(row),
            "trained_on": row.trained_on,
            "top1": row.top1,
            "licence": row.licence,
        }


def _print_table(rows: Iterator[dict[str, Any]], *, width: int) -> None:
    """Print a line for each model as it is counted, and one for each of its weights."""
    print(f"{'model':{width}}  {'input':>10}  {'parameters':>11}  {'GMAC':>7}  weights")
    for row in rows:
        size = "x".join(map(str, row["input"]))
        gmacs = "" if row["gmacs"] is None else f"{row['gmacs']:.1f}"
        weights = [_described(one) for one in row["weights"]] or ["none"]
        parameters = f"{row['parameters'] / 1e6:.1f} M"
        head = f"{row['model']:{width}}  {size:>10}  {parameters:>11}  {gmacs:>7}"
        for number, text in enumerate(weights):
            print(f"{head if not number else '':{len(head)}}  {text}".rstrip(), flush=True)
    from hiera_video.models.weights.resolve import bundled

    print(f"\nbundled with the package (Apache-2.0): --weights {', '.join(bundled())}")


def _described(weights: dict[str, Any]) -> str:
    name = weights["name"].partition(".")[2]
    accuracy = "" if weights["top1"] is None else f", top-1 {weights['top1']}"
    return f"{name} ({weights['trained_on']}{accuracy}; {weights['licence']})"
