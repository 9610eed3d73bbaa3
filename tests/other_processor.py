"""An older processor, acted on this one: the numeric libraries are told to use less of it.

In a child process: `subprocess.run(..., env={**os.environ, **other_processor()})`; on the command
line: `env $(python tests/other_processor.py) python -m pytest -m numbers`.
"""

from __future__ import annotations

import numpy as np


def other_processor() -> dict[str, str]:
    """Environment for a process that is to use nothing newer than SSE 4.2, where it can be told."""
    return {
        "ATEN_CPU_CAPABILITY": "default",  # PyTorch's own kernels
        "ONEDNN_MAX_CPU_ISA": "SSE41",  # its convolutions
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",  # its matrix products; Intel's processors
        "MKL_CBWR": "COMPATIBLE",  # the same for any maker's
        "NPY_DISABLE_CPU_FEATURES": ",".join(_numpy_features()),
    }


def avx2() -> dict[str, str]:
    """Environment for a process that is to use AVX2 and FMA and nothing newer."""
    newer = [name for name in _numpy_features() if "512" in name or name == "X86_V4"]
    return {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_CBWR": "AVX2",
        "NPY_DISABLE_CPU_FEATURES": ",".join(newer),
    }


def _numpy_features() -> list[str]:
    """What numpy would use of this processor beyond the least it was built for."""
    return np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])


if __name__ == "__main__":
    print(*(f"{name}={value}" for name, value in other_processor().items()))
