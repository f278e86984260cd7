"""States with room for tokens to come: written in place, widened, and equal to those that grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from transom.core.state import State
from transom.core.topology import Topology
from transom.errors import InputError, PluginError
from transom.generation import Sampling, generate
from transom.registry.compose import compose
from transom.registry.spec import load_spec
from transom.training.text import Stepper

VOCAB = 53
MIXED = [
    "model.d_model=24", "model.max_seq_len=128", f"model.embedding.vocab_size={VOCAB}",
    "model.layer.attention={kind: full, n_heads: 6, n_kv_heads: 2}", "model.layer.feedforward.d_ff=40",
    "model.layers=[{pattern: [{attention: {kind: local, window: 5}}, {}, {attention: {kind: linear}}, "
    "{position: alibi}]}]",
]  # fmt: skip


class Growing(Stepper):
    """Take steps with a state that each of them makes longer."""

    def start(self, batch: int) -> State:
        return self.model.empty_state(batch)

    def _run(self, input_ids: Any, attention_mask: Any, state: State, *, logits: bool) -> Any:
        inputs = {"input_ids": torch.from_numpy(input_ids)}
        if attention_mask is not None:
            inputs["attention_mask"] = torch.from_numpy(attention_mask)
        return self.model(**inputs, state=state, logits=logits)


@pytest.fixture(scope="module")
def model() -> Topology:
    torch.manual_seed(3)
    return compose(load_spec("tiny_gpt", MIXED)).eval()


def drawn(*sizes: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(11).integers(0, VOCAB, sizes))


@torch.inference_mode()
def test_a_step_reads_the_slots_in_use_and_copies_none(model: Topology) -> None:
    ids, state = drawn(2, 21), model.empty_state(2, room=64)
    kept = {name: tensor for name, tensor in state.tensors.items() if 64 in tensor.shape}
    assert len(kept) == 4
    places = {name: tensor.data_ptr() for name, tensor in kept.items()}
    wanted = model(input_ids=ids).logits
    for columns in torch.arange(21).split([9, 1, 1, 7, 3]):
        out = model(input_ids=ids[:, columns], state=state)
        state = out.state
        torch.testing.assert_close(out.logits, wanted[:, columns], rtol=1e-4, atol=1e-5)
        assert {name: state.tensors[name].data_ptr() for name in places} == places
        for name in places:
            used = state.tensors[name].narrow(2, 0, state.columns)
            assert used.abs().sum(-1).all()
            assert not state.tensors[name].narrow(2, state.columns, 64 - state.columns).any()


@torch.inference_mode()
def test_a_state_is_widened_with_all_that_it_holds(model: Topology) -> None:
    ids = drawn(3, 19)
    mask = torch.ones(3, 11, dtype=torch.int64)
    mask[1, 4:] = mask[2, :6] = 0
    wanted = model(input_ids=ids[:, :11], attention_mask=mask, state=model.empty_state(3)).state
    state = model(input_ids=ids[:, :11], attention_mask=mask, state=model.empty_state(3, room=11)).state
    with pytest.raises(InputError, match="8 tokens after 11: the state has room for 11 columns"):
        model(input_ids=ids[:, 11:], state=state)
    wide = model.widen(state, 19)
    assert wide.room == 19
    torch.testing.assert_close(
        model(input_ids=ids[:, 11:], state=wide).logits,
        model(input_ids=ids[:, 11:], state=wanted).logits,
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(InputError, match="room for 10 columns: it has room for 19 columns"):
        model.widen(wide, 10)
    with pytest.raises(InputError, match="room for 10 columns: it has none"):
        model.widen(wanted, 10)


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=40), Sampling(max_new_tokens=31, temperature=0.9)])
def test_texts_are_those_of_a_state_that_grows(
    model: Topology, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rows of several lengths, and room that is used up again and again."""
    monkeypatch.setattr(Stepper, "spare", 2)
    prompts = [[5, 1, 7, 2, 50, 3, 3], [9], [4, 4, 8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    for rows in (prompts, prompts[:1]):
        written = generate(Stepper(model, VOCAB), rows, sampling)
        assert written == generate(Growing(model, VOCAB), rows, sampling)
        assert len(written[0].ids) == sampling.max_new_tokens


def test_a_part_that_grows_by_itself_is_refused_with_the_way_out(
    model: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that puts new keys behind old ones itself finds no room, and must not lose them in silence."""
    from transom.core.context import Context

    monkeypatch.setattr(Context, "append", lambda self, old, new, dim=1: torch.cat([old, new], dim=dim))
    with torch.inference_mode(), pytest.raises(PluginError, match=r"layers\.1\.attention: .* take context\.append"):
        model(input_ids=drawn(1, 5), state=model.empty_state(1, room=9))
