"""Every head that encoders and encoder-decoders are published with, from their config.json, against transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peers import apart, checked
from safetensors.torch import load_file, save_file
from torch import Tensor
from two_sided import drawn, encoder_parity, given_by, gradients, masks, sharpened, spreads, there_and_back

import transom
from transom.errors import SpecError
from transom.interop import export_checkpoint, family_spec, import_checkpoint, import_run

SIZES = {
    "vocab_size": 83, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 50,
    "max_position_embeddings": 31, "type_vocab_size": 3, "layer_norm_eps": 1e-2, "hidden_act": "relu", "num_labels": 5,
}  # fmt: skip
T5 = {
    "vocab_size": 83, "d_model": 36, "d_kv": 10, "d_ff": 50, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 15, "layer_norm_epsilon": 1e-2,
    "num_labels": 5, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 83, "d_model": 36, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 6,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 50, "decoder_ffn_dim": 44, "max_position_embeddings": 31,
    "activation_function": "relu", "scale_embedding": True, "num_labels": 5, "eos_token_id": 2,
    "forced_eos_token_id": None,
}  # fmt: skip
INPUTS = {"input_ids": 83, "token_type_ids": 3}
SPANS = "start_logits+end_logits"


def made(name: str, **options: Any) -> Any:
    model = getattr(transformers, name)
    return sharpened(model(model.config_class(**options)))


class Choices:
    """Stand for a peer that chooses between texts, each row being the only choice."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, **inputs: Any) -> Any:
        return self.model(**{name: x[:, None] if isinstance(x, Tensor) else x for name, x in inputs.items()})

    def from_pretrained(self, folder: Path) -> Any:
        """Return what the peer reads from a folder."""
        return type(self.model).from_pretrained(folder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("BertModel", {"pooled": "pooler_output"}),
        ("BertForNextSentencePrediction", {"next": "logits"}),
        ("BertForQuestionAnswering", {"spans": SPANS}),
        ("BertForMultipleChoice", {"next": "logits"}),
        ("BertLMHeadModel", {"words": "logits"}),
        ("RobertaModel", {"pooled": "pooler_output"}),
        ("RobertaForSequenceClassification", {"classes": "logits"}),
        ("RobertaForMultipleChoice", {"next": "logits"}),
        ("RobertaForTokenClassification", {"tokens": "logits"}),
        ("RobertaForQuestionAnswering", {"spans": SPANS}),
        ("ElectraModel", {}),
        ("ElectraForSequenceClassification", {"classes": "logits"}),
        ("ElectraForMultipleChoice", {"next": "logits"}),
        ("ElectraForTokenClassification", {"tokens": "logits"}),
        ("ElectraForQuestionAnswering", {"spans": SPANS}),
    ],
)
def test_an_encoder(tmp_path: Path, name: str, heads: dict[str, str]) -> None:
    more = {"num_labels": 2} if name.endswith("QuestionAnswering") else {}
    more |= {"embedding_size": 20} if name.startswith("Electra") else {}
    model = made(name, **SIZES | more)
    encoder_parity(Choices(model) if name.endswith("Choice") else model, tmp_path, INPUTS, heads)


@pytest.mark.parametrize("name", ["BertLMHeadModel", "RobertaForCausalLM", "ElectraForCausalLM"])
def test_an_encoder_that_decodes(tmp_path: Path, name: str) -> None:
    model = made(name, **SIZES, is_decoder=True, **({"embedding_size": 20} if "Electra" in name else {}))
    ours = there_and_back(model, tmp_path)
    causal_parity(model, ours, INPUTS)


