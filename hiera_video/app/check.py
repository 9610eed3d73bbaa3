"""The app uses itself: a made clip goes through its own interface, as a visitor's would."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Any

from hiera_video.app.interface import EXPLANATION, LABEL, TIMELINE
from hiera_video.data.synthetic.camera_motion import ClipSettings, write_clip
from hiera_video.errors import RunFailed, first_line
from hiera_video.models.weights.resolve import BUNDLED_CLASSIFIER

_MOTION, _SEED = "zoom in", 1
"""What the clip shows; the bundled weights know it."""


def check(address: str, folder: str) -> str:
    """Use the app at an address; return what happened, in a line.

    Raises RunFailed where it does not answer, or not as it should.
    """
    from gradio_client import Client, handle_file

    began = time.monotonic()
    clip = Path(folder, "clip.mp4")
    write_clip(clip, _MOTION, _SEED, ClipSettings(plain=True))
    try:
        with urllib.request.urlopen(address, timeout=30) as page:
            if "<gradio-app" not in page.read().decode():
                raise RunFailed(f"{address} answers, but not with the page of the app")
        client = Client(address, verbose=False, analytics_enabled=False, download_files=False)
        answer = client.predict(
            handle_file(str(clip)),
            BUNDLED_CLASSIFIER,
            [TIMELINE, EXPLANATION],
            1.0,
            0.9,
            api_name=f"/{LABEL}",
        )
    except RunFailed:
        raise
    except Exception as error:  # whatever a client of HTTP raises: the check has failed
        raise RunFailed(
            f"the app at {address} cannot be used: {type(error).__name__}: {first_line(error)}"
        ) from error
    label, score = _first_label(answer)
    if label != _MOTION:
        raise RunFailed(f"the app calls a clip of {_MOTION!r} {label!r}; {score:.1%}")
    return (
        f"checked: {address} labels a made clip as {label} ({score:.1%}), with scores over time "
        f"and why, in {time.monotonic() - began:.1f} s"
    )


def _first_label(answer: Any) -> tuple[str, float]:
    """The first label of what the app answered; RunFailed where a part is missing."""
    try:
        *_, content = answer
        first = content["labels"][0]
        if not content["timeline"] or not content["explanation"]["cells"]:
            raise KeyError("timeline, explanation")
        return str(first["label"]), float(first["score"])
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise RunFailed(f"the app's answer is not whole: {first_line(error)}") from None
