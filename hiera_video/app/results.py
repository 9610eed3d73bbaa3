"""What a job found, as HTML: one text for each part of the page.

Names of files and of classes may come from strangers: the template escapes them. Pictures are part
of the text, so that no file is served.
"""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hiera_video.app.labeller import Found
from hiera_video.explanation.strip import strip_jpeg
from hiera_video.label_page.chart import chart_of, clock
from hiera_video.pages.templates import environment

if TYPE_CHECKING:
    from jinja2 import Template

_HERE = Path(__file__).parent


class Texts(NamedTuple):
    """HTML of the parts of the page."""

    summary: str
    labels: str
    timeline: str
    explanation: str
    painting: str


def texts(found: Found) -> Texts:
    """Return what the page shows of what was found so far."""
    # A module made by a template has its macros as attributes.
    macros = _template().make_module()
    windows = (found.prediction and found.prediction.timeline) or []
    explained = found.prediction.explanation if found.prediction is not None else None
    parts = {
        "summary": (found,),
        "labels": (found,),
        "timeline": (found, chart_of(windows, windows[-1].end) if windows else None, clock),
        "explanation": (found, "" if explained is None else _data_address(strip_jpeg(explained))),
        "painting": (
            found,
            "" if found.reconstruction is None else _data_address(found.reconstruction.jpeg),
        ),
    }
    return Texts(**{name: str(getattr(macros, name)(*given)) for name, given in parts.items()})


def style() -> str:
    """Return the style of the parts."""
    return (_HERE / "app.css").read_text(encoding="utf-8")


def script() -> str:
    """Return what makes the chart play."""
    return (_HERE / "app.js").read_text(encoding="utf-8")


@functools.cache
def _template() -> Template:
    return environment(_HERE).get_template("results.html")


def _data_address(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