@pytest.mark.parametrize(
    "name", ["T5EncoderModel", "MT5EncoderModel", "T5ForTokenClassification", "MT5ForTokenClassification"]
)
def test_the_encoder_of_t5(tmp_path: Path, name: str) -> None:
    model = sharpened(getattr(transformers, name)(getattr(transformers, name).config_class(**T5)), 1.0)
    encoder_parity(model, tmp_path, {"input_ids": 83}, {"tokens": "logits"} if "Token" in name else {})


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("T5Model", ""),
        ("T5ForSequenceClassification", "logits"),
        ("T5ForQuestionAnswering", SPANS),
        ("MT5ForSequenceClassification", "logits"),
        ("MT5ForQuestionAnswering", SPANS),
        ("MT5Model", ""),
        ("BartModel", ""),
        ("BartForSequenceClassification", "logits"),
        ("BartForQuestionAnswering", SPANS),
        ("PegasusModel", ""),
    ],
)
@torch.no_grad()
def test_an_encoder_decoder_that_reads_its_source_twice(tmp_path: Path, name: str, output: str) -> None:
    sizes = T5 if "T5" in name else BART
    model = getattr(transformers, name)
    options = sizes | ({"id2label": {0: "first", 1: "last"}} if output == SPANS else {})
    options = {key: value for key, value in options.items() if key != "num_labels" or output != SPANS}
    theirs = sharpened(model(model.config_class(**options)), 1.0 if "T5" in name else 2.0)
    ours = there_and_back(theirs, tmp_path)
    ids, errors = drawn(83, 23, 2), []
    first = theirs.config.decoder_start_token_id
    for mask in (torch.ones_like(ids), *masks(23)):
        rows = [torch.cat([ids[row][mask[row].bool()][:-1], torch.tensor([2])]) for row in range(3)]
        source = ids.clone()
        for row, text in enumerate(rows):
            source[row, mask[row].bool()] = text
        written = source.clone()
        for row, text in enumerate(rows):
            written[row, mask[row].bool()] = torch.cat([torch.tensor([first]), text[:-1]])
        found = ours(input_ids=source, attention_mask=mask, decoder_input_ids=written, decoder_attention_mask=mask)
        for row, text in enumerate(rows):
            shifted = torch.cat([torch.tensor([first]), text[:-1]])[None]
            given = {"input_ids": text[None]} | ({} if output else {"decoder_input_ids": shifted})
            wanted = theirs(**given, output_hidden_states=True)
            real = mask[row].bool()
            errors.append(apart(found.hidden[row, real], wanted.decoder_hidden_states[-1][0]))
            if output:
                mine = found.logits[row][real] if found.logits.dim() == 3 else found.logits[row]
                errors.append(apart(mine, given_by(wanted, output)[0]))
    checked(theirs, errors)


@pytest.mark.parametrize("name", ["BartForCausalLM", "PegasusForCausalLM"])
def test_the_decoder_alone(tmp_path: Path, name: str) -> None:
    theirs = made(name, **BART, use_cache=False)
    theirs.save_pretrained(tmp_path / "hf")
    _, ours = import_checkpoint(tmp_path / "hf")
    causal_parity(theirs, ours, {"input_ids": 83})
    # What would read a source is not read here, and stays behind.
    back = export_checkpoint(import_run(tmp_path / "hf", None, tmp_path / "run"), tmp_path / "back")
    again = type(theirs).from_pretrained(back).eval().state_dict()
    kept = {key: x for key, x in theirs.state_dict().items() if "encoder_attn" not in key}
    assert all(torch.equal(again[key], x) for key, x in kept.items())


