"""What `transom show` says of a spec, against the model that is really composed and a training that really runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transom.core.objective import Objective, Prepared
from transom.core.topology import Topology
from transom.errors import SpecError
from transom.registry.compose import compose
from transom.registry.estimate import longest_batch
from transom.registry.meter import CpuKernels, Meter
from transom.registry.shapes import rule_of
from transom.registry.show import Branch, describe
from transom.registry.spec import Spec, load_spec, parse_spec
from transom.registry.units import scaled
from transom.training.processes import World
from transom.training.setup import check_settings, compute_twice

ATTENTIONS = {
    "full": "{kind: full, n_heads: 4, n_kv_heads: 2}",
    "full, normed and gated": "{kind: full, n_heads: 4, head_dim: 6, qk_norm: rms, gate: true}",
    "local": "{kind: local, n_heads: 4, window: 7}",
    "linear": "{kind: linear, n_heads: 4}",
    "sparse": "{kind: sparse, n_heads: 4, block: 3}",
    "conv": "conv",
    "gru": "gru",
}
BUNDLED = ("tiny_gpt", "tiny_bert", "tiny_t5", "tiny_vit")


def tiny(attention: str = "full", *overrides: str) -> Spec:
    """Return the spec of a decoder with odd sizes and seven layers of two kinds."""
    text = f"""
    name: odd
    model:
      topology: decoder
      d_model: 20
      max_seq_len: 29
      embedding: {{kind: token, vocab_size: 301}}
      position: {{kind: sinusoidal}}
      layer: {{norm: rms, attention: {ATTENTIONS[attention]}, feedforward: {{kind: glu, d_ff: 36}}}}
      layers:
        - repeat: 3
          pattern: [{{}}, {{norm: layer, feedforward: {{kind: mlp, d_ff: 44}}}}]
        - repeat: 1
          pattern: [{{}}]
      norm: rms
      head: {{kind: lm, tied: true}}
    objective: causal_lm
    data: {{kind: text, seq_len: 23, tokenizer: {{kind: bpe, vocab_size: 301}}}}
    train: {{batch_size: 3}}
    """
    return parse_spec(text, overrides)


def lines(branch: Branch) -> list[str]:
    """Return a tree's lines from the root on."""
    return [f"{branch.label}  {branch.detail}", *(line for child in branch.children for line in lines(child))]


def step(model: Topology, objective: Objective, prepared: Prepared) -> Meter:
    """Return what is read off one forward and backward pass of a whole model on CPU."""
    compute_twice(model, check_settings(model.spec, World(torch.device("cpu"))))
    with Meter() as meter:
        hidden = model(**prepared.inputs, logits=False).hidden
        loss = objective.loss(hidden, model.head, prepared).total * 1.0
        del hidden
        loss.backward()
    return meter


@pytest.mark.parametrize(
    "spec",
    [
        *(tiny(name) for name in ATTENTIONS),
        tiny("full", "model.position=t5_bias"),
        tiny("local", "model.position=alibi"),
        tiny("full", "train.checkpoint_activations=true"),
        *(load_spec(name, ["train.batch_size=3"]) for name in BUNDLED),
    ],
    ids=[*ATTENTIONS, "t5_bias", "alibi", "checkpoints", *BUNDLED],
)
def test_figures_are_those_of_the_whole_model_on_a_cpu(spec: Spec) -> None:
    found = describe(spec).estimate
    model = compose(spec)
    size = sum(p.numel() for p in model.parameters())
    assert found.parameters == size
    assert found.weights == 4 * size + sum(b.numel() * b.element_size() for b in model.buffers())
    meter = step(model, *longest_batch(spec, model))
    assert found.training is not None, found.notes
    assert found.training.flops == meter.flops
    assert found.training.held == found.weights + 12 * size
    assert found.training.peak == pytest.approx(found.training.held - 4 * size + meter.peak, rel=0.01)


@pytest.mark.parametrize(
    ("attention", "rel"),
    [
        ("{kind: native_sparse, n_heads: 4, n_kv_heads: 2, window: 64, block: 16, chosen: 4}", 0.01),
        ("{kind: local_p, n_heads: 4, window: 16}", 0.1),  # how far apart centres are is not known
    ],
)
def test_what_chooses_by_content_is_estimated_as_it_runs(attention: str, rel: float) -> None:
    given = [f"model.layer.attention={attention}", "model.max_seq_len=307", "data.seq_len=307"]
    spec = tiny("full", "model.layers=[{repeat: 2}]", *given)
    found, model = describe(spec).estimate, compose(spec)
    objective, prepared = longest_batch(spec, model)
    prepared.inputs["input_ids"].random_(301)
    meter = step(model, objective, prepared)
    assert found.training is not None, found.notes
    assert found.training.flops == pytest.approx(meter.flops, rel=rel)
    assert found.training.peak == pytest.approx(found.training.held - 4 * found.parameters + meter.peak, rel=rel)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("rows", [31, 8])
