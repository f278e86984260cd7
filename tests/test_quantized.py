"""Graphs of lower precision and with quantized weights compute what they say, and the report says what that costs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from transom.core.objective import Prepared
from transom.core.topology import Topology
from transom.deploy import Report, export
from transom.deploy.arrays import ArrayRuntime
from transom.deploy.blocks import Grid, round_blocks
from transom.deploy.calibrate import round_for
from transom.deploy.fidelity import choices
from transom.deploy.manifest import Manifest
from transom.errors import ExportError, SpecError
from transom.registry.compose import build_objective, compose
from transom.registry.settings import ExportSettings, QuantizeSettings
from transom.registry.spec import parse_spec

# A head that is the embedding's table, biases, a state in half and one in full precision, a ring.
MODEL = """
model:
  topology: decoder
  d_model: 32
  max_seq_len: 60
  embedding: {kind: token, vocab_size: 61}
  position: rope
  layer:
    norm: rms
    attention: {kind: full, n_heads: 2, n_kv_heads: 1, bias: true}
    feedforward: {kind: glu, d_ff: 44}
  layers: [{pattern: [{}, {attention: {kind: linear}}]}]
  norm: rms
  head: {kind: lm, tied: true}
objective: causal_lm
"""
PAIR = """
model:
  topology: encoder_decoder
  d_model: 24
  max_seq_len: 19
  embedding: {kind: token, vocab_size: 23}
  position: sinusoidal
  layer: {norm: rms, attention: {kind: full, n_heads: 2}, feedforward: {kind: mlp, d_ff: 40}}
  encoder: {layers: [{}]}
  decoder: {layer: {cross_attention: {kind: full, n_heads: 2}}, layers: [{}]}
  norm: rms
  head: lm
"""
EXACT_PRODUCTS = QuantizeSettings(
    method="int4", block_size=16, accuracy_level=0, wide=("*.out",), leave_out=("*.down",)
)
TABLE = "decoder.embedding.weight"
SHAPES = [(bits, block, symmetric) for bits in (4, 8) for block in (16, 64) for symmetric in (True, False)]


class Exported(NamedTuple):
    model: Topology
    folder: Path
    report: Report


class Given:
    """Be the samples of a run that was never trained: rows drawn from the vocabulary."""

    def __init__(self, model: Topology) -> None:
        self.objective = build_objective(model.spec, None)
        self._ids = torch.from_numpy(np.random.default_rng(3).integers(61, size=(5, 24)))

    def held_out(self, tokens: int) -> Prepared:
        return self.objective.prepare({"input_ids": self._ids}, torch.Generator())

    def learned(self, rows: int) -> list[Prepared]:
        return [self.objective.prepare({"input_ids": row[None]}, torch.Generator()) for row in self._ids[:rows]]


@pytest.fixture(scope="module")
def model() -> Topology:
    torch.manual_seed(5)
    made = compose(parse_spec(MODEL))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


Export = Callable[..., Exported]


@pytest.fixture(scope="module")
def exported(model: Topology, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return a function that exports the model, once for each way."""
    done: dict[str, Exported] = {}

    def run(**settings: Any) -> Exported:
        if str(settings) not in done:
            folder = tmp_path_factory.mktemp("quantized") / "out"
            report = export(model, folder, settings=ExportSettings(**settings), samples=Given(model))
            done[str(settings)] = Exported(model, folder, report)
        return done[str(settings)]

    return run


@pytest.mark.parametrize(("bits", "block", "symmetric"), SHAPES)
def test_packed_codes_are_multiplied_as_the_values_that_they_stand_for(bits: int, block: int, symmetric: bool) -> None:
    weight, x = torch.randn(75, 13), torch.randn(3, 75)
    weight[:, 4] = 0  # a column without a scale
    rounded = round_blocks(weight, Grid(bits, block, symmetric))
    codes, scales, zeros = rounded.packed()
    arrays = {"codes": codes, "scales": scales} | ({} if zeros is None else {"zeros": zeros})
    node = helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", K=75, N=13, bits=bits, block_size=block
    )
    graph = helper.make_graph(
        [node], "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 75])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 13])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, (x @ rounded.values(75)).numpy(), atol=2e-5)


@pytest.mark.parametrize(("bits", "block", "symmetric"), SHAPES)
def test_no_block_is_rounded_worse_than_by_its_range(bits: int, block: int, symmetric: bool) -> None:
    weight = torch.distributions.StudentT(4.0).sample((block * 3, 17))
    blocks = weight.T.reshape(17, 3, block)
    if symmetric:
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        step, zero = -largest / 2 ** (bits - 1), torch.tensor(2.0 ** (bits - 1))
    else:
        low, high = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True).clamp(min=0)
        step = (high - low) / (2**bits - 1)
        zero = (-low / step).round()
    by_range = ((blocks / step).round() + zero).clamp(0, 2**bits - 1).sub(zero) * step
    found = round_blocks(weight, Grid(bits, block, symmetric)).values(block * 3).T.reshape(blocks.shape)
    ours, theirs = ((each - blocks).square().sum(-1) for each in (found, by_range))
    assert (ours <= theirs * (1 + 1e-5)).all()
    assert ours.sum() < 0.97 * theirs.sum() if bits == 4 else ours.sum() < theirs.sum()


