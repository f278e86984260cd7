"""What a user meets when calling a composed model: inputs, outputs, state, attention weights, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import transom
from transom.core.initialise import initialise
from transom.errors import InputError, PluginError
from transom.registry.spec import parse_spec

BASE = """
model:
  topology: {topology}
  d_model: 24
  max_seq_len: 29
  embedding: {{kind: token, vocab_size: 61}}
  position: {position}
  layer:
    norm: rms
    attention: {attention}
    feedforward: {{kind: glu, d_ff: 40}}
  layers: [{{repeat: 2}}]
  norm: rms
  head: {head}
{more}
"""


def model_of(topology="decoder", attention="{kind: full, n_heads: 3}", position="rope", head="{kind: lm}", more=""):
    text = BASE.format(topology=topology, attention=attention, position=position, head=head, more=more)
    return transom.compose(parse_spec(text))


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(61, shape)


def test_a_decoder_gives_logits_hidden_states_and_no_state_unless_asked():
    out = model_of()(input_ids=ids(2, 7))
    assert out.logits.shape == (2, 7, 61)
    assert out.hidden.shape == (2, 7, 24)
    assert out.state is None
    assert out.attentions is None


def test_logits_can_be_left_out():
    assert model_of()(input_ids=ids(2, 7), logits=False).logits is None


def test_several_heads_give_a_map_of_logits():
    model = model_of(head="{words: {kind: lm}, topic: {kind: classifier, n_classes: 5}}")
    logits = model(input_ids=ids(2, 7)).logits
    assert {name: tuple(t.shape) for name, t in logits.items()} == {"words": (2, 7, 61), "topic": (2, 5)}


WHOLE = (
    "{kind: classifier, n_classes: 3, pool: first}",
    "{kind: classifier, n_classes: 3}",
    "{kind: pooled, pool: max}",
)


@pytest.mark.parametrize("head", WHOLE)
@pytest.mark.parametrize("topology", ["decoder", "encoder_decoder"])
def test_a_head_of_whole_texts_is_not_read_off_a_later_chunk(topology, head):
    more = SEQ2SEQ if topology == "encoder_decoder" else ""
    model = model_of(topology, position="t5_bias", head=f"{{words: {{kind: lm}}, whole: {head}}}", more=more)
    name, text = "input_ids" if topology == "decoder" else "decoder_input_ids", ids(2, 9)
    state = model.empty_state(2) if topology == "decoder" else model.start(input_ids=ids(2, 5))
    first = model(**{name: text[:, :4]}, state=state)
    assert first.logits["whole"].shape[0] == 2  # all that there is
    with pytest.raises(InputError, match=r"head 'whole' \((classifier|pooled)\) needs all tokens.* 4 came before"):
        model(**{name: text[:, 4:]}, state=first.state)
    assert model(**{name: text[:, 4:]}, state=first.state, logits=False).logits is None


def test_a_head_that_pools_the_last_token_steps():
    model = model_of(head="{kind: classifier, n_classes: 3, pool: last}")
    text = ids(2, 9)
    first = model(input_ids=text[:, :4], state=model.empty_state(2))
    torch.testing.assert_close(model(input_ids=text[:, 4:], state=first.state).logits, model(input_ids=text).logits)


@pytest.mark.parametrize("attention", ["{kind: full, n_heads: 3}", "{kind: local, n_heads: 3, window: 3}"])
def test_attention_weights_sum_to_one_and_leave_the_result_as_it_is(attention):
    model = model_of(attention=attention).double()
    tokens = ids(2, 11)
    out = model(input_ids=tokens, attentions=True)
    assert [tuple(w.shape) for w in out.attentions] == [(2, 3, 11, 11)] * 2
    for weights in out.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 11, dtype=torch.float64))
        assert torch.equal(weights.triu(1), torch.zeros_like(weights))
    torch.testing.assert_close(out.logits, model(input_ids=tokens).logits, rtol=1e-10, atol=1e-10)


def test_a_mask_may_also_cover_the_past():
    model = model_of().double()
    tokens, new = ids(2, 5), ids(2, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    state = model(input_ids=tokens, attention_mask=mask, state=model.empty_state(2)).state
    short = model(input_ids=new, state=state).logits
    long = model(input_ids=new, attention_mask=torch.cat([mask, torch.ones(2, 1)], dim=1), state=state).logits
    alone = model(input_ids=torch.cat([tokens[1:, 2:], new[1:]], dim=1)).logits[:, -1:]
    torch.testing.assert_close(short, long, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(short[1:], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(), "takes the inputs input_ids; it was given nothing"),
        (lambda m: m(input_ids=ids(1, 3), pixel_values=ids(1, 3)), "was given input_ids, pixel_values"),
        (lambda m: m(input_ids=ids(2, 30)), "30 tokens in a row; this model takes at most max_seq_len = 29"),
        (lambda m: m(input_ids=ids(2, 3), attention_mask=torch.ones(2, 5)), r"attention_mask has 5 columns"),
        (lambda m: m(input_ids=ids(2, 3), attention_mask=torch.ones(3, 3)), r"attention_mask is \(3, 3\)"),
        (lambda m: m(input_ids=ids(2, 3), document_ids=ids(2, 4)), r"document_ids is \(2, 4\)"),
        (
            lambda m: m(input_ids=ids(2, 3), document_ids=ids(2, 3), state=m.empty_state(2)),
            "document_ids together with a state",
        ),
        (lambda m: m(input_ids=ids(2, 3), state=m.empty_state(4)), "the state is of 4 rows, the inputs of 2"),
    ],
)
def test_wrong_inputs_are_told_apart(call, message):
    with pytest.raises(transom.TransomError, match=message):
        call(model_of())


def test_a_step_past_the_longest_row_is_refused_however_it_is_cut():
    model = model_of()
    state = model(input_ids=ids(1, 20), state=model.empty_state(1)).state
    with pytest.raises(transom.TransomError, match="30 tokens in a row"):
        model(input_ids=ids(1, 10), state=state)
    assert model(input_ids=ids(1, 9), state=state).state.columns == 29


def test_padding_does_not_count_against_the_longest_row():
    model = model_of()
    mask = torch.zeros(1, 40)
    mask[0, 5:30] = 1
    assert model(input_ids=ids(1, 40), attention_mask=mask).logits.isfinite().all()


SEQ2SEQ = "  decoder: {layer: {cross_attention: {kind: full, n_heads: 3}}}"


def test_an_encoder_decoder_steps_as_it_computes_at_once():
    model = model_of("{kind: encoder_decoder, share_embedding: true}", position="t5_bias", more=SEQ2SEQ).double()
    source, target = ids(2, 9), ids(2, 6)
    mask = torch.ones(2, 9)
    mask[1, :4] = 0
    whole = model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    state = model.start(input_ids=source, attention_mask=mask)
    steps = []
    for t in range(6):
        out = model(decoder_input_ids=target[:, t : t + 1], state=state)
        state = out.state
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-10, atol=1e-10)
    with pytest.raises(transom.TransomError, match="it was given decoder_input_ids, input_ids"):
        model(input_ids=source, decoder_input_ids=target, state=state)
    with pytest.raises(transom.TransomError, match="the state holds the source and its mask"):
        model(attention_mask=mask, decoder_input_ids=target[:, :1], state=state)


def test_a_shared_table_is_named_once():
    model = model_of("{kind: encoder_decoder, share_embedding: true}", head="{kind: lm, tied: true}", more=SEQ2SEQ)
    assert [name for name in model.state_dict() if "embedding" in name] == ["encoder.embedding.weight"]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.encoder.embedding.weight.zero_()
    out = twin(input_ids=ids(1, 3), decoder_input_ids=ids(1, 3))
    assert torch.equal(out.logits, torch.zeros_like(out.logits))
    assert model(input_ids=ids(1, 3), decoder_input_ids=ids(1, 3)).logits.abs().max() > 0


def test_a_shared_table_leaves_no_room_for_another():
    other = "  decoder: {embedding: {vocab_size: 50}, layer: {cross_attention: {kind: full, n_heads: 3}}}"
    with pytest.raises(transom.SpecError, match="reads with the embedding of 'encoder'"):
        model_of("{kind: encoder_decoder, share_embedding: true}", more=other)
    assert model_of("{kind: encoder_decoder, share_embedding: false}", more=other).decoder.embedding.vocab_size == 50


def test_a_spec_that_does_not_compose_names_both_parts_and_the_reason():
    with pytest.raises(transom.SpecError, match=r"'linear' does not compose with position 'alibi'.*because"):
        model_of(attention="{kind: linear, n_heads: 3}", position="alibi")


def test_heads_that_differ_need_a_position_of_their_own():
    layers = "  layers: [{pattern: [{}, {attention: {n_heads: 6}}]}]"
    text = BASE.format(
        topology="decoder", attention="{kind: full, n_heads: 3}", position="alibi", head="{kind: lm}", more=""
    ).replace("  layers: [{repeat: 2}]", layers)
    with pytest.raises(transom.SpecError, match="serves layers whose heads differ"):
        transom.compose(parse_spec(text))
    own = text.replace("{n_heads: 6}}", "{n_heads: 6}, position: alibi}")
    assert transom.compose(parse_spec(own))(input_ids=ids(1, 5)).logits.isfinite().all()


def test_swapping_one_part_leaves_the_first_weights_of_all_others():
    full, local = model_of(), model_of(attention="{kind: local, n_heads: 3, window: 5}")
    assert all(torch.equal(a, b) for a, b in zip(full.parameters(), local.parameters(), strict=True))


def test_weights_that_nothing_fills_are_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

    class Covered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Bare()

        def reset_parameters(self) -> None:
            nn.init.ones_(self.inner.factor)

    initialise(Covered(), 0)
    with pytest.raises(PluginError, match=r"Bare: factor \(3,\) is filled by no method reset_parameters"):
        initialise(nn.Sequential(nn.Linear(2, 2), Bare()), 0)


def test_only_what_a_state_dict_brings_is_left_undrawn() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((5,), 7.0))
            self.register_buffer("count", torch.full((2,), 7.0))

        def reset_parameters(self) -> None:
            nn.init.normal_(self.weight)
            nn.init.zeros_(self.count)

    class Partly(Whole):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("features", torch.zeros(3), persistent=False)

        def reset_parameters(self) -> None:
            super().reset_parameters()
            nn.init.normal_(self.features)

    drawn, loaded = (nn.Sequential(Whole(), Partly()) for _ in range(2))
    initialise(drawn, 11)
    initialise(loaded, 11, drawn=False)
    assert torch.equal(loaded[0].weight, torch.full((5,), 7.0))
    assert torch.equal(loaded[0].count, torch.zeros(2))
    # Nothing loads the features; they follow the weight in what the module draws.
    assert torch.equal(loaded[1].features, drawn[1].features)
    loaded.load_state_dict(drawn.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), drawn.parameters(), strict=True))
