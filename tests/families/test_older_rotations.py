"""Rotations as older files have them, beside `rope_theta` and not in maps of layers, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peers import TOLERANCE, apart, sharpened
from two_sided import drawn, gradients

from transom.errors import SpecError
from transom.interop import export_checkpoint, family_spec, import_checkpoint, import_run

SIZES = {
    "vocab_size": 83, "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TWO = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MORE: dict[str, dict[str, Any]] = {
    "Gemma3ForCausalLM":
        TWO | {"num_key_value_heads": 2, "head_dim": 6, "sliding_window": 7, "query_pre_attn_scalar": 1},
    "ModernBertForMaskedLM": TWO | {"local_attention": 14},
    "LlamaForCausalLM": {"num_key_value_heads": 2},
    "Qwen2ForCausalLM": {"num_key_value_heads": 2},
}  # fmt: skip
SPEEDS: dict[str, dict[str, float]] = {
    "Gemma3ForCausalLM": {"rope_theta": 500.0, "rope_local_base_freq": 30.0},
    "ModernBertForMaskedLM": {"global_rope_theta": 500.0, "local_rope_theta": 30.0},
    "LlamaForCausalLM": {"rope_theta": 500.0},
    "Qwen2ForCausalLM": {"rope_theta": 500.0},
}
LINEAR = {"rope_type": "linear", "factor": 8.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 3.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.5], "long_factor": [1.3, 2.0, 9.0]}
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0}


def older(folder: Path, name: str, **fields: Any) -> Any:
    """Write the folder of a model whose file says its rotations by some fields; return what the peer makes of it."""
    cls = getattr(transformers, name)
    sharpened(cls(cls.config_class(**SIZES, **MORE[name]))).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config | SPEEDS[name] | fields), encoding="utf-8")
    return cls.from_pretrained(folder).eval()


@pytest.mark.parametrize(
    "scaling",
    [None, {"rope_type": "default"}, LINEAR, LINEAR | {"rope_theta": 90.0}, DYNAMIC, YARN, LLAMA3, LONG,
     LONG | {"original_max_position_embeddings": 16}],
)  # fmt: skip
@pytest.mark.parametrize("name", sorted(MORE))
def test_it_says_the_same(tmp_path: Path, name: str, scaling: dict[str, Any] | None) -> None:
    """Without word of how long the texts were before, they were the longest that there may be."""
    theirs = older(tmp_path / "hf", name, rope_scaling=scaling)
    ours, ids = import_checkpoint(tmp_path / "hf")[1], drawn(83, 41, 1)
    with torch.no_grad():
        assert apart(ours(input_ids=ids).logits, theirs(input_ids=ids).logits) < TOLERANCE
    assert gradients(theirs, ours, {next(iter(ours.heads)): "logits"}, {"input_ids": ids}) < 1e-4
    back = export_checkpoint(import_run(tmp_path / "hf", None, tmp_path / "run"), tmp_path / "back")
    again = type(theirs).from_pretrained(back)
    assert again.config.to_dict() == theirs.config.to_dict() | {"_name_or_path": again.config._name_or_path}
    assert all(torch.equal(again.state_dict()[key], there) for key, there in theirs.state_dict().items())


@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "ModernBertForMaskedLM"])
@torch.no_grad()
def test_it_stretches_the_layers_that_it_does_there(tmp_path: Path, name: str) -> None:
    """Gemma 3's that have no window, and all of ModernBERT."""
    older(tmp_path, name, rope_scaling=LINEAR)
    ids, wanted = drawn(83, 41, 1), import_checkpoint(tmp_path)[1]
    for option in ("model.position.scaling=null", "model.layer.position.scaling=null", "model.position.theta=500"):
        found = import_checkpoint(tmp_path, family_spec(tmp_path, [option]))[1]
        same = name == "Gemma3ForCausalLM" and option == "model.position.scaling=null"
        assert (apart(found(input_ids=ids).logits, wanted(input_ids=ids).logits) < 1e-4) == same, option


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
@torch.no_grad()
def test_the_kind_by_its_older_name(tmp_path: Path, name: str) -> None:
    theirs = older(tmp_path, name, rope_scaling={"type": "linear", "factor": 8.0})
    ours, ids = import_checkpoint(tmp_path)[1], drawn(83, 41, 1)
    assert apart(ours(input_ids=ids).logits, theirs(input_ids=ids).logits) < TOLERANCE
    assert apart(older(tmp_path, name, rope_scaling=None)(input_ids=ids).logits, ours(input_ids=ids).logits) > 1e-2


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "linear", "factor": 8.0}, "rope_scaling.type: .*: beside a rotation with a window .*rope_type alone"),
        (YARN | {"truncate": False}, "rope_scaling.truncate: false is not read: it would change nothing in"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "ModernBertForMaskedLM"])
@torch.no_grad()
def test_what_changes_nothing_there_is_refused(tmp_path: Path, name: str, scaling: Any, message: str) -> None:
    ids, plain = drawn(83, 41, 1), {key: value for key, value in scaling.items() if key not in ("type", "truncate")}
    found = [older(tmp_path, name, rope_scaling=given)(input_ids=ids).logits for given in (plain, scaling)]
    assert torch.equal(*found)
    with pytest.raises(SpecError, match=message):
        family_spec(tmp_path)
