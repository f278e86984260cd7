"""Decoders without a head, and with those of tasks, from their config.json, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peers import TOLERANCE, apart
from two_sided import drawn, masks, sharpened, there_and_back

import transom

SIZES = {"vocab_size": 83, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {
    "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64, "rms_norm_eps": 0.1,
}  # fmt: skip
GPT = {"n_positions": 31, "n_embd": 36, "n_layer": 2, "n_head": 4}
PHI = LLAMA | {"hidden_size": 60}
OPT = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 50,
    "max_position_embeddings": 31,
}
NEO = {
    "max_position_embeddings": 31, "hidden_size": 36, "num_layers": 3, "num_heads": 4, "window_size": 7,
    "attention_types": [[["global", "local", "local"], 1]],
}  # fmt: skip
NEOX = {"hidden_size": 40, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4}
BLOOM = {"hidden_size": 36, "n_layer": 2, "n_head": 6}
FALCON = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6}
BASE, CLASSES, TOKENS, SPANS = "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"
ALL = (BASE, CLASSES, TOKENS, SPANS)
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "Llama": (LLAMA, ALL),
    "Mistral": (LLAMA | {"sliding_window": 7}, ALL),
    "Mixtral": (LLAMA | {"intermediate_size": 52, "num_local_experts": 3, "num_experts_per_tok": 2}, ALL),
    "Qwen2": (LLAMA | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, ALL),
    "Qwen3": (LLAMA | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, ALL),
    "Phi3": ({name: value for name, value in PHI.items() if name != "head_dim"}, (BASE, CLASSES, TOKENS)),
    "Gemma2": (LLAMA, (BASE, CLASSES, TOKENS)),
    "Gemma3Text": (LLAMA | {"sliding_window": 7}, (BASE, CLASSES)),
    "GPT2": (GPT, ALL),
    "OpenAIGPT": (GPT, (BASE, CLASSES)),
    "GPTNeo": (NEO, ALL),
    "GPTNeoX": (NEOX, ALL),
    "Bloom": (BLOOM, ALL),
    "Falcon": (FALCON, ALL),
    "OPT": (OPT, (BASE, CLASSES, SPANS)),
    "CTRL": (GPT | {"dff": 50}, (BASE, CLASSES)),
}


def logits_of(found: Any, kind: str) -> Any:
    """Return what the peer's head gives, as ours would."""
    return torch.stack([found.start_logits, found.end_logits], -1) if kind == SPANS else found.logits


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, (_, kinds) in FAMILIES.items() for kind in kinds])
@torch.no_grad()
def test_a_head_reads_the_same(tmp_path: Path, name: str, kind: str) -> None:
    model = getattr(transformers, f"{name}{kind}")
    theirs = sharpened(model(model.config_class(**SIZES | FAMILIES[name][0], num_labels=5)))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    for mask in (torch.ones_like(ids), masks(23)[0]):
        given = {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}
        found, wanted, real = ours(**given), theirs(**given), mask.bool()
        if kind == BASE:
            assert found.logits == {}
            assert apart(found.hidden[real], wanted.last_hidden_state[real]) < TOLERANCE
        elif kind == CLASSES:
            assert apart(found.logits, wanted.logits) < TOLERANCE
        else:
            assert apart(found.logits[real], logits_of(wanted, kind)[real]) < TOLERANCE


def test_options_of_the_only_head_stay_where_they_were() -> None:
    """The head of a language model is written among others, and its options are still those of `model.head`."""
    assert transom.load_spec("llama", ["model.head.tied=false"]).model.heads["head"].config.tied is False
    assert list(transom.load_spec("llama", ["model.head=none", "objective=none"]).model.heads) == []
    assert list(transom.load_spec("bert", ["model.head={kind: classifier, n_classes: 3}"]).model.heads) == ["head"]
    named = transom.load_spec("llama", ["model.head={head: {tied: false}, extra: {kind: lm}}"])
    assert list(named.model.heads) == ["head", "extra"]
