"""The runtimes that a component may offer lowerings for."""

from __future__ import annotations

from collections.abc import Mapping

TARGETS: Mapping[str, tuple[str, ...]] = {"onnx": ("onnx",), "ort": ("ort", "onnx")}
"""What `export.target` may be, and whose lowerings it takes, the first that there is: `onnx` stands for the standard's
operators alone, `ort` for those of ONNX Runtime as well."""
