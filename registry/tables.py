"""Names that many checkpoints write alike, with ours: what the `values` of a field may say by the name of a table."""

from __future__ import annotations

from collections.abc import Mapping

TABLES: Mapping[str, Mapping[str, str]] = {
    # Several names stand for one function: `gelu_fast` and `gelu_new` both take tanh for the error function.
    "activations": {
        "gelu": "gelu",
        "gelu_fast": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "quick_gelu": "quick_gelu",
        "relu": "relu",
        "relu2": "relu2",
        "silu": "silu",
        "swish": "silu",
        "tanh": "tanh",
    },
}
"""Table -> what a checkpoint's config says -> what a spec says."""
