"""Values of published fields that few checkpoints have, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peers import TOLERANCE, apart, parity, sharpened
from transformers.activations import ACT2FN
from two_sided import drawn, encoder_parity, gradients, masks, spreads, there_and_back
from two_sided import sharpened as two_sided

from transom.core.activation import ACTIVATIONS, activate
from transom.errors import SpecError
from transom.interop import family_spec, import_checkpoint
from transom.registry.tables import TABLES

SIZES = {"vocab_size": 83, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {
    "hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
    "max_position_embeddings": 64, "rms_norm_eps": 0.1,
}  # fmt: skip
GPT = {"n_positions": 31, "n_embd": 36, "n_layer": 2, "n_head": 4}
OPT = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 50}


GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]


def changed_hidden(folder: Path, option: str) -> float:
    """Return how far hidden states of a model are from its own with an option changed."""
    spec = family_spec(folder / "hf", [option])
    models = (import_checkpoint(folder / "hf", given)[1] for given in (None, spec))
    with torch.no_grad():
        return apart(*(model(input_ids=drawn(83, 23, 1)).hidden for model in models))


def made(name: str, **options: Any) -> Any:
    model = getattr(transformers, name)
    return model(model.config_class(**SIZES | options))


@pytest.mark.parametrize("theirs", sorted(ACT2FN))
def test_an_activation_is_the_peer_s(theirs: str) -> None:
    """In fp64, with its slopes, far out on both sides too; `gelu_fast` rounds a constant to ten digits."""
    table = TABLES["activations"]
    if theirs in table.refused:
        assert list(ACT2FN[theirs].parameters())
        return
    x = torch.cat([torch.linspace(-12.3, 12.3, 373), torch.tensor([-90.0, -39.9, -40.1, 90.0])])
    x = x.double().requires_grad_()
    wanted, found = ACT2FN[theirs](x), ACTIVATIONS[table.values[theirs]](x)  # type: ignore[index]
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (found, wanted)]
    assert apart(found, wanted) < (1e-9 if theirs == "gelu_fast" else 1e-14)
    assert apart(*slopes) < (1e-9 if theirs == "gelu_fast" else 1e-14)
    assert not any(torch.equal(found, activate(name, x)) for name in ACTIVATIONS if name != table.values[theirs]), (
        "two of the names stand for one function"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_activation_has_a_slope_that_is_no_number(dtype: torch.dtype) -> None:
    for name in ACTIVATIONS:
        x = torch.tensor([-180.0, -104.0, -17.0, -15.0, -9.0, 0.0, 60.0], dtype=dtype, requires_grad=True)
        y = activate(name, x)
        assert y.isfinite().all(), name
        assert torch.autograd.grad(y.sum(), x)[0].isfinite().all(), name
        assert apart(y.double(), activate(name, x.double())) < 2 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("theirs", ["prelu", "xielu"])
def test_an_activation_with_weights_is_refused(tmp_path: Path, theirs: str) -> None:
    made("LlamaForCausalLM", **LLAMA).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": theirs}))
    with pytest.raises(SpecError, match=f"hidden_act: '{theirs}' is not read: it has weights of its own"):
        family_spec(tmp_path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("OPTForCausalLM", OPT | {"tie_word_embeddings": False, "activation_function": "relu2"}),
        ("LlamaForCausalLM", LLAMA | {"num_hidden_layers": 2, "hidden_act": "gelu_10"}),
        (
            "Gemma3ForCausalLM",
            LLAMA
            | {"num_hidden_layers": 5, "sliding_window": 7, "sliding_window_pattern": 2, "query_pre_attn_scalar": 1},
        ),
    ],
)
def test_a_decoder(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    parity(sharpened(made(name, **options)), tmp_path)


YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 300}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 0.5, "high_freq_factor": 3.0}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LlamaForCausalLM", LLAMA | {"num_hidden_layers": 2}),
        ("GPTNeoXForCausalLM", {"hidden_size": 40, "intermediate_size": 50, "num_hidden_layers": 2,
                                "num_attention_heads": 4, "rotary_pct": 0.6}),
        ("FalconForCausalLM", {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6}),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("rope", "needed"),
    [
        (YARN | {"mscale": 1.7, "mscale_all_dim": 0.4, "beta_fast": 4.0, "beta_slow": 0.2},
         ("mscale=null", "mscale_all_dim=null", "fast=null", "slow=null")),
        (YARN | {"attention_factor": 1.4, "truncate": False}, ("magnitude=null", "truncate=true")),
        (LLAMA3, ("slow=1.0", "fast=4.0")),
    ],
)  # fmt: skip
def test_a_scaled_rotation(tmp_path: Path, name: str, options: Any, rope: Any, needed: tuple[str, ...]) -> None:
    parity(sharpened(made(name, **options, rope_parameters=dict(rope))), tmp_path)  # the peer adds to what it is given
    for option in needed:
        assert changed_hidden(tmp_path, f"model.position.scaling.{option}") > 1e-4, option


@pytest.mark.parametrize(("near", "far"), [(YARN, LLAMA3), (LLAMA3, YARN | {"mscale": 1.7, "mscale_all_dim": 0.4})])
def test_both_rotations_of_gemma_3(tmp_path: Path, near: Any, far: Any) -> None:
    options = {"num_hidden_layers": 5, "sliding_window": 7, "query_pre_attn_scalar": 1, "layer_types": GEMMA_LAYERS}
    ropes = {"sliding_attention": dict(near), "full_attention": dict(far)}
    parity(sharpened(made("Gemma3ForCausalLM", **LLAMA, **options, rope_parameters=ropes)), tmp_path)
    for option in ("model.position.scaling=null", "model.layer.position.scaling=null"):
        assert changed_hidden(tmp_path, option) > 1e-4, option


def test_gemma_2_does_not_see_both_sides(tmp_path: Path) -> None:
    """Its masks stay as they are, in transformers too: what asks for both sides is refused."""
    sizes = LLAMA | {"num_hidden_layers": 4, "sliding_window": 7, "query_pre_attn_scalar": 1}
    theirs = [sharpened(made("Gemma2ForCausalLM", **sizes, use_bidirectional_attention=way)) for way in (False, True)]
    parity(theirs[0], tmp_path, attention="eager")
    with torch.no_grad():
        assert torch.equal(*(model(input_ids=drawn(83, 23, 1)).logits for model in theirs))
    theirs[1].save_pretrained(tmp_path / "both")
    with pytest.raises(SpecError, match="use_bidirectional_attention: true is not read: it changes no mask"):
        family_spec(tmp_path / "both")


def test_gemma_3_that_sees_both_sides(tmp_path: Path) -> None:
    """As embeddings of texts are made: windows that are even numbers of tokens around each, half of them on a side."""
    options = {"num_hidden_layers": 5, "sliding_window": 8, "query_pre_attn_scalar": 1}
    theirs = two_sided(
        made("Gemma3TextModel", **LLAMA, **options, use_bidirectional_attention=True, layer_types=GEMMA_LAYERS)
    )
    encoder_parity(theirs, tmp_path, {"input_ids": 83}, {})
    for option in ("model.layer.attention.around=6", "model.topology=decoder"):
        assert changed_hidden(tmp_path, option) > 1e-4, option


def test_ctrl_with_a_table_of_its_own_for_the_head(tmp_path: Path) -> None:
    parity(two_sided(made("CTRLLMHeadModel", **GPT, dff=50, tie_word_embeddings=False)), tmp_path, attention="eager")


def test_the_pattern_of_windows_counts(tmp_path: Path) -> None:
    """As Gemma 3's older files say it, which list no layers."""
    made("Gemma3ForCausalLM", **LLAMA, num_hidden_layers=5, sliding_window=7).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["layer_types"]
    kinds = []
    for pattern in ({"sliding_window_pattern": 2}, {"sliding_window_pattern": 6}, {}):
        (tmp_path / "config.json").write_text(json.dumps(config | pattern))
        spec = transformers.AutoConfig.from_pretrained(tmp_path)
        ours = [str(layer.attention.name) for layer in family_spec(tmp_path).model.stacks["decoder"].layers]
        assert ours == [{"sliding_attention": "local", "full_attention": "full"}[kind] for kind in spec.layer_types]
        kinds.append(ours)
    assert kinds[0] != kinds[1] == kinds[2]


