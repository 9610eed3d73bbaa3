"""The page of the app, made of Gradio's parts."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hiera_video.app.choices import Choice
from hiera_video.app.labeller import (
    LEAST_SECONDS,
    MOST_SECONDS,
    Found,
    Labeller,
    Wanted,
)
from hiera_video.app.reconstruct import LEAST_HIDDEN, MOST_HIDDEN
from hiera_video.app.results import texts
from hiera_video.errors import UserError

if TYPE_CHECKING:
    import gradio

TIMELINE, EXPLANATION = "Scores over time", "Why this label"

LABEL = "label"
"""The name of the one thing that a client may call."""

KEPT_SECONDS = 3600
"""After which an upload is deleted."""

_LOOKED_AT = 60
"""Seconds between two looks for such uploads."""

_EMPTY = '<p class="hv hv-why">Nothing yet: drop a video and press Label.</p>'


def page(
    labeller: Labeller, listed: Callable[[], list[Choice]], first: Choice, queue: int
) -> gradio.Blocks:
    """Return the page.

    Args:
        labeller: does the jobs.
        listed: returns the weights to choose from, as they are now.
        first: those that are chosen when the page opens.
        queue: jobs that may wait.
    """
    import gradio as gr

    with gr.Blocks(
        title="hiera_video", analytics_enabled=False, delete_cache=(_LOOKED_AT, KEPT_SECONDS)
    ) as blocks:
        gr.HTML("<h1>Label a video</h1>")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                inputs, weights, button = _inputs(listed, first)
            with gr.Column(scale=3, min_width=320):
                outputs = _outputs()
        button.click(
            _job(labeller, listed),
            inputs,
            outputs,
            api_name=LABEL,
            concurrency_limit=1,
            # What the browser sends is checked by the labeller. Gradio's own way would fetch
            # addresses that it names, and run ffmpeg on the file in this process.
            preprocess=False,
        )
        # What was downloaded meanwhile is said when the page is opened.
        blocks.load(
            lambda: gr.Dropdown(choices=_pairs(listed())),
            None,
            weights,
            api_visibility="private",
        )
    blocks.queue(max_size=queue, api_open=False, default_concurrency_limit=1)
    return blocks


def _inputs(
    listed: Callable[[], list[Choice]], first: Choice
) -> tuple[list[Any], gradio.Dropdown, gradio.Button]:
    """The parts that a visitor fills in, in the order of `_job`; the weights; the button."""
    import gradio as gr

    video = gr.Video(
        label="Video",
        sources=["upload", "webcam"],
        include_audio=False,  # the camera is asked for, the microphone is not
        webcam_options=gr.WebcamOptions(mirror=False),
        elem_id="video",
    )
    weights = gr.Dropdown(
        _pairs(listed()), value=first.key, label="Weights", elem_id="weights", filterable=False
    )
    also = gr.CheckboxGroup(
        [TIMELINE, EXPLANATION], value=[TIMELINE, EXPLANATION], label="Also show"
    )
    seconds = gr.Number(
        2, label="Seconds per window", minimum=LEAST_SECONDS, maximum=MOST_SECONDS, step=0.1
    )
    hidden = gr.Slider(
        LEAST_HIDDEN,
        MOST_HIDDEN,
        value=0.9,
        step=0.05,
        label="Hidden share of the clip, for weights that reconstruct",
    )
    button = gr.Button("Label", variant="primary")
    return [video, weights, also, seconds, hidden], weights, button


def _outputs() -> list[Any]:
    """The parts that show what was found, in the order of `results.Texts`, and JSON."""
    import gradio as gr

    def part(name: str) -> gradio.HTML:
        return gr.HTML(_EMPTY, elem_id=name, js_on_load=None)

    summary = gr.HTML("", elem_id="summary", js_on_load=None)
    with gr.Tabs():
        with gr.Tab("Labels"):
            labels = part("labels")
        with gr.Tab(TIMELINE):
            timeline = part("timeline")
        with gr.Tab(EXPLANATION):
            explanation = part("explanation")
        with gr.Tab("Reconstruction"):
            painting = part("painting")
    return [summary, labels, timeline, explanation, painting, gr.JSON(visible=False)]


def _pairs(listed: list[Choice]) -> list[tuple[str, str]]:
    return [(choice.text, choice.key) for choice in listed]


def _job(
    labeller: Labeller, listed: Callable[[], list[Choice]]
) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """What the button does."""
    import gradio as gr

    def label(
        video: Any,
        weights: Any,
        also: Any,
        seconds: Any,
        hidden: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio looks for it there)
    ) -> Iterator[tuple[Any, ...]]:
        shown = also if isinstance(also, list) else []
        wanted = Wanted(weights, TIMELINE in shown, EXPLANATION in shown, seconds, hidden)
        try:
            for found in labeller.job(
                listed(), video, wanted, lambda share, what: progress(share, desc=what)
            ):
                yield (*texts(found), _content(found))
        except UserError as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from None

    return label


def _content(found: Found) -> dict[str, Any] | None:
    return None if found.prediction is None else found.prediction.to_dict()
