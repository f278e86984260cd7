"""XLNet from its config.json, against transformers: scores, memory of earlier segments, and both streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from alone import rows_alone
from peers import TOLERANCE, apart, checked
from torch import Tensor
from transformers import (
    XLNetConfig,
    XLNetForMultipleChoice,
    XLNetForQuestionAnsweringSimple,
    XLNetForSequenceClassification,
    XLNetForTokenClassification,
    XLNetLMHeadModel,
    XLNetModel,
)
from two_sided import broken_by, drawn, encoder_parity, gradients, masks, sharpened, spreads, there_and_back

import transom
from transom.errors import SpecError
from transom.interop import family_spec, import_checkpoint
from transom.registry.spec import load_spec

INPUTS = {"input_ids": 83, "token_type_ids": 7}


def config(**more: Any) -> Any:
    settings = {
        "vocab_size": 83, "d_model": 30, "n_layer": 2, "n_head": 5, "d_inner": 46, "layer_norm_eps": 1e-2,
        "ff_activation": "gelu_new", "clamp_len": 7, "mem_len": None,
    }  # fmt: skip
    return XLNetConfig(**settings | more)


def ordered(length: int, given: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw an order (3, T) whose first tokens are `given`, and return it, what is asked for, and its columns."""
    generator = torch.Generator().manual_seed(11)
    rank = torch.stack([torch.randperm(length, generator=generator) for _ in range(3)])
    return (rank - given + 2).clamp(min=1), rank >= given, rank.argsort(1)[:, given:]


def permuted(order: Tensor, asked: Tensor) -> dict[str, Tensor]:
    """Return an order (B, T) and columns (B, P) as the peer takes them: who is hidden from whom, and what is asked."""
    hidden = order[:, None, :] >= order[:, :, None]
    hidden &= ~((order[:, None, :] == 1) & (order[:, :, None] == 1))  # what is given sees itself
    mapping = torch.nn.functional.one_hot(asked, order.shape[1]).float()
    return {"perm_mask": hidden.float(), "target_mapping": mapping}


@pytest.mark.parametrize(
    ("model", "names"), [(XLNetLMHeadModel, {"words": "logits"}), (XLNetForTokenClassification, {"tokens": "logits"})]
)
@pytest.mark.parametrize("clamp", [7, -1])
def test_xlnet(tmp_path: Path, model: Any, names: dict[str, str], clamp: int) -> None:
    encoder_parity(sharpened(model(config(num_labels=3, clamp_len=clamp)), 3.0), tmp_path, INPUTS, names)


@pytest.mark.parametrize("limits", [{}, {"mem_len": 11}, {"mem_len": 11, "reuse_len": 5}, {"reuse_len": 4}])
@pytest.mark.parametrize("clamp", [7, -1])
@torch.no_grad()
def test_segments_see_what_is_kept_of_earlier_ones(tmp_path: Path, limits: dict[str, int], clamp: int) -> None:
    theirs = sharpened(XLNetLMHeadModel(config(clamp_len=clamp, **limits)), 3.0)
    ours = there_and_back(theirs, tmp_path)
    ids, kinds = drawn(83, 27, 1), drawn(7, 27, 2) - 4
    state, mems, errors = ours.empty_state(3), None, []
    for part, of in zip(ids.split([9, 7, 6, 5], dim=1), kinds.split([9, 7, 6, 5], dim=1), strict=True):
        found = ours(input_ids=part, token_type_ids=of, state=state)
        wanted = theirs(input_ids=part, token_type_ids=of, mems=mems, use_mems=True, output_hidden_states=True)
        errors += [apart(found.hidden, wanted.hidden_states[-1]), apart(found.logits, wanted.logits)]
        state, mems = found.state, wanted.mems
    checked(theirs, errors)
    assert apart(found.hidden, ours(input_ids=part, token_type_ids=of).hidden) > 1e-2  # it does see them


