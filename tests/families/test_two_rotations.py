"""Models with two rotations whose pairs turn otherwise in longer texts, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peers import TOLERANCE, apart, sharpened
from two_sided import drawn

import transom
from transom.interop import family_spec

DYNAMIC = {"rope_type": "dynamic", "factor": 3.0}
LONG = {
    "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.5], "long_factor": [1.3, 2.0, 9.0],
}  # fmt: skip
SIZES = {
    "vocab_size": 83, "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "Gemma3ForCausalLM": {"num_key_value_heads": 2, "head_dim": 6, "sliding_window": 7, "query_pre_attn_scalar": 1},
    "ModernBertForMaskedLM": {"local_attention": 14},
}


@pytest.mark.parametrize("kinds", [(DYNAMIC, LONG), (LONG, DYNAMIC)])
@pytest.mark.parametrize("name", sorted(MORE))
@torch.no_grad()
def test_each_rotation_goes_by_the_length(tmp_path: Path, name: str, kinds: tuple[Any, Any]) -> None:
    near, far = ({**kind, "rope_theta": theta} for kind, theta in zip(kinds, (90.0, 500.0), strict=True))
    cls = getattr(transformers, name)
    rope = {"sliding_attention": near, "full_attention": far}
    theirs = sharpened(cls(cls.config_class(**SIZES, **MORE[name], rope_parameters=rope)))
    theirs.save_pretrained(tmp_path)
    longer = "model.max_seq_len=96"
    ours = transom.import_checkpoint(tmp_path, family_spec(tmp_path, [longer]))[1]
    for length in (9, 16, 17, 41):
        ids = drawn(83, length, 1)
        assert apart(ours(input_ids=ids).logits, theirs(input_ids=ids).logits) < TOLERANCE, length
    wanted = ours(input_ids=ids).logits
    for option in ("model.position.scaling.trained=19", "model.layer.position.scaling.trained=19"):
        spec = family_spec(tmp_path, [longer, option])
        assert apart(transom.import_checkpoint(tmp_path, spec)[1](input_ids=ids).logits, wanted) > 1e-4, option
