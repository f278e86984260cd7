"""Scores by distance and segment, and texts that are read segment by segment, against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transom.conformance.stacks import shaken
from transom.core.component import Site
from transom.core.tokens import Tokens
from transom.deploy import ArrayRuntime, export
from transom.errors import InputError
from transom.registry.compose import compose
from transom.registry.manager import default
from transom.registry.spec import parse_spec

HEADS, WIDTH, D_MODEL, MOST = 4, 6, 10, 40


def position(causal: bool, **options: Any) -> Any:
    cls: Any = default().get("position", "transformer_xl")
    site = Site(d_model=D_MODEL, max_seq_len=MOST, causal=causal, n_heads=HEADS, head_dim=WIDTH)
    return shaken(cls.build(cls.Config(**options), site))


def defined(module: Any, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
    """Return what is added, (B, H, T, S), pair by pair: of queries that come no earlier than keys, where causal."""
    config, speed = module.config, module.config.theta ** (-torch.arange(0, D_MODEL, 2).double() / D_MODEL)
    added = torch.zeros(q.shape[0], HEADS, q.shape[1], k.shape[1], dtype=q.dtype)
    weight = module.project.weight.unflatten(0, (HEADS, WIDTH))
    for b, h, i, j in np.ndindex(*added.shape):
        far = int(q_tokens.pos[b % len(q_tokens.pos), i] - k_tokens.pos[b % len(k_tokens.pos), j])
        far = far if config.clamp is None else max(-config.clamp, min(config.clamp, far))
        if module.site.causal and far < 0:
            continue
        waves = torch.cat([(far * speed).sin(), (far * speed).cos()])
        score = module.content[h] @ k[b, j, h * k.shape[2] // HEADS]
        score = score + (q[b, i, h] + module.distance[h]) @ (weight[h] @ waves)
        if config.segments:
            kinds = [t.marks["token_type_ids"][b, at] for t, at in ((q_tokens, i), (k_tokens, j))]
            score = score + (q[b, i, h] + module.segment[h]) @ module.kinds[int(kinds[0] != kinds[1]), h]
        added[b, h, i, j] = score * (WIDTH**-0.5 if config.scale is None else config.scale)
    return added


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", [{}, {"clamp": 3}, {"segments": 3, "theta": 50.0}, {"segments": 2, "scale": 0.7}])
@torch.no_grad()
def test_scores_are_what_they_are_defined_to_be(causal: bool, options: dict[str, Any]) -> None:
    module = position(causal, **options)
    q, k = torch.randn(2, 5, HEADS, WIDTH).double(), torch.randn(2, 9, 2, WIDTH).double()
    whole = Tokens(torch.stack([torch.arange(9), torch.randperm(20)[:9]]),
                   marks={"token_type_ids": torch.randint(3, (2, 9))})  # fmt: skip
    part = whole[4:]
    found = module.score(part, whole, q, k)
    earlier = part.pos.unsqueeze(2) >= whole.pos.unsqueeze(1)
    seen = (earlier if causal else torch.ones_like(earlier)).unsqueeze(1)
    torch.testing.assert_close(found.where(seen, 0), defined(module, part, whole, q, k))


LAYER = "layer: {norm: layer, attention: {kind: full, n_heads: 2}, feedforward: {kind: mlp, d_ff: 24}}"
MODEL = f"""
model:
  topology: {{kind: encoder, memory: all}}
  d_model: 12
  max_seq_len: 47
  embedding: {{kind: token, vocab_size: 31, blank: true}}
  position: transformer_xl
  {LAYER}
  layers: [{{repeat: 2}}]
  norm: layer
  head: lm
"""


@pytest.mark.parametrize(
    "memory", [["model.topology.memory=all"], ["model.topology.memory=9", "model.topology.reuse=5"]]
)
def test_a_graph_reads_segments_as_pytorch_does(tmp_path: Path, memory: list[str]) -> None:
    model = compose(parse_spec(MODEL, memory)).eval()
    export(model, tmp_path / "out")
    runtime, state, kept = ArrayRuntime(tmp_path / "out"), model.empty_state(3), None
    for length in (7, 8, 5):
        ids, mask = torch.randint(31, (3, length)), torch.ones(3, length, dtype=torch.int64)
        mask[1, 1], mask[2, 3:] = 0, 0
        with torch.no_grad():
            wanted = model(input_ids=ids, attention_mask=mask, state=state)
        given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        found, after = runtime.read_on("hidden", kept, **given)
        assert np.abs(found - wanted.hidden.numpy()).max() < 1e-5
        assert np.abs(runtime.read_on("logits", kept, **given)[0] - wanted.logits.numpy()).max() < 1e-5
        state, kept = wanted.state, after
    alone = runtime.encode(**given)
    assert np.abs(alone - found).max() > 1e-3  # it sees what is kept
    with torch.no_grad():
        assert np.abs(alone - model(input_ids=ids, attention_mask=mask).hidden.numpy()).max() < 1e-5
    with pytest.raises(InputError, match="this model writes no tokens"):
        runtime.start(1)
    with pytest.raises(InputError, match="tokens in a row"):
        runtime.read_on("hidden", kept, input_ids=np.ones((3, 46), dtype=np.int64))


@torch.no_grad()
def test_a_memory_holds_the_newest_tokens_of_each_row() -> None:
    model = compose(parse_spec(MODEL, ["model.topology.memory=6"])).eval()
    state, mask = model.empty_state(2), torch.ones(2, 4, dtype=torch.int64)
    mask[1, 1:3] = 0
    for _ in range(30):  # far more than max_seq_len in all
        state = model(input_ids=torch.randint(31, (2, 4)), attention_mask=mask, state=state).state
    assert state.seen.tolist() == [120, 60]
    assert state.tensors["pos"].tolist() == [[*range(114, 120)], [*range(54, 60)]]
    kept = {name: tensor for name, tensor in state.tensors.items() if name != "seen"}
    assert {tensor.shape[2 if tensor.dim() == 4 else 1] for tensor in kept.values()} == {6}
    with pytest.raises(InputError, match="keeps segments, and has none for tokens to come"):
        model.empty_state(2, room=9)


def test_no_gradient_goes_back_to_an_earlier_segment() -> None:
    model = compose(parse_spec(MODEL))
    state = model(input_ids=torch.randint(31, (2, 4)), state=model.empty_state(2)).state
    assert not any(tensor.requires_grad for tensor in state.tensors.values())


@torch.no_grad()
def test_what_an_order_needs_is_said() -> None:
    model = compose(parse_spec(MODEL)).eval()
    ids = torch.randint(31, (2, 6))
    with pytest.raises(InputError, match="asked: tokens that are asked for need an order"):
        model(input_ids=ids, asked=ids[:, :1] * 0)
    with pytest.raises(InputError, match=r"order is \(2, 5\); the tokens are \(2, 6\)"):
        model(input_ids=ids, order=torch.ones(2, 5, dtype=torch.int64))
    local = ["model.topology.memory=0", "model.layer.attention={kind: local, n_heads: 2, window: 3}"]
    with pytest.raises(InputError, match="order: the attention of layer 0 is bound to columns: its blocks"):
        compose(parse_spec(MODEL, local))(input_ids=ids, order=torch.ones_like(ids))
    with pytest.raises(InputError, match="no state"):
        compose(parse_spec(MODEL, ["model.topology.memory=0"])).empty_state(1)