@pytest.mark.parametrize("model", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize("window", [7, None])
def test_the_first_layer_with_a_window_counts(tmp_path: Path, model: str, window: int | None) -> None:
    """As older files of Qwen say it, which list no layers."""
    made(model, **LLAMA, num_hidden_layers=5).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["layer_types"]
    kinds = []
    for switched, first in ((True, 2), (True, 4), (True, 9), (False, 2)):
        fields = {"use_sliding_window": switched, "sliding_window": window, "max_window_layers": first}
        (tmp_path / "config.json").write_text(json.dumps(config | fields))
        spec = transformers.AutoConfig.from_pretrained(tmp_path)
        ours = [str(layer.attention.name) for layer in family_spec(tmp_path).model.stacks["decoder"].layers]
        assert ours == [{"sliding_attention": "local", "full_attention": "full"}[kind] for kind in spec.layer_types]
        kinds.append(ours.count("local"))
    assert kinds == ([3, 1, 0, 0] if window else [0] * 4)


@pytest.mark.parametrize("summary", ["cls_index", "first", "mean"])
@pytest.mark.parametrize("model", ["GPT2", "OpenAIGPT"])
def test_a_decoder_of_two_heads(tmp_path: Path, model: str, summary: str) -> None:
    """The language model's, and that of a choice, which reads the last token unless told otherwise."""
    theirs = two_sided(made(f"{model}DoubleHeadsModel", **GPT, summary_type=summary))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    names = {"head": "logits", "choice": "mc_logits"}
    assert set(ours(input_ids=ids).logits) == set(names)
    for mask in (torch.ones_like(ids), *masks(23)):
        with torch.no_grad():
            found = ours(input_ids=ids, attention_mask=mask).logits
            alone = [theirs(input_ids=ids[row : row + 1, mask[row].bool()]) for row in range(3)]
        for row, wanted in enumerate(alone):
            assert apart(found["head"][row, mask[row].bool()], wanted.logits[0]) < TOLERANCE
        assert apart(found["choice"], torch.stack([wanted.mc_logits.reshape(1) for wanted in alone])) < TOLERANCE
    assert gradients(theirs, ours, names, {"input_ids": ids}) < 1e-4


@pytest.mark.parametrize("model", ["GPT2", "OpenAIGPT"])
@torch.no_grad()
def test_a_decoder_of_two_heads_in_steps(tmp_path: Path, model: str) -> None:
    """The choice reads the last token that there is, as in a whole pass of so many tokens."""
    theirs = sharpened(made(f"{model}DoubleHeadsModel", **GPT))
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    assert spreads(theirs, input_ids=ids) > 2
    whole, wanted = ours(input_ids=ids).logits, theirs(input_ids=ids)
    state, words, seen = ours.empty_state(3), [], 0
    for piece in ids.split([7, *[1] * 16], dim=1):
        out = ours(input_ids=piece, state=state)
        state, seen, words = out.state, seen + piece.shape[1], [*words, out.logits["head"]]
        choice = theirs(input_ids=ids[:, :seen]).mc_logits
        assert apart(out.logits["choice"], choice.reshape(3, 1)) < TOLERANCE
    assert apart(torch.cat(words, dim=1), whole["head"]) < TOLERANCE
    assert apart(torch.cat(words, dim=1), wanted.logits) < TOLERANCE
    assert apart(out.logits["choice"], whole["choice"]) < TOLERANCE


@pytest.mark.parametrize(
    ("summary", "activation"), [("first", "gelu"), ("last", "tanh"), ("mean", "relu"), ("cls_index", "hardswish")]
)
@torch.no_grad()
def test_the_choice_of_electra(tmp_path: Path, summary: str, activation: str) -> None:
    theirs = two_sided(
        made("ElectraForMultipleChoice", hidden_size=36, embedding_size=20, num_hidden_layers=2, num_attention_heads=4,
             intermediate_size=50, max_position_embeddings=31, summary_type=summary, summary_activation=activation)
    )  # fmt: skip
    ours, ids = there_and_back(theirs, tmp_path), drawn(83, 23, 1)
    wanted = theirs(input_ids=ids.unsqueeze(0)).logits[0]
    assert apart(ours(input_ids=ids).logits[:, 0], wanted) < TOLERANCE


@pytest.mark.parametrize("given", ["gelu", "gelu_new", "silu", "gated-relu", "gated-gelu", "gated-mish"])
@pytest.mark.parametrize("model", ["T5", "MT5"])
@torch.no_grad()
def test_the_feedforward_of_t5(tmp_path: Path, model: str, given: str) -> None:
    sizes = {"d_model": 36, "d_kv": 10, "d_ff": 50, "num_layers": 2, "num_heads": 4}
    theirs = two_sided(made(f"{model}ForConditionalGeneration", **sizes, feed_forward_proj=given), by=1.0)
    ours, source, target = there_and_back(theirs, tmp_path), drawn(83, 23, 1), drawn(83, 9, 2)
    wanted = theirs(input_ids=source, decoder_input_ids=target).logits
    assert apart(ours(input_ids=source, decoder_input_ids=target).logits, wanted) < TOLERANCE