@pytest.mark.parametrize("given", [0, 16])
@torch.no_grad()
def test_two_streams(tmp_path: Path, given: int) -> None:
    theirs = sharpened(XLNetLMHeadModel(config()), 3.0)
    ours = there_and_back(theirs, tmp_path)
    ids, kinds = drawn(83, 23, 1), drawn(7, 23, 2) - 4
    order, _, asked = ordered(23, given)
    inputs = {"input_ids": ids, "token_type_ids": kinds}
    assert spreads(theirs, **inputs) > 2
    errors = []
    for mask in (torch.ones_like(ids), *masks(23)):
        peers = permuted(order, asked)
        wanted = theirs(**inputs, attention_mask=mask, output_hidden_states=True, **peers)
        found = ours(**inputs, attention_mask=mask, order=order, asked=asked)
        # The first of all sees nothing: there the peer takes the mean of everything.
        sees = ((order[:, None, :] < order.gather(1, asked)[:, :, None]) & mask[:, None, :].bool()).any(-1)
        real = mask.gather(1, asked).bool() & sees
        errors += [apart(found.hidden[real], wanted.hidden_states[-1][real])]
        errors += [apart(found.logits[real], wanted.logits[real])]
        # The first stream, under the same order.
        alone = theirs(**inputs, attention_mask=mask, output_hidden_states=True, perm_mask=peers["perm_mask"])
        content = ours(**inputs, attention_mask=mask, order=order)
        errors += [apart(content.hidden[mask.bool()], alone.hidden_states[-1][mask.bool()])]
    checked(theirs, errors)


@torch.no_grad()
def test_two_streams_beside_a_memory(tmp_path: Path) -> None:
    theirs = sharpened(XLNetLMHeadModel(config(mem_len=8)), 3.0)
    ours = there_and_back(theirs, tmp_path)
    first, ids = drawn(83, 13, 1), drawn(83, 17, 2)
    order, _, asked = ordered(17, 0)
    state, mems = ours(input_ids=first, state=ours.empty_state(3)).state, theirs(input_ids=first).mems
    found = ours(input_ids=ids, state=state, order=order, asked=asked)
    wanted = theirs(input_ids=ids, mems=mems, output_hidden_states=True, **permuted(order, asked))
    errors = [apart(found.hidden, wanted.hidden_states[-1]), apart(found.logits, wanted.logits)]
    again = ours(input_ids=first, state=found.state).hidden
    errors += [apart(again, theirs(input_ids=first, mems=wanted.mems, output_hidden_states=True).hidden_states[-1])]
    checked(theirs, errors)


