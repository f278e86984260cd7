"""Words scored by a table of their own, and by the one that they are read with, against transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peers import TOLERANCE, apart
from safetensors.torch import load_file, save_file
from test_heads import BART, SIZES, T5, causal_parity, made
from two_sided import drawn, encoder_parity, seq2seq_parity, sharpened, there_and_back

from transom.errors import CheckpointError
from transom.interop import export_checkpoint, import_checkpoint, import_run

TYPED, PLAIN = {"input_ids": 83, "token_type_ids": 3}, {"input_ids": 83}
# What the peer keeps, saves, and never reads where nothing is tied.
PREDICTIONS, LM = {"cls.predictions.bias"}, {"lm_head.bias"}
ENCODERS = {
    "BertForPreTraining": (PREDICTIONS, {"words": "prediction_logits", "next": "seq_relationship_logits"}, {}),
    "BertForMaskedLM": (PREDICTIONS, {"words": "logits"}, {}),
    "BertForSequenceClassification": (set(), {"classes": "logits"}, {}),
    "RobertaForMaskedLM": (LM, {"words": "logits"}, {}),
    "XLMRobertaForMaskedLM": (LM, {"words": "logits"}, {}),
    "DebertaV2ForMaskedLM": (PREDICTIONS, {"words": "logits"}, {}),
    "DebertaV2ForMaskedLM ": (PREDICTIONS, {"words": "logits"}, {"embedding_size": 20}),
    "DebertaV2ForMaskedLM  ": (set(), {"words": "logits"}, {"legacy": False}),
    "ElectraForMaskedLM": (set(), {"words": "logits"}, {"embedding_size": 20}),
    "ElectraForPreTraining": (set(), {"replaced": "logits"}, {"embedding_size": 20}),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", list(ENCODERS))
def test_an_encoder(tmp_path: Path, name: str, tied: bool) -> None:
    unread, heads, more = ENCODERS[name]
    theirs = made(name.strip(), **SIZES, **more, tie_word_embeddings=tied)
    encoder_parity(theirs, tmp_path, TYPED, heads, unread=set() if tied else unread)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["BigBirdForPreTraining", "BigBirdForMaskedLM", "LongformerForMaskedLM"])
@torch.no_grad()
def test_an_encoder_of_long_texts(tmp_path: Path, name: str, tied: bool) -> None:
    long = name.startswith("Longformer")
    more = {"attention_window": 8} if long else {"attention_type": "original_full"}
    theirs = made(name.strip(), **SIZES, **more, tie_word_embeddings=tied)
    unread = set() if tied else LM if long else PREDICTIONS
    if name == "BigBirdForMaskedLM":
        unread = {*unread, "bert.pooler.weight", "bert.pooler.bias"}
    ours, ids = there_and_back(theirs, tmp_path, unread), drawn(83, 23, 1)
    found, wanted = ours(input_ids=ids).logits, theirs(input_ids=ids)
    found = found["words"] if isinstance(found, dict) else found
    assert apart(found, wanted["prediction_logits" if "PreTraining" in name else "logits"]) < TOLERANCE


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["BertLMHeadModel", "RobertaForCausalLM", "ElectraForCausalLM"])
def test_an_encoder_that_decodes(tmp_path: Path, name: str, tied: bool) -> None:
    more = {"embedding_size": 20} if "Electra" in name else {}
    theirs = made(name, **SIZES, **more, is_decoder=True, tie_word_embeddings=tied)
    unread = set() if tied or "Electra" in name else PREDICTIONS if "Bert" in name[:4] else LM
    causal_parity(theirs, there_and_back(theirs, tmp_path, unread), TYPED)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "name", ["BartForConditionalGeneration", "PegasusForConditionalGeneration", "T5ForConditionalGeneration"]
)
def test_an_encoder_decoder(tmp_path: Path, name: str, tied: bool) -> None:
    if name.startswith("T5"):  # which the peer ties whatever is said
        theirs = sharpened(made(name, **T5, tie_word_embeddings=tied), 1.0)
        seq2seq_parity(theirs, tmp_path, 83)
        return
    peer = getattr(transformers, name)
    theirs = sharpened(peer(peer.config_class(**BART, tie_word_embeddings=tied)), 2.3)
    seq2seq_parity(theirs, tmp_path, 83, unread=set() if tied else {"model.shared.weight"})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["BartModel", "BartForSequenceClassification", "PegasusModel"])
@torch.no_grad()
def test_an_encoder_decoder_without_words(tmp_path: Path, name: str, tied: bool) -> None:
    theirs = made(name, **BART, tie_word_embeddings=tied)
    shared = {"shared.weight" if name.endswith("Model") else "model.shared.weight"}
    ours = there_and_back(theirs, tmp_path, set() if tied else shared)
    ids, written = drawn(83, 23, 1), drawn(83, 23, 2)
    ids[:, -1] = written[:, -1] = 2  # at the end of a text the peer reads its class
    given = {"input_ids": ids, "decoder_input_ids": written}
    wanted = theirs(**given, output_hidden_states=True).decoder_hidden_states[-1]
    assert apart(ours(**given).hidden, wanted) < TOLERANCE


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["BartForCausalLM", "PegasusForCausalLM"])
def test_a_decoder_alone(tmp_path: Path, name: str, tied: bool) -> None:
    theirs = made(name, **BART, use_cache=False, tie_word_embeddings=tied)
    cross = {key for key in theirs.state_dict() if "encoder_attn" in key}
    causal_parity(theirs, there_and_back(theirs, tmp_path, cross), PLAIN)


PLAIN_SIZES = {"hidden_size": 36, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 6}
GROUPED = PLAIN_SIZES | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 10}
GPT = {"n_embd": 36, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DECODERS: Mapping[str, dict[str, Any]] = {
    "GPT2LMHeadModel": GPT,
    "OpenAIGPTLMHeadModel": GPT,
    "CTRLLMHeadModel": GPT | {"dff": 50},
    "GPTNeoForCausalLM": {"hidden_size": 36, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    "GPTNeoXForCausalLM": PLAIN_SIZES | {"hidden_size": 48},
    "OPTForCausalLM": {"hidden_size": 36, "ffn_dim": 50, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "word_embed_proj_dim": 20},
    "BloomForCausalLM": {"hidden_size": 36, "n_layer": 2, "n_head": 4},
    "FalconForCausalLM": {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6},
    "LlamaForCausalLM": WIDE,
    "MistralForCausalLM": WIDE,
    "MixtralForCausalLM": WIDE | {"num_local_experts": 4},
    "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": WIDE,
    "Qwen3MoeForCausalLM": WIDE | EXPERTS,
    "Phi3ForCausalLM": GROUPED,
    "Gemma2ForCausalLM": WIDE,
    "Gemma3ForCausalLM": WIDE,
    "RecurrentGemmaForCausalLM": GROUPED | {"lru_width": 48, "hidden_size": 48, "num_hidden_layers": 3},
    "RwkvForCausalLM": {"hidden_size": 36, "num_hidden_layers": 2, "attention_hidden_size": 36},
    "Mamba2ForCausalLM": {"hidden_size": 36, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 9, "n_groups": 2,
                          "state_size": 10},
    "XLNetLMHeadModel": {"d_model": 30, "n_layer": 2, "n_head": 5, "d_inner": 46, "mem_len": None},
}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_decoder(tmp_path: Path, name: str, tied: bool) -> None:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 83}
    theirs = made(name, **ids, **DECODERS[name], tie_word_embeddings=tied)
    ours, given = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    assert (getattr(ours.head, "source", None) is not None) == tied
    assert apart(ours(input_ids=given).logits, theirs(input_ids=given).logits) < TOLERANCE


@torch.no_grad()
def test_what_the_peer_does_not_read_changes_nothing(tmp_path: Path) -> None:
    theirs = made("BertForMaskedLM", **SIZES, tie_word_embeddings=False)
    theirs.save_pretrained(tmp_path / "hf")
    file, ids = tmp_path / "hf" / "model.safetensors", drawn(83, 23, 1)
    before = import_checkpoint(tmp_path / "hf")[1](input_ids=ids).logits
    tensors = load_file(file)
    save_file(tensors | {"cls.predictions.bias": tensors["cls.predictions.bias"] + 1}, file, {"format": "pt"})
    assert torch.equal(import_checkpoint(tmp_path / "hf")[1](input_ids=ids).logits, before)
    wanted = theirs(input_ids=ids).logits
    assert torch.equal(type(theirs).from_pretrained(tmp_path / "hf")(input_ids=ids).logits, wanted)
    # What goes back has what is read alone.
    back = export_checkpoint(import_run(tmp_path / "hf", None, tmp_path / "run"), tmp_path / "back")
    assert tensors.keys() - load_file(back / "model.safetensors").keys() == PREDICTIONS
    assert torch.equal(type(theirs).from_pretrained(back)(input_ids=ids).logits, wanted)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("BertForMaskedLM", "cls.predictions.decoder.weight"),
        ("BertForMaskedLM", "cls.predictions.decoder.bias"),
        ("ElectraForMaskedLM", "generator_lm_head.weight"),
        ("BartForConditionalGeneration", "model.decoder.embed_tokens.weight"),
        ("PegasusForConditionalGeneration", "lm_head.weight"),
    ],
)
def test_a_table_that_is_not_there_is_missed(tmp_path: Path, name: str, lost: str) -> None:
    sizes = SIZES if "MaskedLM" in name else BART
    made(name, **sizes, tie_word_embeddings=False).save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    del tensors[lost]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"'{lost}' is missing"):
        import_checkpoint(tmp_path / "hf")