@torch.no_grad()
def causal_parity(theirs: Any, ours: Any, highs: Mapping[str, int]) -> float:
    """Return the largest error of a decoder, padded and not, and of 16 steps with a state; check that it is small."""
    inputs = {name: drawn(high, 23, seed) for seed, (name, high) in enumerate(highs.items())}
    assert (found := spreads(theirs, **inputs)) > 2, found
    errors = []
    for mask in (torch.ones(3, 23, dtype=torch.int64), *masks(23)):
        found = ours(**inputs, attention_mask=mask)
        for row in range(3):
            real = mask[row].bool()
            alone = {name: ids[row : row + 1, real] for name, ids in inputs.items()}
            wanted = theirs(**alone, output_hidden_states=True)
            errors.append(apart(found.hidden[row, real], wanted.hidden_states[-1][0]))
            errors.append(apart(found.logits[row, real], wanted.logits[0]))
    whole, state, logits = ours(**inputs).logits, ours.empty_state(3), []
    for columns in torch.arange(23).split([7, *[1] * 16]):
        out = ours(**{name: ids[:, columns] for name, ids in inputs.items()}, state=state)
        state, logits = out.state, [*logits, out.logits]
    errors.append(apart(torch.cat(logits, 1), whole))
    error = gradients(theirs, ours, {"head": "logits", "words": "logits"}, inputs)
    assert error < 1e-4, error
    return checked(theirs, errors)


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_older_names_of_norms_come_in_and_go_out(tmp_path: Path, prefix: str) -> None:
    theirs = made("BertForMaskedLM", **SIZES)
    theirs.save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    older = {
        re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)): tensor
        for name, tensor in load_file(file).items()
    }
    older = {prefix + name.removeprefix("bert.") if name.startswith("bert.") else name: x for name, x in older.items()}
    assert sum(name.endswith((".gamma", ".beta")) for name in older) == 12
    save_file(older, file, {"format": "pt"})
    _, ours = import_checkpoint(tmp_path / "hf")
    ids = drawn(83, 23, 1)
    with torch.no_grad():
        assert apart(ours(input_ids=ids).logits, theirs(input_ids=ids).logits) < 1e-5
    back = export_checkpoint(import_run(tmp_path / "hf", None, tmp_path / "run"), tmp_path / "back")
    again = load_file(back / "model.safetensors")
    assert again.keys() == older.keys() - {"cls.predictions.decoder.bias", "cls.predictions.decoder.weight"}
    assert all(torch.equal(older[name], tensor) for name, tensor in again.items())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BertForPreTraining", SIZES),
        ("RobertaForSequenceClassification", SIZES),
        pytest.param("ElectraForPreTraining", SIZES | {"embedding_size": 20}, marks=pytest.mark.long),  # as BERT
        ("T5ForConditionalGeneration", T5),
        pytest.param("MT5ForConditionalGeneration", T5, marks=pytest.mark.long),  # as T5
        pytest.param("T5EncoderModel", T5, marks=pytest.mark.long),  # one of the graphs of T5
        ("BartForConditionalGeneration", BART),
        pytest.param("BartForCausalLM", BART | {"use_cache": False}, marks=pytest.mark.long),  # as OPT
        pytest.param("PegasusForConditionalGeneration", BART, marks=pytest.mark.long),  # as BART, but for its positions
    ],
)
def test_a_graph_of_it_agrees(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    model = getattr(transformers, name)
    sharpened(model(model.config_class(**options)), 1.0 if "T5" in name else 2.0).save_pretrained(tmp_path / "hf")
    _, ours = transom.import_checkpoint(tmp_path / "hf")
    transom.export(ours, tmp_path / "out")


def test_a_stack_that_is_two_sided_can_be_causal(tmp_path: Path) -> None:
    """What a family is made of can be swapped, its topology too."""
    made("BertForMaskedLM", **SIZES).save_pretrained(tmp_path / "hf")
    spec = family_spec(tmp_path / "hf", ["model.topology=decoder", "objective=causal_lm"])
    _, ours = import_checkpoint(tmp_path / "hf", spec)
    ids = drawn(83, 23, 1)
    assert apart(ours(input_ids=ids[:, :9]).logits, ours(input_ids=ids).logits[:, :9]) < 1e-5


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("BertForSequenceClassification", ["model.head.classes.transform=relu", "model.head.classes.pool=mean"]),
        ("RobertaForSequenceClassification", ["model.head.classes.transform=gelu", "model.head.classes.pool=last"]),
        ("RobertaForMaskedLM", ["model.head.words.transform=relu", "model.head.words.norm.eps=1e-6"]),
        ("ElectraForSequenceClassification", ["model.head.classes.transform=tanh", "model.head.classes.pool=mean"]),
        ("ElectraForMultipleChoice", ["model.head.next.transform=tanh", "model.head.next.pool=last"]),
        ("ElectraForCausalLM", ["model.head.words.transform=tanh", "model.topology=encoder"]),
    ],
)
@torch.no_grad()
def test_every_option_of_a_head_counts(tmp_path: Path, name: str, overrides: list[str]) -> None:
    more = {"is_decoder": True} if name.endswith("CausalLM") else {}
    made(name, **SIZES | more | ({"embedding_size": 20} if "Electra" in name else {})).save_pretrained(tmp_path / "hf")
    ids = drawn(83, 17, 1)
    _, ours = import_checkpoint(tmp_path / "hf")
    for override in overrides:
        extra = ["objective=none"] if "topology" in override else []
        _, other = import_checkpoint(tmp_path / "hf", family_spec(tmp_path / "hf", [override, *extra]))
        assert apart(other(input_ids=ids).logits, ours(input_ids=ids).logits) > 1e-4, override


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "ElectraForMultipleChoice",
            {"summary_type": "attn"},
            "summary_type: 'attn' is not known to the family",
        ),
        ("ElectraForMultipleChoice", {"summary_use_proj": False}, "summary_use_proj: false is not supported"),
        ("BertForMaskedLM", {"add_cross_attention": True}, "add_cross_attention: true is not supported"),
        ("BertForMaskedLM", {"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ("BertForMaskedLM", {"architectures": ["BertForTitles"]}, "'BertForTitles' is not known to the family"),
    ],
)
def test_what_is_not_read_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    made(name, **(BART if "Bart" in name else SIZES)).save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(SpecError, match=re.escape(message)):
        family_spec(tmp_path / "hf")