def test_the_gradients_of_both_streams(tmp_path: Path) -> None:
    theirs = sharpened(XLNetLMHeadModel(config()), 3.0)
    ours = there_and_back(theirs, tmp_path)
    ids = drawn(83, 23, 1)
    order, _, asked = ordered(23, 15)
    for logits in (ours(input_ids=ids, order=order, asked=asked).logits,
                   theirs(input_ids=ids, **permuted(order, asked)).logits):  # fmt: skip
        (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    pairs = [(ours.encoder.embedding.weight, theirs.transformer.word_embedding.weight)]
    pairs += [(ours.encoder.embedding.blank, theirs.transformer.mask_emb)]
    layer, there = ours.encoder.layers[1].positions[0], theirs.transformer.layer[1].rel_attn
    pairs += [(layer.content, there.r_w_bias), (layer.distance, there.r_r_bias)]
    pairs += [(layer.project.weight, there.r)]
    for mine, other in pairs:
        wanted = other.grad.flatten(1).T if other is there.r else other.grad.reshape(mine.shape)
        assert apart(mine.grad, wanted) < 1e-4


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("summary", ["last", "cls_index", "first", "mean"])
@torch.no_grad()
def test_a_text_has_a_class(tmp_path: Path, summary: str, mapped: bool) -> None:
    made = config(num_labels=3, summary_type=summary, summary_use_proj=mapped)
    theirs = sharpened(XLNetForSequenceClassification(made), 3.0)
    ours = there_and_back(theirs, tmp_path)
    assert any("summary" in name for name in theirs.state_dict()) == mapped
    ids, left = drawn(83, 23, 1), masks(23)[1]
    plain = import_checkpoint(tmp_path / "hf", family_spec(tmp_path / "hf", ["model.head.classes.transform=relu"]))[1]
    assert apart(plain(input_ids=ids).logits, ours(input_ids=ids).logits) > 1e-3
    assert gradients(theirs, ours, {"classes": "logits"}, {"input_ids": ids}) < 1e-4
    errors = [apart(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)]
    if summary in ("last", "cls_index"):  # the peer's others read padding
        wanted = theirs(input_ids=ids, attention_mask=left).logits
        errors += [apart(ours(input_ids=ids, attention_mask=left).logits, wanted)]
    checked(theirs, errors)


@torch.no_grad()
def test_a_span_is_two_logits_a_token(tmp_path: Path) -> None:
    theirs = sharpened(XLNetForQuestionAnsweringSimple(config()), 3.0)
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    wanted = theirs(input_ids=ids)
    assert apart(ours(input_ids=ids).logits, torch.stack([wanted.start_logits, wanted.end_logits], -1)) < TOLERANCE


@torch.no_grad()
def test_a_choice_is_one_logit_a_text(tmp_path: Path) -> None:
    theirs = sharpened(XLNetForMultipleChoice(config()), 3.0)
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    assert apart(ours(input_ids=ids).logits.T, theirs(input_ids=ids[None]).logits) < TOLERANCE


@torch.no_grad()
def test_without_a_head(tmp_path: Path) -> None:
    theirs = sharpened(XLNetModel(config()), 3.0)
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    assert apart(ours(input_ids=ids).hidden, theirs(input_ids=ids).last_hidden_state) < TOLERANCE


def test_every_option_counts(tmp_path: Path) -> None:
    sharpened(XLNetLMHeadModel(config())).save_pretrained(tmp_path / "hf")
    found = broken_by(
        tmp_path, INPUTS, "model.layer.position.clamp=null", "model.layer.position.theta=5000.0",
        "model.layer.position.scale=0.3", "model.layer.norm.eps=1e-12", "model.layer.feedforward.activation=gelu",
        "model.layer.attention.scale=0.3",
    )  # fmt: skip
    assert min(found.values()) > 1e-4, found


@torch.no_grad()
def test_segments_of_a_text_count(tmp_path: Path) -> None:
    ours = there_and_back(sharpened(XLNetLMHeadModel(config())), tmp_path)
    ids, kinds = drawn(83, 17, 1), drawn(7, 17, 2) - 4
    plain = ours(input_ids=ids).hidden
    assert torch.equal(plain, ours(input_ids=ids, token_type_ids=torch.zeros_like(ids)).hidden)
    assert apart(ours(input_ids=ids, token_type_ids=kinds).hidden, plain) > 1e-2


def one_way_parity(theirs: Any, folder: Path, names: dict[str, str]) -> list[float]:
    """Return the errors of rows, padded on both sides or not: the peer masks no padding in a batch of several."""
    ours, inputs = there_and_back(theirs, folder), {"input_ids": drawn(83, 23, 1), "token_type_ids": drawn(7, 23, 2)}
    assert spreads(theirs, **inputs) > 2
    assert gradients(theirs, ours, names, inputs) < 1e-4
    plain = torch.ones(3, 23, dtype=torch.int64)
    return [error for mask in (plain, *masks(23)) for error in rows_alone(theirs, ours, inputs, mask, names)]


@pytest.mark.parametrize("limits", [{"clamp_len": 7}, {"clamp_len": -1, "mem_len": 40}])
@torch.no_grad()
def test_one_way_it_is_a_decoder(tmp_path: Path, limits: dict[str, int]) -> None:
    theirs = sharpened(XLNetLMHeadModel(config(attn_type="uni", **limits)), 3.0)
    errors = one_way_parity(theirs, tmp_path, {"words": "logits"})
    _, ours = import_checkpoint(tmp_path / "hf")
    ids = drawn(83, 25, 1)
    state, mems, logits = ours.empty_state(3), None, []
    for piece in ids.split([9, *[1] * 16], dim=1):
        out, wanted = ours(input_ids=piece, state=state), theirs(input_ids=piece, mems=mems)
        state, mems, logits = out.state, wanted.mems, [*logits, out.logits]
        errors.append(apart(out.logits, wanted.logits))
    checked(theirs, [*errors, apart(torch.cat(logits, dim=1), theirs(input_ids=ids).logits)])
    assert ours.spec.model.max_seq_len == limits.get("mem_len", 512)


@pytest.mark.parametrize(("model", "names"), [(XLNetModel, {}), (XLNetForTokenClassification, {"tokens": "logits"})])
def test_one_way_it_has_other_heads(tmp_path: Path, model: Any, names: dict[str, str]) -> None:
    theirs = sharpened(model(config(num_labels=3, attn_type="uni")), 3.0)
    checked(theirs, one_way_parity(theirs, tmp_path, names))


@torch.no_grad()
def test_which_way_it_sees_counts(tmp_path: Path) -> None:
    theirs = sharpened(XLNetLMHeadModel(config(attn_type="uni")), 3.0)
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_type": "bi"}))
    _, both = import_checkpoint(tmp_path / "hf")
    assert apart(both(input_ids=ids).hidden, ours(input_ids=ids).hidden) > 1e-2


@pytest.mark.parametrize("fields", [{"untie_r": False}, {"same_length": True}])
@torch.no_grad()
def test_what_the_peer_does_not_read(tmp_path: Path, fields: dict[str, Any]) -> None:
    theirs = sharpened(XLNetLMHeadModel(config(**fields)), 3.0)
    encoder_parity(theirs, tmp_path, INPUTS, {"words": "logits"})


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [("attn_type", "both", ""), ("bi_data", True, "batch's second half"),
     ("ff_activation", "mishap", ""), ("summary_type", "attn", ""), ("rel_attn_window", 3, ""),
     ("architectures", ["XLNetForQuestionAnswering"], "likeliest starts")],
)  # fmt: skip
def test_what_it_can_t_be_is_refused(tmp_path: Path, field: str, value: Any, why: str) -> None:
    XLNetLMHeadModel(config()).save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(SpecError, match=f"config.json: {field}: .*{why}"):
        family_spec(tmp_path / "hf")


