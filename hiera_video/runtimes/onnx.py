"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from hiera_video.runtimes.exported import Array, ExportedModel
from hiera_video.runtimes.facts import INPUT, KEY, Facts
from hiera_video.runtimes.libraries import library, not_ours, unreadable


def open_onnx(path: str, *, threads: int) -> ExportedModel:
    """Open an .onnx file in ONNX Runtime on `threads` CPU threads.

    Raises UserError without the library, WeightsError for a file that cannot be opened or that
    does not say what it is.
    """
    ort = library("onnxruntime", "running an ONNX file")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads would otherwise wait for work by turning in circles, and take the cores from
    # PyTorch, which prepares the clips in the same process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has a type for each reason
        raise unreadable(path, error) from None
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise not_ours(path)

    def run(clips: Array) -> Array:
        rows: Array = session.run(None, {INPUT: clips})[0]
        return rows

    return ExportedModel(Facts.from_json(text, path), run, "ONNX Runtime")