def test_as_few_layers_as_it_takes_compute_their_activations_twice(share: float, rows: int) -> None:
    """What a step holds is measured: within what was asked, and with a layer less it would not be by the estimate."""

    def spec(**train: object) -> Spec:
        given = [f"train.{name}={value}" for name, value in {"batch_size": rows, **train}.items()]
        return tiny("full", "model.layers=[{repeat: 24}]", "data.seq_len=29", *given)

    plain, all_twice = (describe(spec(checkpoint_activations=twice)).estimate.training for twice in ("false", "true"))
    assert plain is not None
    assert all_twice is not None
    most = all_twice.peak + share * (plain.peak - all_twice.peak)
    asked = spec(memory_gb=most / 1e9)
    found = describe(asked).estimate
    assert found.training is not None
    count = found.training.checkpointed["decoder"]
    assert count == -(-24 * (1 - share) // 1)
    assert plain.flops < found.training.flops < all_twice.flops
    model = compose(asked)
    meter = step(model, *longest_batch(asked, model))
    assert model.decoder.checkpointed == count
    held = found.training.held - 4 * found.parameters + meter.peak
    assert held <= found.training.peak <= most
    other = compose(spec())
    other.load_state_dict(model.state_dict())
    step(other, *longest_batch(spec(), other))
    for mine, wanted in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-5, atol=1e-7)
    assert found.training.peak == pytest.approx(held, rel=0.1)
    assert any(f"activations, of {count} layers of 24 computed twice" in line for line in describe(asked).notes)
    assert describe(spec(memory_gb=1.01 * plain.peak / 1e9)).estimate.training == plain


def test_flops_of_a_decoder_are_those_of_its_products() -> None:
    spec = tiny("full", "model.layer.attention.n_kv_heads=4", "train.accumulate=5")
    found = describe(spec).estimate
    model = compose(spec)
    products = sum(p.numel() for p in model.parameters() if p.dim() == 2)  # the table as well: the head is tied to it
    attention = 7 * 4 * found.tokens * 20
    assert found.tokens == 23
    assert found.forward == 2 * products + attention
    assert found.training is not None
    # The fused kernel's backward pass forms the scores again: two and a half times its forward pass, not twice.
    assert found.training.flops == 5 * 3 * 23 * (6 * products + 3.5 * attention)


@pytest.mark.parametrize("attention", ["full", "local", "linear", "sparse", "conv", "gru"])
def test_state_is_as_large_as_the_real_one_at_max_seq_len(attention: str) -> None:
    spec = tiny(attention)
    model = compose(spec)
    with torch.no_grad():
        after = model(input_ids=torch.zeros(1, 29, dtype=torch.int64), state=model.empty_state(1)).state
    assert after is not None
    assert describe(spec).estimate.state == after.nbytes > 0


def test_accumulated_gradients_stand_beside_the_activations() -> None:
    once, often = (describe(tiny("full", f"train.accumulate={n}")).estimate.training for n in (1, 4))
    assert once is not None
    assert often is not None
    assert often.flops == 4 * once.flops
    assert once.peak < often.peak <= once.peak + once.held // 4


def test_frozen_weights_have_neither_gradients_nor_moments() -> None:
    spec = tiny("full", "train.freeze=['decoder.layers.*', 'decoder.embedding.*']")
    found = describe(spec).estimate
    assert found.training is not None
    assert found.training.held == found.weights + 12 * 20  # the last norm alone learns


def test_the_tree_names_each_kind_of_layer_once() -> None:
    spec = tiny("gru", "model.position=[rope, sinusoidal]")
    text = lines(describe(spec).tree)
    size = sum(p.numel() for p in compose(spec).parameters())
    assert text[0] == f"odd: decoder  d_model 20 · max_seq_len 29 · {size:,} parameters"
    assert [line for line in text if line.startswith("layer")] == [
        "layers 0, 2, 4, 6 (4 x)  pre · 4 x 5,120 = 20,480 parameters",
        "layers 1, 3, 5 (3 x)  pre · 3 x 4,760 = 14,280 parameters",
    ]
    assert "position rope  of no effect: no attention here has heads" in text
    assert sum("kernel: torch gru · ignores rope" in line for line in text) == 2
    assert text[-1] == "head lm  tied yes · tied to the embedding"


