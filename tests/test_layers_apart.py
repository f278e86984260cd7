"""Layers of which one differs: the first one, one without a norm, one with something beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from transom.errors import SpecError
from transom.registry.compose import compose
from transom.registry.show import describe
from transom.registry.spec import load_spec, parse_spec

SMALL = ["model.d_model=24", "model.embedding.vocab_size=67", "model.layer.feedforward.d_ff=40", "model.max_seq_len=31"]
IDS = torch.randint(67, (3, 19), generator=torch.Generator().manual_seed(0))


def model(*overrides: str) -> Any:
    return compose(load_spec("tiny_gpt", [*SMALL, *overrides])).eval()


@torch.no_grad()
def test_the_first_layer_alone_differs() -> None:
    spec = load_spec("tiny_gpt", [*SMALL, "model.first.unnormed=[attention]"])
    layers = spec.model.stacks["decoder"].layers
    assert [layer.unnormed for layer in layers] == [("attention",), (), (), ()]
    again = parse_spec(yaml.safe_load(yaml.safe_dump(spec.resolved)))
    assert again.model == spec.model
    assert "first" not in spec.resolved["model"]


def test_a_part_that_is_not_there_is_taken_away_from_no_layer() -> None:
    plain = load_spec("tiny_gpt", SMALL)
    assert load_spec("tiny_gpt", [*SMALL, "model.first.beside=none"]).resolved == plain.resolved


@torch.no_grad()
def test_an_unnormed_sublayer_reads_the_stream_itself() -> None:
    plain, bare = model("model.layers=[{}]"), model("model.layers=[{}]", "model.layer.unnormed=[attention]")
    block = plain.decoder.layers[0]
    assert "attention_norm" not in dict(bare.decoder.layers[0].named_children())
    block.attention_norm = torch.nn.Identity()
    torch.testing.assert_close(bare(input_ids=IDS).logits, plain(input_ids=IDS).logits)


@torch.no_grad()
def test_what_stands_beside_reads_the_layer_s_input() -> None:
    ours = model("model.layers=[{}]", "model.layer.placement=post", "model.layer.beside=convolution")
    block, seen = ours.decoder.layers[0], dict[str, Any]()
    block.register_forward_hook(lambda _, given, found: seen.update(x=given[0], y=found[0], contexts=given[1]))
    ours(input_ids=IDS)
    x, contexts = seen["x"], seen["contexts"]
    h = block.attention_norm(x + block.attention(x, contexts["attention"])[0])
    h = block.feedforward_norm(h + block.feedforward(h, contexts["feedforward"])[0])
    near = torch.nn.functional.pad(x, (0, 0, 2, 0)).transpose(1, 2)
    beside = torch.tanh(torch.nn.functional.conv1d(near, block.beside.weight, block.beside.bias)).transpose(1, 2)
    torch.testing.assert_close(seen["y"], block.beside_norm(h + beside))


@torch.no_grad()
def test_a_model_with_something_beside_goes_step_by_step() -> None:
    ours = model("model.first.beside=convolution")
    whole, state, logits = ours(input_ids=IDS).logits, ours.empty_state(3), []
    for piece in IDS.split([5, *[1] * 14], dim=1):
        out = ours(input_ids=piece, state=state)
        state, logits = out.state, [*logits, out.logits]
    torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=1e-4, atol=1e-5)


def test_show_tells() -> None:
    spec = load_spec("tiny_gpt", [*SMALL, "model.first={unnormed: [attention], beside: convolution}"])
    stack = describe(spec).tree.children[0]
    titles = {child.label: child for child in stack.children}
    assert "no norm before attention" in titles["layer 0"].detail
    assert any(child.label == "beside convolution" for child in titles["layer 0"].children)
    assert "no norm" not in titles["layers 1-3 (3 x)"].detail


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.layer.placement=parallel", "model.layer.unnormed=[attention]"], "'parallel' has no norm before each"),
        (["model.layer.unnormed=[cross_attention]"], "unnormed: there is no cross_attention in this layer"),
        (["model.layer.residual=after", "model.layer.beside=convolution"], "has no place where residual is after"),
        (
            ["model.topology=encoder", "objective=masked_lm", "model.layer.beside=rg_lru"],
            "can't run where tokens see both",
        ),
        (["model.position.2.theta=3"], "there is no item 2: the list has 1, counted from 0"),
    ],
)
def test_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(SpecError) as refused:
        compose(load_spec("tiny_gpt", [*SMALL, *overrides]), device="meta")
    assert says in str(refused.value)


def test_positions_of_a_list_are_changed_by_their_index() -> None:
    spec = load_spec(
        "tiny_gpt", [*SMALL, "model.position=[rope, none]", "model.position.0.theta=500", "model.position.1=alibi"]
    )
    parts = spec.model.stacks["decoder"].position
    assert [part.name for part in parts] == ["rope", "alibi"]
    assert parts[0].config.theta == 500
    assert len(load_spec("tiny_gpt", [*SMALL, "model.position=[rope, none]"]).model.stacks["decoder"].position) == 1
