"""int8 by the runtimes' own post-training quantisation.

Weights are rounded once, by channel. The ranges of what flows between the layers are measured on
real clips, so these should look like what the model will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hiera_video.runtimes.facts import INPUT, KEY, Facts
from hiera_video.runtimes.libraries import library


def quantised_onnx(source: Path, target: Path, clips: Sequence[Tensor], facts: Facts) -> None:
    """Quantise the linear layers of an .onnx file by ONNX Runtime's tools.

    clips: one batch each, as the file takes them.
    """
    onnx = library("onnx", "int8")
    library("onnxruntime", "int8")
    tools: Any = library("onnxruntime.quantization", "int8")

    class Reader(tools.CalibrationDataReader):
        """Hands out the clips one by one."""

        def __init__(self) -> None:
            self.left = iter(clips)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {INPUT: batch.numpy()}

    tools.quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=tools.QuantFormat.QDQ,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # without it, sums of products overflow on CPUs without VNNI
        op_types_to_quantize=["MatMul", "Gemm"],
        # Attention's products of two activations stay in float32: they lose most, and gain least.
        extra_options={"MatMulConstBOnly": True, "ActivationSymmetric": False},
    )
    graph = onnx.load(str(target))
    kept = [entry for entry in graph.metadata_props if entry.key != KEY]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    graph.metadata_props.add(key=KEY, value=facts.to_json())
    onnx.save(graph, str(target))


def quantised_openvino(graph: Any, clips: Sequence[Tensor]) -> Any:
    """Return an OpenVINO graph quantised by NNCF, which knows transformers.

    clips: one batch each, as the graph takes them.
    """
    nncf = library("nncf", "int8 for OpenVINO")
    arrays = [batch.numpy() for batch in clips]
    return nncf.quantize(
        graph,
        nncf.Dataset(arrays),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(arrays),
    )
