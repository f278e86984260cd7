"""The decoders that are held against transformers: a small model of each with all that its config can ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import transformers

SIZES = {"vocab_size": 83, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Family:
    """Say how to make a small model of a family, and which options it can't do without.

    `make`: gives the model with its first weights. `needed`: overrides that must break parity, one at a time.
    `attention`: the path through it that is compared.
    """

    make: Callable[[], Any]
    needed: tuple[str, ...]
    attention: str = "sdpa"


def _maker(name: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        model = getattr(transformers, name)
        return model(model.config_class(**SIZES | options))

    return make


LLAMA = {
    "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64, "rms_norm_eps": 0.1,
}  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        _maker(
            "GPT2LMHeadModel", n_positions=29, n_embd=36, n_layer=2, n_head=4, n_inner=50, layer_norm_epsilon=0.1,
            activation_function="gelu", tie_word_embeddings=False, scale_attn_weights=False,
            scale_attn_by_inverse_layer_idx=True,
        ),
        ("model.layer.attention.scale=null", "model.layer.attention.depth_scale=false",
         "model.layer.norm.eps=1.0e-5", "model.norm.eps=1.0e-5",
         "model.layer.feedforward.activation=gelu_tanh"),
    ),
    "llama": Family(
        _maker(
            "LlamaForCausalLM", **LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
            rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
        ),
        ("model.position.scaling=null", "model.position.scaling.slow=0.5", "model.position.theta=10000.0",
         "model.norm.eps=1.0e-5", "model.layer.feedforward.activation=gelu"),
    ),
    "mistral": Family(
        _maker(
            "MistralForCausalLM", **LLAMA, sliding_window=7,
            rope_parameters={"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
                             "original_max_position_embeddings": 16},
        ),
        ("model.layer.attention.window=8", "model.layer.attention=full", "model.position.scaling=null"),
    ),
    "qwen2": Family(
        _maker(
            "Qwen2ForCausalLM", **{name: value for name, value in LLAMA.items() if name != "head_dim"}
            | {"num_hidden_layers": 3}, use_sliding_window=True, sliding_window=7, max_window_layers=1,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
                             "original_max_position_embeddings": 16},
        ),
        ("model.layers.1.pattern.0.attention=full", "model.layer.attention.window=8", "model.position.scaling=null"),
    ),
    "qwen3": Family(
        _maker(
            "Qwen3ForCausalLM", **LLAMA | {"num_hidden_layers": 3}, attention_bias=True, use_sliding_window=True,
            sliding_window=7, max_window_layers=1,
            rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
        ),
        ("model.layers.1.pattern.0.attention=full", "model.layer.attention.qk_norm.eps=1.0e-6",
         "model.position.scaling.factor=2.0"),
    ),
    "gpt_neox": Family(
        _maker(
            "GPTNeoXForCausalLM", hidden_size=40, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, layer_norm_eps=0.1, hidden_act="gelu_new", tie_word_embeddings=True,
            rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0, "partial_rotary_factor": 0.4},
        ),
        ("model.layer.placement=pre", "model.position.fraction=1.0", "model.position.scaling=null",
         "model.norm.eps=1.0e-5"),
    ),
    "gemma3": Family(
        _maker(
            "Gemma3ForCausalLM", **LLAMA | {"num_hidden_layers": 7}, attention_bias=True, sliding_window=7,
            query_pre_attn_scalar=1, final_logit_softcapping=5.0, tie_word_embeddings=True,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
            },
        ),
        ("model.layer.attention.query_scalar=10.0", "model.head.soft_cap=null", "model.position.theta=500.0",
         "model.layer.position.scaling=null", "model.layer.attention.window=8", "model.embedding.scale=1.0",
         "model.layer.norm.unit_offset=false"),
    ),
    "phi3": Family(
        _maker(
            "Phi3ForCausalLM", **{name: value for name, value in LLAMA.items() if name != "head_dim"}
            | {"hidden_size": 60}, sliding_window=7, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.6},
        ),
        ("model.layer.attention.window=8", "model.position.fraction=1.0"),
    ),
    "gemma2": Family(
        _maker(
            "Gemma2ForCausalLM", **LLAMA, attention_bias=True, sliding_window=7, query_pre_attn_scalar=17,
            attn_logit_softcapping=3.0, final_logit_softcapping=5.0,
        ),
        ("model.layer.attention.soft_cap=null", "model.head.soft_cap=null", "model.layer.attention.window=8",
         "model.layer.attention.query_scalar=10.0"),
        attention="eager",
    ),
    "mixtral": Family(
        _maker(
            "MixtralForCausalLM", **LLAMA | {"intermediate_size": 52}, sliding_window=7, num_local_experts=5,
            num_experts_per_tok=3,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        ("model.layer.feedforward.n_active=2", "model.layer.feedforward.renormalise=false",
         "model.layer.attention.window=8"),
    ),
}  # fmt: skip
