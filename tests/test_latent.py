"""Latent attention: what it remembers, which path it takes, and an order of a row's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import transom
from transom.errors import SpecError
from transom.registry.spec import parse_spec

LATENT = {"kind": "latent", "n_heads": 3, "head_dim": 7, "rope_dim": 4, "kv_rank": 9, "q_rank": 11, "norm": "rms"}
MODEL = {
    "topology": "decoder", "d_model": 22, "max_seq_len": 48, "embedding": {"kind": "token", "vocab_size": 41},
    "position": "rope", "layer": {"norm": "rms", "attention": LATENT, "feedforward": "glu"},
    "layers": [{"repeat": 2}], "norm": "rms", "head": "lm",
}  # fmt: skip


def built(**changes: Any) -> Any:
    return transom.compose(parse_spec({"model": MODEL | changes})).double().eval()


def test_it_keeps_one_vector_a_token() -> None:
    model = built()
    sizes = [tuple(t.shape[1:]) for name, t in model.empty_state(1).tensors.items() if name.startswith("layers")]
    assert sizes == [(0, 9 + 4), (0, 9 + 4)]


def test_few_tokens_are_absorbed_and_many_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built()
    attention = model.decoder.layers[0].attention
    taken: list[str] = []
    for path in ("_absorbed", "_expanded"):
        inner = getattr(attention, path)

        def noted(*given: Any, path: str = path, inner: Any = inner) -> Any:
            taken.append(path)
            return inner(*given)

        monkeypatch.setattr(attention, path, noted)
    ids = torch.randint(41, (2, 40))
    whole = model(input_ids=ids).logits
    state, logits = model.empty_state(2), []
    for piece in ids.split([37, 1, 2], dim=1):
        out = model(input_ids=piece, state=state)
        state, logits = out.state, [*logits, out.logits]
    assert taken == ["_expanded", "_expanded", "_absorbed", "_absorbed"]
    assert torch.allclose(torch.cat(logits, 1), whole, atol=1e-12)


@torch.no_grad()
def test_tokens_that_are_asked_for_are_hidden_from_themselves() -> None:
    embedding = {"kind": "token", "vocab_size": 41, "blank": True}
    model = built(topology="encoder", embedding=embedding)
    torch.nn.init.normal_(model.encoder.embedding.blank)
    ids, order = torch.randint(41, (1, 9)), torch.randperm(9).unsqueeze(0) + 1
    asked = torch.tensor([[4, 2]])
    before = model(input_ids=ids, order=order, asked=asked).logits
    for column in range(9):
        other = ids.clone()
        other[0, column] = (ids[0, column] + 1) % 41
        after = model(input_ids=other, order=order, asked=asked).logits
        for place, target in enumerate(asked[0].tolist()):
            same = torch.allclose(before[:, place], after[:, place], atol=1e-12)
            assert same == bool(order[0, column] >= order[0, target]), (column, target)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_heads": 0}, "n_heads: 0 is not a number of heads; at least 1"),
        ({"n_heads": 4, "head_dim": None}, "n_heads: 4 heads do not divide d_model 22; set head_dim, or n_heads"),
        ({"kv_rank": 0}, "kv_rank: 0 is not a width; at least 1"),
        ({"stretch": {"factor": 0.5}}, "stretch.factor: 0.5 makes texts shorter; at least 1"),
        ({"rope_dim": 3}, "3 of a head's 3 entries turn; an even number is needed"),
    ],
)
def test_what_does_not_fit_is_refused_at_its_place(change: dict[str, Any], said: str) -> None:
    layer = {"norm": "rms", "attention": LATENT | change, "feedforward": "glu"}
    with pytest.raises(SpecError) as caught:
        transom.compose(parse_spec({"model": MODEL | {"layer": layer}}), "meta")
    assert said in str(caught.value)


def test_layers_of_other_widths_need_a_position_of_their_own() -> None:
    wide = {"attention": {"kind": "full", "n_heads": 2}}
    with pytest.raises(SpecError, match=r"serves layers whose heads differ \(2 heads of 7, 3 heads of 4\)"):
        built(layers=[{"pattern": [{}, wide]}])


def test_a_memory_is_refused_with_the_reason() -> None:
    model = {"topology": "encoder_decoder", "decoder": {"layer": {"cross_attention": LATENT}}}
    with pytest.raises(SpecError, match="the key that all its heads share tells how far apart"):
        built(**model)
