"""BigBird from its config.json, against transformers: rows that take blocks, and rows that are too short for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import TOLERANCE, apart, checked
from torch import Tensor
from transformers import (
    BigBirdConfig,
    BigBirdForMaskedLM,
    BigBirdForMultipleChoice,
    BigBirdForPreTraining,
    BigBirdForQuestionAnswering,
    BigBirdForSequenceClassification,
    BigBirdForTokenClassification,
    BigBirdModel,
)
from two_sided import broken_by, drawn, gradients, heads_of, masks, sharpened, spreads

import transom
from transom.errors import SpecError
from transom.interop import export_checkpoint, family_spec, import_checkpoint, import_run
from transom.registry.spec import load_spec

INPUTS = {"input_ids": 83, "token_type_ids": 3}
SHORT = (5 + 2 * 2) * 4  # tokens that the peer gives full attention at most


def config(**more: Any) -> Any:
    options = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 2, "rescale_embeddings": True}
    return BigBirdConfig(
        vocab_size=83, hidden_size=36, num_hidden_layers=2, num_attention_heads=4, intermediate_size=50,
        max_position_embeddings=67, type_vocab_size=3, layer_norm_eps=1e-2, sep_token_id=2, **options | more,
    )  # fmt: skip


def pair(theirs: Any, folder: Path) -> Any:
    """Return the imported model, and check that all that it uses goes back bit for bit."""
    theirs.save_pretrained(folder / "hf")
    _, ours = import_checkpoint(folder / "hf")
    back = export_checkpoint(import_run(folder / "hf", None, folder / "run"), folder / "back")
    again, there = type(theirs).from_pretrained(back).state_dict(), theirs.state_dict()
    unused = {name for name in there if "pooler" in name and "next" not in ours.heads}
    assert again.keys() == there.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in there.items() if name not in unused)
    return ours


class Asked:
    """Ask the peer, which stays with full attention once a row was short, as if each time were the first."""

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def __call__(self, **inputs: Any) -> Any:
        base = getattr(self.theirs, "bert", self.theirs)
        base.set_attention_type(self.theirs.config.attention_type)
        return self.theirs(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)


@torch.no_grad()
def parity(theirs: Any, folder: Path, names: Mapping[str, str]) -> None:
    """Hold rows of several lengths against the peer's own rows alone, whatever they are padded with."""
    ours, peer, errors = pair(theirs, folder), Asked(theirs), []
    for length in (61, 52, 43, SHORT + 1, SHORT, 23, 5):
        inputs = {name: drawn(high, length, seed) for seed, (name, high) in enumerate(INPUTS.items())}
        if length == 61:
            assert spreads(theirs, **inputs) > 2
        for mask in (torch.ones(3, length, dtype=torch.int64), *masks(length)):
            found, mine, wanted = ours(**inputs, attention_mask=mask), [], []
            for row in range(3):
                real = mask[row].bool()
                alone = {name: ids[row : row + 1, real] for name, ids in inputs.items()}
                there = peer(**alone, output_hidden_states=True)
                mine.append([found.hidden[row, real]])
                wanted.append([there.hidden_states[-1][0, : int(real.sum())]])
                for name, logits in heads_of(found.logits, names).items():
                    mine[row].append(logits[row][real] if logits.dim() == 3 else logits[row : row + 1])
                    wanted[row].append(there[name].flatten(0, -2))
            pairs = zip(zip(*mine, strict=True), zip(*wanted, strict=True), strict=True)
            errors += [apart(torch.cat(own), torch.cat(other)) for own, other in pairs]
    inputs = {name: drawn(high, 61, seed) for seed, (name, high) in enumerate(INPUTS.items())}
    assert (error := gradients(peer, ours, names, inputs)) < 1e-4, error
    checked(theirs, errors)


@pytest.mark.parametrize(
    ("model", "names", "options"),
    [
        (BigBirdForPreTraining, {"words": "prediction_logits", "next": "seq_relationship_logits"}, {}),
        (BigBirdForMaskedLM, {"words": "logits"}, {"use_bias": False, "num_random_blocks": 1}),
        (BigBirdForMaskedLM, {"words": "logits"}, {"attention_type": "original_full"}),
        (BigBirdForSequenceClassification, {"classes": "logits"}, {"num_labels": 5, "hidden_act": "gelu"}),
        (BigBirdForTokenClassification, {"tokens": "logits"}, {"num_labels": 5, "block_size": 3, "hidden_act": "relu"}),
    ],
)
def test_big_bird(tmp_path: Path, model: Any, names: dict[str, str], options: dict[str, Any]) -> None:
    parity(sharpened(model(config(**options)), 3.0), tmp_path, names)


