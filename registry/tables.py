"""Names that many checkpoints write alike, with ours: what the `values` of a field may say by the name of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.activation_names import NAMES


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a checkpoint's config says -> what a spec says; and -> why it is refused, in words that follow its name."""

    values: Mapping[str, str]
    refused: Mapping[str, str] = field(default_factory=dict)


# Several names stand for one function: most of a gelu's are the one that takes tanh for the error function.
_ACTIVATIONS: dict[str, str] = {
    **{name: name for name in NAMES if name != "gelu_tanh"},
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
}
_LEARNED = "has weights of its own, and an activation here has none"
_REFUSED: dict[str, str] = {"prelu": _LEARNED, "xielu": _LEARNED}


def _gated(name: str) -> str:
    """Return how a checkpoint calls a gate of this activation."""
    return f"gated-{name}"


_REFUSED_GATED = _REFUSED | {_gated(name): why for name, why in _REFUSED.items()}

ACTIVATIONS = "activations"
TABLES: Mapping[str, Table] = {
    ACTIVATIONS: Table(values=_ACTIVATIONS, refused=_REFUSED),
    # Which token a summary of a text is made of.
    "summaries": Table(values={"cls_index": "last", "first": "first", "last": "last", "mean": "mean"}),
    # The two halves of a name such as `gated-silu`. The gelu of a gate is the one by tanh, as it was published.
    "gates": Table(
        values=dict.fromkeys(_ACTIVATIONS, "mlp") | dict.fromkeys(map(_gated, _ACTIVATIONS), "glu"),
        refused=_REFUSED_GATED,
    ),
    "gated_activations": Table(
        values=_ACTIVATIONS | {_gated(name): ours for name, ours in (_ACTIVATIONS | {"gelu": "gelu_tanh"}).items()},
        refused=_REFUSED_GATED,
    ),
}

# What fields of these names say in most families -> the option that they go to, or several.
ACTIVATED = ("activation_function", "ff_activation", "hidden_act", "hidden_activation")
USUAL: Mapping[str, tuple[str, ...] | str] = {
    "vocab_size": "model.embedding.vocab_size",
    "type_vocab_size": "model.embedding.n_types",
    **dict.fromkeys(("max_position_embeddings", "n_positions"), "model.max_seq_len"),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd"), "model.d_model"),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer"), "model.layers.0.repeat"),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head"), "model.layer.attention.n_heads"),
    "num_key_value_heads": "model.layer.attention.n_kv_heads",
    "head_dim": "model.layer.attention.head_dim",
    "attention_bias": "model.layer.attention.bias",
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "d_inner"), "model.layer.feedforward.d_ff"),
    "mlp_bias": "model.layer.feedforward.bias",
    **dict.fromkeys(ACTIVATED, "model.layer.feedforward.activation"),
    **dict.fromkeys(
        ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps"), ("model.layer.norm.eps", "model.norm.eps")
    ),
    "rope_theta": "model.position.theta",
    "tie_word_embeddings": "model.head.*.tied",
}

# The heads that have as many classes, or kinds of tokens, as a file has labels -> the option that says so.
LABELLED: Mapping[str, str] = {"classes": "n_classes", "tokens": "vocab_size"}

# What a map of a rotation says beside its kind -> the option of a position that it goes to.
ROTATED: Mapping[str, str] = {
    "rope_theta": "theta",
    "factor": "scaling.factor",
    "low_freq_factor": "scaling.slow",
    "beta_slow": "scaling.slow",
    "high_freq_factor": "scaling.fast",
    "beta_fast": "scaling.fast",
    "short_factor": "scaling.short",
    "long_factor": "scaling.long",
    "attention_factor": "scaling.magnitude",
    "mscale": "scaling.mscale",
    "mscale_all_dim": "scaling.mscale_all_dim",
}
# The one map whose word on whole places transformers heeds, and why that of others is refused.
CUT = ("rope_parameters", "would change nothing in transformers, which looks for it beside the maps of kinds of layers")
# The kinds of stretched rotations, of which some say for how long a text they were trained; else it is the longest.
STRETCHED = ("linear", "llama3", "yarn", "longrope", "dynamic")
TRAINED = ("llama3", "yarn", "longrope", "su")  # as older files call longrope
LONGEST = ("dynamic", "max_position_embeddings")