@pytest.mark.parametrize(
    ("field", "value", "why"), [("same_length", True, "itself alone"), ("reuse_len", 5, "see no other")]
)
def test_what_one_way_depends_on_how_a_text_is_cut_is_refused(tmp_path: Path, field: str, value: Any, why: str) -> None:
    XLNetLMHeadModel(config(attn_type="uni", **{field: value})).save_pretrained(tmp_path / "hf")
    with pytest.raises(SpecError, match=f"config.json: {field}: .*{why}"):
        family_spec(tmp_path / "hf")


@pytest.mark.parametrize("kept", [0, 3])
@torch.no_grad()
def test_what_the_peer_sees_with_same_length_depends_on_what_is_kept(kept: int) -> None:
    """The reason that is given: the third token of a chunk sees itself alone, or the last of three before the chunk."""
    mask = XLNetModel(config(attn_type="uni", same_length=True)).create_mask(4, kept)
    seen = mask[3].eq(0).nonzero().flatten().tolist()
    assert seen == ([3] if kept == 0 else [3, 4, 5, 6])


def test_older_names_are_read(tmp_path: Path) -> None:
    XLNetLMHeadModel(config(mem_len=9, reuse_len=5)).save_pretrained(tmp_path / "hf")
    spec = family_spec(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    older = {"n_token": "vocab_size", "hidden_size": "d_model", "num_hidden_layers": "n_layer",
             "num_attention_heads": "n_head"}  # fmt: skip
    said = json.loads(path.read_text())
    path.write_text(json.dumps({old: said.pop(new) for old, new in older.items()} | said))
    assert family_spec(tmp_path / "hf").model == spec.model
    assert spec.model.topology.config.memory == 9
    assert spec.model.topology.config.reuse == 5


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.layer.attention.kind=local", "model.layer.attention.window=16"], "objective 'permuted_lm'.*blocks"),
        (["objective=masked_lm", "model.layer.attention.kind=local", "model.layer.attention.window=16"],
         "memory: the attention of layer 0 is bound to columns: its blocks"),
        (["model.layer.attention.kind=linear"], "added to|adds to scores"),
        (["model.topology.memory=64", "model.position=learned"], "places for"),
        (["model.topology.memory=512"], "do not fit into max_seq_len"),
        (["model.embedding.blank=false"], "blank: true"),
        (["model.topology.kind=decoder"], "an order of their own"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_reason(overrides: list[str], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        transom.compose(load_spec("xlnet", overrides), device="meta")


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.topology.memory=0", "objective=masked_lm", "model.layer.attention.kind=local",
         "model.layer.attention.window=16"],
        ["model.layer.norm=rms", "model.layer.placement=pre", "model.norm=rms"],
        ["model.layer.position=none", "model.position=rope", "model.topology.memory=100"],
        ["model.layer.position.kind=t5_bias"],
        ["model.layer.position.kind=alibi", "model.layer.attention.n_kv_heads=4"],
        ["model.topology.memory=384", "model.topology.reuse=256", "model.layer.attention.n_kv_heads=3"],
    ],
)  # fmt: skip
def test_parts_are_swapped(overrides: list[str]) -> None:
    assert transom.compose(load_spec("xlnet", overrides), device="meta")


@pytest.mark.parametrize(
    "limits", [pytest.param({"mem_len": None}, marks=pytest.mark.long), {"mem_len": 11, "reuse_len": 9}]
)
def test_a_graph_of_it_agrees(tmp_path: Path, limits: dict[str, Any]) -> None:
    sharpened(XLNetLMHeadModel(config(**limits)), 3.0).save_pretrained(tmp_path / "hf")
    _, ours = import_checkpoint(tmp_path / "hf", family_spec(tmp_path / "hf", ["model.max_seq_len=130"]))
    report = transom.export(ours, tmp_path / "out")
    assert not report.failed
    assert any(row.case.startswith("steps") for row in report.rows)