def unpacked(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """Return the matrices (K, N) that the nodes of a graph multiply with, by the modules that they are named after."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            said = {attribute.name: attribute.i for attribute in node.attribute}
            codes, scales, zeros = (arrays[name] for name in node.input[1:4])
            both = [codes & 15, codes >> 4] if said["bits"] == 4 else [codes]
            whole = np.stack(both, axis=-1).reshape(*codes.shape[:2], -1).astype(np.float32)
            pairs = [zeros & 15, zeros >> 4] if said["bits"] == 4 else [zeros]
            zero = np.stack(pairs, axis=-1).reshape(len(zeros), -1)[:, : whole.shape[1]]
            values = (whole - zero[..., None]) * scales[..., None]
            found[node.name.partition("/")[0]] = torch.from_numpy(values.reshape(len(values), -1)[:, : said["K"]].T)
    return found


def test_a_graph_of_codes_gives_what_the_model_gives_with_the_rounded_weights(exported: Export) -> None:
    """With products in fp32 nothing else is lost; the table that the head reads stays whole for the embedding."""
    made = exported(quantize=EXACT_PRODUCTS)
    graph = onnx.load(made.folder / "model.onnx").graph
    weights = unpacked(graph)
    kept = {name for name, _ in made.model.named_modules() if name.endswith(".down")}
    assert len(kept) == 2
    assert weights.keys() == {*made.report.figures[0].quantized}
    assert {"heads.head", "decoder.layers.0.attention.out"} < weights.keys()
    assert not kept & weights.keys()
    rounded = copy.deepcopy(made.model)
    table = rounded.get_parameter(TABLE).detach().clone()
    ids = torch.randint(61, (3, 21))
    with torch.no_grad():
        for name, weight in weights.items():
            module = rounded.get_submodule(name)
            stored = getattr(module, "weight", None)
            if stored is not None:
                assert 0 < (stored - weight.T).abs().max() < (0.01 if name.endswith(".out") else 0.4)
                stored.copy_(weight.T)
        wanted = rounded(input_ids=ids).hidden[:, -1] @ weights["heads.head"]
    assert torch.equal(rounded.get_parameter(TABLE), table)
    runtime = ArrayRuntime(made.folder)
    found, _ = runtime.step(ids.numpy(), None, runtime.start(3))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=2e-5 * float(wanted.abs().max()))


def test_rounding_for_data_is_nearest_rounding_where_nothing_goes_together() -> None:
    weight, grid = torch.randn(75, 13), Grid(4, 16, symmetric=False)
    found, nearest = round_for(weight, 3.0 * torch.eye(75), grid), round_blocks(weight, grid)
    ours, theirs = (float((each.values(75) - weight).norm()) for each in (found, nearest))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ((found.codes != nearest.codes).sum() <= 3).all()  # halfway between two


@pytest.mark.parametrize(("block", "symmetric"), [(16, True), (64, False), (256, False)])
def test_rounding_for_data_changes_products_with_it_less(block: int, symmetric: bool) -> None:
    weight, grid = torch.randn(300, 19), Grid(4, block, symmetric)
    data = torch.randn(900, 40) @ torch.randn(40, 300) + 0.1 * torch.randn(900, 300)
    data[:, 7] = 0  # what never occurs
    found, nearest = round_for(weight, data.T @ data, grid), round_blocks(weight, grid)
    ours, theirs = (float((data @ (each.values(300) - weight)).norm()) for each in (found, nearest))
    assert ours < 0.6 * theirs


def test_calibrated_codes_are_for_what_the_model_reads_and_a_tied_table_is_stored_once(exported: Export) -> None:
    options = {"block_size": 16, "accuracy_level": 0, "embedding": True, "samples": 4}
    made = exported(quantize=QuantizeSettings(method="gptq", **options))
    graph = onnx.load(made.folder / "model.onnx").graph
    weights = unpacked(graph)
    assert {*made.report.figures[0].quantized} == {*weights, "decoder.embedding"}
    large = [tensor.name for tensor in graph.initializer if 61 in tensor.dims]
    assert sorted(large) == ["heads.head.codes", "heads.head.scales", "heads.head.zeros"]

    rounded, read = copy.deepcopy(made.model), {}
    for name in weights:
        made.model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: read.setdefault(name, []).append(inputs[0].flatten(0, -2))
        )
    ids, grid = torch.randint(61, (2, 17)), Grid(4, 16, symmetric=False)
    with torch.no_grad():
        for prepared in Given(made.model).learned(4):
            made.model(**prepared.inputs)
        for name, weight in weights.items():
            stored = rounded.get_parameter(TABLE) if name == "heads.head" else rounded.get_submodule(name).weight
            if name in read:
                data, exact = torch.cat(read[name]), stored.T
                ours, nearest = (
                    data @ (each - exact) for each in (weight, round_blocks(exact, grid).values(len(exact)))
                )
                assert ours.norm() < 0.95 * nearest.norm(), name
            stored.copy_(weight.T)
        wanted = rounded(input_ids=ids).logits[:, -1].numpy()
    assert {"decoder.layers.1.attention.out", "decoder.layers.0.feedforward.down"} < read.keys()
    runtime = ArrayRuntime(made.folder)
    found, _ = runtime.step(ids.numpy(), None, runtime.start(2))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * float(np.abs(wanted).max()))


def test_what_is_calibrated_needs_data(model: Topology, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"export.quantize: gptq rounds for a run's data: export the folder of a run"):
        export(model, tmp_path / "out", settings=ExportSettings(quantize="gptq"))
    assert not list(tmp_path.iterdir())


def test_no_sum_of_two_int8_products_is_wider_than_16_bits(exported: Export) -> None:
    """Processors without VNNI would cut it off: each product is of a byte, at most 255, and a code."""
    graph = onnx.load(exported(quantize="int8").folder / "model.onnx").graph
    codes = [numpy_helper.to_array(each) for each in graph.initializer if each.data_type == TensorProto.INT8]
    assert codes
    assert all(2 * 255 * int(np.abs(each.astype(np.int64)).max()) <= np.iinfo(np.int16).max for each in codes)


@pytest.mark.parametrize(
    ("settings", "label", "most"),
    [
        ({"quantize": EXACT_PRODUCTS}, "int4", 0.4),
        ({"quantize": "int8"}, "int8", 0.1),
        ({"precision": "fp16", "quantize": "int8_weights"}, "fp16 int8_weights", 0.04),
    ],
    ids=["int4", "int8", "fp16-int8_weights"],
)
def test_the_figures_are_those_of_the_folder(
    exported: Export, model: Topology, settings: dict[str, Any], label: str, most: float
) -> None:
    made = exported(**settings)
    figures, prepared = made.report.figures[0], Given(model).held_out(0)
    ids = prepared.inputs["input_ids"]
    runtime = ArrayRuntime(made.folder)
    state, found = runtime.start(len(ids)), []
    for column in range(ids.shape[1]):
        logits, state = runtime.step(ids[:, column : column + 1].numpy(), None, state)
        found.append(torch.from_numpy(logits.copy()))
    got = torch.stack(found, dim=1)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    assert figures.rms == pytest.approx(float((got - wanted).norm() / wanted.norm()), rel=1e-3)
    assert figures.error == pytest.approx(float((got - wanted).abs().max() / wanted.abs().max()), rel=1e-3)
    assert figures.same == pytest.approx(float((got.argmax(-1) == wanted.argmax(-1)).float().mean()))
    for logits, loss in ((wanted, figures.exact_loss), (got, figures.loss)):
        mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), prepared.targets.flatten())
        assert loss == pytest.approx(float(mean), rel=1e-4)
    kl = torch.nn.functional.kl_div(got.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="sum")
    assert figures.kl == pytest.approx(float(kl) / ids.numel(), rel=2e-2)
    size = sum(path.stat().st_size for path in made.folder.glob("model.onnx*"))
    assert abs(figures.bytes - size) < 0.05 * size  # weights may have been moved to a file of their own
    assert figures.bytes < figures.exact_bytes
    assert figures.rms < most
    said = Manifest.read(made.folder)
    assert said.precision == label
    assert said.figures[0]["loss"] == figures.loss
    assert {row.precision for row in made.report.rows} == {"fp32", label}
    tensors = {name for row in made.report.rows if row.precision == label for name in row.errors}
    assert tensors == {"logits", *said.state}


def test_half_precision_keeps_the_state_as_it_is_declared(exported: Export, model: Topology) -> None:
    made = exported(precision="fp16")
    said = Manifest.read(made.folder)
    halves = {n.rpartition(".")[0] for n, facts in said.state.items() if facts.dtype == "float16"}
    wholes = {n.rpartition(".")[0] for n, facts in said.state.items() if facts.dtype == "float32"}
    assert (halves, wholes) == ({"layers.0.attention"}, {"layers.1.attention"})
    figures = made.report.figures[0]
    assert 1e-5 < figures.rms < 5e-3
    assert figures.exact_bytes - figures.bytes > 1.8 * sum(parameter.numel() for parameter in model.parameters())
    ids = np.random.default_rng(1).integers(61, size=(1, 9))
    runtime = ArrayRuntime(made.folder)
    _, state = runtime.step(ids[:, :5], None, runtime.start(1))
    found, _ = runtime.step(ids[:, 5:], None, state)
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(ids)).logits[:, -1].numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-2 * float(np.abs(wanted).max()))


def test_codes_go_with_half_precision(exported: Export) -> None:
    made = exported(precision="fp16", quantize="int8_weights")
    graph = onnx.load(made.folder / "model.onnx").graph
    scales = [tensor for tensor in graph.initializer if tensor.name.endswith(".scales")]
    assert {tensor.data_type for tensor in scales} == {TensorProto.FLOAT16}


def test_a_graph_that_gives_what_another_remembers_is_quantized(tmp_path: Path) -> None:
    """What the encoder gives of the source is turned on its way out, and read by nothing in its graph."""
    pair = compose(parse_spec(PAIR)).eval()
    report = export(pair, tmp_path / "out", settings=ExportSettings(quantize="int8_weights"))
    quantized = report.figures[0].quantized
    assert {name.partition(".")[0] for name in quantized} == {"encoder", "decoder", "heads"}
    assert report.figures[0].rms < 0.05
    runtime = ArrayRuntime(tmp_path / "out")
    ids = np.random.default_rng(7).integers(23, size=(2, 6))
    writer = runtime.read(ids)
    found, _ = writer.step(ids[:, :1], None, writer.start(2))
    with torch.no_grad():
        wanted = pair(input_ids=torch.from_numpy(ids), decoder_input_ids=torch.from_numpy(ids[:, :1])).logits[:, -1]
    assert float((torch.from_numpy(found) - wanted).norm()) < 0.05 * float(wanted.norm())


def test_what_has_no_kernels_is_refused_before_anything_is_made(model: Topology, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"export.precision: bf16: CPUExecutionProvider has no kernels .* use fp32"):
        export(model, tmp_path / "out", settings=ExportSettings(precision="bf16"))
    assert not list(tmp_path.iterdir())


def test_a_pattern_that_leaves_nothing_out_is_refused(model: Topology, tmp_path: Path) -> None:
    settings = ExportSettings(quantize=QuantizeSettings(method="int4", leave_out=("decoder.layers.1.attention.aut",)))
    with pytest.raises(ExportError, match=r"no module with a matrix .*; the nearest is decoder.layers.1.attention.out"):
        export(model, tmp_path / "out", settings=settings)
    assert not list(tmp_path.iterdir())


def test_near_ties_are_told_from_other_choices() -> None:
    exact = np.array([[3.0, 2.9, 0.0], [3.0, 1.0, 0.0], [3.0, 1.0, 2.0], [0.5, 1.0, 0.9]], dtype=np.float32)
    other = np.array([[2.9, 3.0, 0.0], [1.0, 3.0, 0.0], [3.1, 1.0, 2.0], [0.5, 1.0, 0.9]], dtype=np.float32)
    found = choices(exact, other, noise=0.2)
    assert (found["same"], found["ambiguous"]) == (0.5, 0.25)
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(-1, keepdims=True) for x in (exact, other))
    assert found["kl"] == pytest.approx(float((p * np.log(p / q)).sum(-1).mean()))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("quantize: int5", "export.quantize: should be none, int8, int8_weights, int4 or gptq or a map"),
        ("quantize: {method: int3}", "export.quantize.method: should be int8, int8_weights, int4 or gptq"),
        ("quantize: {method: int4, block_size: 24}", "export.quantize.block_size: must be one of 16, 32, 64"),
        ("quantize: {method: int8, block_size: 32}", "export.quantize.block_size: must be left out: int8 takes none"),
        ("quantize: {method: int4, blocksize: 32}", "unknown option 'blocksize' (did you mean 'block_size'?)"),
        ("quantize: {method: gptq, samples: 0}", "export.quantize.samples: must be at least 1"),
        ("{quantize: int8, precision: fp16}", "export.precision: must be fp32 where quantize is int8"),
        ("{quantize: int4, target: onnx}", "export.quantize: must be none where target is onnx"),
    ],
)
def test_what_a_method_does_not_take_is_located(said: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(MODEL + f"export: {said if said[0] == '{' else '{' + said + '}'}\n")
    assert message in str(caught.value)


def test_a_spec_says_the_same_when_it_is_read_again() -> None:
    first = parse_spec(MODEL + "export: {quantize: {method: int4, block_size: 64, leave_out: ['heads.*']}}\n")
    again = parse_spec(MODEL + "export: {quantize: int8_weights}\n")
    assert first.export.quantization == QuantizeSettings(method="int4", block_size=64, leave_out=("heads.*",))
    for spec in (first, again):
        assert parse_spec({**spec.resolved}).export == spec.export  # type: ignore[arg-type]
