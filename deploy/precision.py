"""Lower precisions: which of them kernels can run, and a model made of them."""

from __future__ import annotations

import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped]
import torch

from ..core.topology import Topology
from ..errors import ExportError
from .graph import IR_VERSION
from .session import providers
from .source import sharing

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ALLOWED = {"fp16": 0.1, "bf16": 0.3}
"""The largest error of a graph of a precision, relative to a tensor's largest magnitude: beyond it, it is broken."""


def in_precision(model: Topology, precision: str) -> Topology:
    """Return a copy of a model whose weights are of a precision; what it remembers follows its declarations."""
    return sharing(model).to(DTYPES[precision])


def check_kernels(precision: str) -> None:
    """Refuse a precision that a provider of this machine has no kernels for, so that nothing could prove a graph.

    Raises:
        ExportError: with what ONNX Runtime says.
    """
    for provider in providers():
        if why := _lacks(precision, provider):
            raise ExportError(
                f"export.precision: {precision}: {provider} has no kernels for it, so its graph can't be checked "
                f"here: {why}; use {' or '.join(name for name in DTYPES if name != precision)}"
            )


def _lacks(precision: str, provider: str) -> str:
    """Return what ONNX Runtime says where it can't multiply in a precision; nothing where it can."""
    dtype = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[precision]
    x = ir.Value(name="x", shape=ir.Shape([2, 2]), type=ir.TensorType(dtype))
    node = ir.node("MatMul", [x, x])
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", x.shape, x.type
    model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 24}, name="probe"), ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options, providers=[provider])
    except Exception as error:  # the library has an exception class per status code, with no common parent
        return str(error).strip().rpartition(" : ")[2]
    return ""