def test_why_a_faster_kernel_is_not_taken_is_said() -> None:
    notes = describe(tiny("full", "model.position=t5_bias")).notes
    assert "scores of attention are formed in full: what is added to the scores is learned" in notes
    assert not any("in full" in note for note in describe(tiny("full", "model.position=alibi")).notes)


def test_options_that_went_with_a_swap_are_said() -> None:
    spec = tiny("local", "model.layer.attention.kind=full")
    assert any("window" in note for note in spec.dropped)
    assert set(spec.dropped) <= set(describe(spec).notes)


@pytest.mark.parametrize("overrides", [["objective=none"], ["data=none"], ["data.seq_len=30"]])
def test_a_spec_that_cannot_be_trained_is_shown(overrides: list[str]) -> None:
    found = describe(tiny("full", *overrides)).estimate
    assert found.training is None
    assert found.forward > 0
    assert any("data.seq_len" in note for note in found.notes) == (overrides == ["data.seq_len=30"])


@pytest.mark.parametrize("overrides", [["model.position=alibi"], ["model.d_model=21"]])
def test_a_spec_that_does_not_compose_gives_the_errors_of_compose(overrides: list[str]) -> None:
    spec = tiny("linear", *overrides)
    with pytest.raises(SpecError) as composed:
        compose(spec, "meta")
    with pytest.raises(SpecError) as shown:
        describe(spec)
    assert str(shown.value) == str(composed.value)


def test_low_precision_makes_activations_smaller() -> None:
    full, low = (describe(load_spec("tiny_gpt", [f"train.precision={name}"])).estimate for name in ("fp32", "bf16"))
    assert full.training is not None
    assert low.training is not None
    assert low.training.held == full.training.held
    assert 0.4 < (low.training.peak - low.training.held) / (full.training.peak - full.training.held) < 0.9


def test_own_rules_for_shapes_agree_with_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: describe(load_spec(name, ["train.batch_size=3"])).estimate for name in BUNDLED}
    monkeypatch.setattr("transom.registry.meter.rule_of", lambda func: None)
    assert own == {name: describe(load_spec(name, ["train.batch_size=3"])).estimate for name in BUNDLED}


def test_a_kernel_that_the_meta_device_lacks_is_taken_there() -> None:
    q = torch.empty(2, 4, 50, 8, device="meta", requires_grad=True)
    meter = Meter()
    with CpuKernels(meter), meter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert meter.peak == 4 * 2 * 4 * 50 * (8 + 1)  # what comes out and the sums of the softmax, never 50 x 50 scores
    assert rule_of(torch.ops.aten.sort.default) is not None


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 "), (7, "7 "), (999, "999 "), (1234, "1.23 k"), (56_780, "56.8 k"), (999_600, "1.00 M")]
)
def test_numbers_have_three_digits(count: int, text: str) -> None:
    assert scaled(count) == text


LARGE = """
name: large
model:
  topology: decoder
  d_model: 16384
  max_seq_len: 131072
  embedding: {kind: token, vocab_size: 128256}
  position: {kind: rope, theta: 500000.0}
  layer:
    norm: rms
    attention: {kind: full, n_heads: 128, n_kv_heads: 8}
    feedforward: {kind: glu, d_ff: 53248}
  layers: [{repeat: 126}]
  norm: rms
  head: lm
objective: causal_lm
data: {kind: text, seq_len: 8192, tokenizer: {kind: bpe, vocab_size: 128256}}
train: {precision: bf16}
"""


def test_400_billion_parameters_are_shown_without_being_there(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(LARGE)
    code = """if True:
        import re, sys
        from pathlib import Path
        from transom.registry.show import describe
        from transom.registry.spec import load_spec
        print(describe(load_spec(sys.argv[1])).estimate.parameters)
        # Of this process image alone: what getrusage says begins at the parent's peak.
        print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        heavy = {"torch._dynamo", "sympy", "scipy", "datasets", "matplotlib", "sklearn", "onnx"}
        print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    parameters, kilobytes, loaded = done.stdout.splitlines()
    assert int(parameters) == 405_853_388_800
    assert int(kilobytes) < 1_000_000
    assert loaded == "[]"  # each of them takes about as long as torch itself


def test_training_takes_the_memory_that_is_estimated(root: Path) -> None:
    arguments = ["tiny_gpt", "train.batch_size=24"]
    found = describe(load_spec(arguments[0], arguments[1:])).estimate.training
    assert found is not None
    # Memory that is freed goes back to the system, as in `benchmarks/memory.py`.
    honest = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "benchmarks" / "memory.py"), "--child", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **honest})
    assert found.peak == pytest.approx(int(done.stdout), rel=0.15)