@torch.no_grad()
def test_a_span_is_two_logits_a_token(tmp_path: Path) -> None:
    theirs = sharpened(BigBirdForQuestionAnswering(config()))
    ours, inputs = pair(theirs, tmp_path), {name: drawn(high, 61, 1) for name, high in INPUTS.items()}
    inputs["input_ids"][:, 7] = 2  # the question's end: the peer takes its tokens out of the competition
    wanted = Asked(theirs)(**inputs)
    spans = torch.stack([wanted.start_logits, wanted.end_logits], -1)
    found = ours(**inputs).logits
    assert apart(found[:, 8:], spans[:, 8:]) < TOLERANCE
    assert apart(found[:, :1], spans[:, :1]) < TOLERANCE


@torch.no_grad()
def test_a_choice_is_one_logit_a_text(tmp_path: Path) -> None:
    theirs = sharpened(BigBirdForMultipleChoice(config()))
    ours, ids = pair(theirs, tmp_path), drawn(83, 61, 1)
    assert apart(ours(input_ids=ids).logits.T, Asked(theirs)(input_ids=ids[None]).logits) < TOLERANCE


@torch.no_grad()
def test_without_a_head(tmp_path: Path) -> None:
    theirs = sharpened(BigBirdModel(config()))
    ours, ids = pair(theirs, tmp_path), drawn(83, 61, 1)
    assert apart(ours(input_ids=ids).hidden, Asked(theirs)(input_ids=ids).last_hidden_state) < TOLERANCE


def test_every_option_counts(tmp_path: Path) -> None:
    theirs = sharpened(BigBirdForPreTraining(config()))
    theirs.save_pretrained(tmp_path / "hf")
    found = changed_by(
        tmp_path, "model.embedding.scale=1.0", "model.embedding.norm.eps=1e-12", "model.layer.norm.eps=1e-12",
        "model.layer.feedforward.activation=gelu", "model.layer.attention.random=drawn",
        "model.layer.attention.n_random=1", "model.layer.attention.block=5", "model.layer.attention.kind=full",
    )  # fmt: skip
    assert min(found.values()) > 1e-4, found
    short = broken_by(tmp_path, INPUTS, "model.layer.attention.short=blocks")
    assert min(short.values()) > 1e-4, short


@torch.no_grad()
def changed_by(folder: Path, *overrides: str) -> dict[str, float]:
    """Return how far each override alone takes a model from itself where it takes blocks."""
    inputs: dict[str, Tensor] = {name: drawn(high, 61, seed) for seed, (name, high) in enumerate(INPUTS.items())}
    _, ours = import_checkpoint(folder / "hf")
    found = {}
    for override in overrides:
        _, other = import_checkpoint(folder / "hf", family_spec(folder / "hf", [override]))
        found[override] = apart(other(**inputs).hidden, ours(**inputs).hidden)
    return found


@pytest.mark.parametrize(
    ("field", "value"),
    [("is_decoder", True), ("attention_type", "sparse"), ("add_cross_attention", True), ("hidden_act", "mish")],
)
def test_what_is_not_supported_is_refused(tmp_path: Path, field: str, value: object) -> None:
    made = config()
    BigBirdForMaskedLM(made).save_pretrained(tmp_path)
    text = made.to_dict() | {"architectures": ["BigBirdForMaskedLM"], field: value}
    import json

    (tmp_path / "config.json").write_text(json.dumps(text))
    with pytest.raises(SpecError, match=field):
        family_spec(tmp_path)


@pytest.mark.parametrize(
    "override",
    ["model.layer.attention={kind: local, window: 16}", "model.layer.norm.kind=rms", "model.position.kind=rope"],
)
def test_parts_are_swapped(override: str) -> None:
    transom.compose(load_spec("big_bird", [override]), device="meta")


def test_a_causal_stack_is_refused() -> None:
    with pytest.raises(SpecError, match="all tokens see the last block"):
        transom.compose(load_spec("tiny_gpt", ["model.layer.attention.kind=big_bird"]), device="meta")


def test_a_graph_of_it_agrees(tmp_path: Path) -> None:
    sharpened(BigBirdForPreTraining(config())).save_pretrained(tmp_path / "hf")
    _, ours = import_checkpoint(tmp_path / "hf")
    transom.export(ours, tmp_path / "onnx")
