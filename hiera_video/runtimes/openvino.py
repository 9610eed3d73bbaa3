"""OpenVINO's own files, and ONNX files, in OpenVINO."""

from __future__ import annotations

from functools import cache
from typing import Any

from hiera_video.runtimes.exported import Array, ExportedModel
from hiera_video.runtimes.facts import KEY, Facts
from hiera_video.runtimes.libraries import library, not_ours, unreadable

PRECISION = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}
"""dtype of a file -> what OpenVINO computes in where the graph says nothing else. A CPU stores fp16
weights and computes in float32. Said always: left to itself it takes bfloat16 on some CPUs."""


def open_openvino(path: str, *, threads: int) -> ExportedModel:
    """Open a model.xml (with its .bin beside it) or an .onnx file on `threads` CPU threads.

    Raises UserError without the library, WeightsError for a file that cannot be opened or that
    does not say what it is.
    """
    ov = library("openvino", "running a model in OpenVINO")
    core = _core(ov)
    try:
        graph = core.read_model(path)
        text = _metadata(graph)
        if text is None:
            raise not_ours(path)
        facts = Facts.from_json(text, path)
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION[facts.dtype],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        compiled = core.compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        raise unreadable(path, error) from None
    request = compiled.create_infer_request()

    def run(clips: Array) -> Array:
        request.infer([clips], share_inputs=True)
        rows: Array = request.get_output_tensor(0).data.copy()
        return rows

    return ExportedModel(facts, run, "OpenVINO")


@cache
def _core(ov: Any) -> Any:
    """The one core of this process, which stays to its end.

    OpenVINO gives the thread a stack of its own for signal handlers and puts the former one back
    when a core goes. With two cores that can be a stack that is gone: the next Ctrl-C would end the
    process with a segmentation fault.
    """
    return ov.Core()


def _metadata(graph: Any) -> str | None:
    """The facts in a graph: of an own file, or as they come out of an ONNX file."""
    for place in ([KEY], ["framework", KEY]):
        if graph.has_rt_info(place):
            return str(graph.get_rt_info(place).astype(str))
    return None
