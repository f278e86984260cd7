"""Turn one declared function of a model into an ONNX file."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18
from torch import Tensor, nn

from ..core.state import BATCH, MEMORY, PAST, Remembered
from ..core.topology import Graph, Topology
from ..errors import ExportError, TransomError
from ..registry.settings import ExportSettings
from .folding import folded, unfold
from .manifest import TOTAL, Dims, GraphFacts, StateFacts, TensorFacts
from .operators import shorten
from .passes import tidied
from .simplify import simplify
from .translator import quiet, translating

IR_VERSION = 10  # torch and onnx write newer ones than runtimes read
EXTERNAL = 100_000_000  # bytes of weights above which they stand in a file of their own, NAME.onnx.data
# Lengths of the example: distinct primes, so that none equals another, and so long that no number of chunks is 0 or
# 1, which torch would take for a constant.
SIZES = {BATCH: 3, "sequence": 263, PAST: 131, MEMORY: 197, TOTAL: 311}
DTYPES = {"int64": "int64", "float": "float32"}
# Operators that take more than one token behind a past from a single row alone.
ROWS_ALONE = {("com.microsoft", "GroupQueryAttention")}
op: Any = opset18  # of typed tensors; the translator passes its own


def write_graph(
    model: Topology,
    name: str,
    graph: Graph,
    folder: Path,
    settings: ExportSettings,
    dtype: torch.dtype = torch.float32,
) -> GraphFacts:
    """Write `NAME.onnx`, weights included, and return what it takes and gives. The model is on CPU, in eval mode.

    `dtype`: the model's. What the graph takes and gives besides its state is fp32 in any case.

    Raises:
        ExportError: torch can't translate the model, or a dimension that is declared to vary came out fixed.
    """
    states = state_facts(graph, dtype)
    inputs = {n: TensorFacts(put.dims, DTYPES[put.dtype], put.high, put.optional) for n, put in graph.inputs.items()}
    takes = {states[n].input: TensorFacts(states[n].dims, states[n].dtype) for n in graph.takes}
    outputs = {**graph.outputs, **{states[n].output: _grown(states[n]) for n in graph.gives}}
    dims = {n: facts.dims for n, facts in {**inputs, **takes}.items()}
    function = _Function(model, graph, dtype, list(dims.values()))
    translated = _translate(function, {**inputs, **takes}, list(outputs), name, settings.opset)
    _name_dims(translated.model.graph, name, {**dims, **outputs})
    with quiet():
        tidied(translated.model, settings.target)
    _store_once(translated.model.graph)
    _tidy(translated.model)
    save(translated.model, folder / f"{name}.onnx")
    found = {value.name: value for value in translated.model.graph.outputs}
    gives = {n: TensorFacts(_dims(found[n]), _dtype(found[n])) for n in graph.outputs}
    alone = any((node.domain, node.op_type) in ROWS_ALONE for node in translated.model.graph)
    return GraphFacts(f"{name}.onnx", inputs, gives, tuple(graph.takes), tuple(graph.gives), alone)


def save(model: ir.Model, path: Path) -> None:
    """Write a graph, with its weights in a file beside it, `NAME.onnx.data`, where they are many."""
    weight = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.Tensor):
            value.const_value = _in_order(value.const_value)
    if weight > EXTERNAL:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(ir.external_data.load_to_model(model), path)  # what was read from elsewhere comes in too


def _in_order(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor that is put in order when it is written, one at a time, where it lies turned in memory.

    numpy writes what lies turned number by number, which takes ten times as long.
    """
    array = tensor.numpy()
    if array.flags.c_contiguous:
        return tensor
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(array), tensor.dtype, name=tensor.name),
        tensor.dtype,
        shape=ir.Shape(array.shape),
        name=tensor.name,
    )


def state_facts(graph: Graph, dtype: torch.dtype = torch.float32) -> dict[str, StateFacts]:
    """Return how the state of a graph of a dtype appears in it: `past.NAME` goes in, `present.NAME` comes out."""
    declared: dict[str, Remembered] = {**graph.takes, **graph.gives}
    return {
        name: StateFacts(
            input=f"past.{name}",
            output=f"present.{name}",
            dims=rule.dims,
            dtype=str(rule.torch_dtype(dtype)).removeprefix("torch."),
            grows="slots" if rule.grows == "append" and graph.slots else rule.grows,
            fill=rule.fill,
        )
        for name, rule in declared.items()
    }


class _Function(nn.Module):
    """Be a graph's function over positional tensors, of these `dims`: its inputs, then the state that it takes."""

    def __init__(self, model: Topology, graph: Graph, dtype: torch.dtype, dims: Sequence[Dims]) -> None:
        super().__init__()
        self.model = model
        self.graph = graph
        self.dtype = dtype
        self.dims = dims

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        graph, count = self.graph, len(self.graph.inputs)
        sizes: dict[str, int] = {}
        for tensor, dims in zip(tensors, self.dims, strict=True):
            for size, dim in zip(tensor.shape, dims, strict=True):
                if isinstance(dim, str):  # else a tracer learns only at the end that they are one length
                    torch._check(size == sizes.setdefault(dim, size))
        given = [tensor.to(self.dtype) if tensor.is_floating_point() else tensor for tensor in tensors[:count]]
        outputs, state = graph.run(
            dict(zip(graph.inputs, given, strict=True)), dict(zip(graph.takes, tensors[count:], strict=True))
        )
        return (*(outputs[name].float() for name in graph.outputs), *(state[name] for name in graph.gives))


def _translate(
    function: _Function, inputs: Mapping[str, TensorFacts], outputs: Sequence[str], name: str, opset: int
) -> torch.onnx.ONNXProgram:
    sizes = {d: SIZES[d] for facts in inputs.values() for d in facts.dims if isinstance(d, str)}
    symbols = {d: torch.export.Dim(d) for d in sizes}
    example = tuple(
        torch.zeros([sizes[d] if isinstance(d, str) else d for d in facts.dims], dtype=getattr(torch, facts.dtype))
        for facts in inputs.values()
    )
    varying = tuple({i: symbols[d] for i, d in enumerate(t.dims) if isinstance(d, str)} for t in inputs.values())
    try:
        with translating(), torch.no_grad(), folded(function) as folds:
            # Guards that hold for some lengths only (a padded length that differs from the length) must not fix them.
            program = torch.export.export(
                function,
                example,
                dynamic_shapes={"tensors": varying},
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            shorten(program)
            translated = torch.onnx.export(
                program,
                opset_version=opset,
                input_names=list(inputs),
                output_names=outputs,
                custom_translation_table={torch.ops.aten.remainder.Scalar: _remainder},
                optimize=False,
                verbose=False,
            )
            assert translated is not None
            unfold(folds, translated.model.graph)
            simplify(translated.model)
    except Exception as error:  # whatever a component, the tracer or the translator makes of it
        raise ExportError(f"graph {name!r} can't be exported: {_why(error)}") from error
    return translated


def _remainder(self: ir.Value, other: float | ir.Value) -> Any:
    """Translate `x % n` where n is a length too; torch's own translation takes numbers alone."""
    divisor = op.CastLike(other, self)
    if self.dtype is not None and self.dtype.is_integer():
        return op.Mod(self, divisor)
    return op.Sub(self, op.Mul(divisor, op.Floor(op.Div(self, divisor))))


def _why(error: BaseException) -> str:
    """Return what went wrong at the bottom, and what it was met in, without torch's advice to its own developers."""
    fixed = re.search(r"Constraints violated \((.+?)\)", str(error))
    if fixed:
        return f"dimension {fixed[1]} must take any length, but some part of the model fits some lengths only"
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    said = [str(each) for each in chain if isinstance(each, TransomError)]
    if said:
        return said[-1]
    return ", in ".join(f"{type(e).__name__}: {str(e).strip().partition(chr(10))[0]:.300}" for e in chain[:-3:-1])


def _name_dims(graph: ir.Graph, name: str, declared: Mapping[str, Dims]) -> None:
    """Give dimensions their declared names, and check that none that should vary was fixed on the way."""
    # A name that no input has is a width (vocab): it varies between models, not between calls.
    varying = {d for value in graph.inputs for d in declared[str(value.name)] if isinstance(d, str)} | {TOTAL}
    names: dict[str, str] = {}
    for value in (*graph.inputs, *graph.outputs):
        for now, said in zip(_dims(value), declared[str(value.name)], strict=True):
            if said not in varying:
                continue
            if isinstance(now, int):
                raise ExportError(
                    f"graph {name!r}: {value.name}: dimension {said} must vary, but came out as {now}: some part of "
                    "the model makes a number of it"
                )
            names.setdefault(now, str(said))

    def renamed(dim: str | int) -> str | int:
        if isinstance(dim, int) or dim in names:
            return dim if isinstance(dim, int) else names[dim]
        return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim)

    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([renamed(dim) for dim in _dims(value)])


def _dims(value: ir.Value) -> Dims:
    assert value.shape is not None
    return tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return value.dtype.numpy().name


def _grown(facts: StateFacts) -> Dims:
    return tuple(TOTAL if d == PAST and facts.grows == "append" else d for d in facts.dims)


def _store_once(graph: ir.Graph) -> None:
    """Make a table that is stored turned too, because a head reads what an embedding does, of the one beside it."""
    tables = {
        n: v.const_value for n, v in graph.initializers.items() if v.const_value and len(v.const_value.shape) == 2
    }
    for name, table in tables.items():
        if not name.startswith("val_"):  # a constant that the translator made
            continue
        turned = table.numpy().T
        same = (n for n, other in tables.items() if other.shape.numpy() == turned.shape and n != name)
        source = next((n for n in same if np.array_equal(tables[n].numpy(), turned)), None)
        if source is not None and graph.initializers[source].uses():
            made = ir.node("Transpose", [graph.initializers[source]], {"perm": [1, 0]})
            graph.insert_before(graph[0], made)
            graph.initializers[name].replace_all_uses_with(made.outputs[0])
            del graph.initializers[name]


def _tidy(model: ir.Model) -> None:
    """Leave out what tells of the machine and of the code that it was made with."""
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    taken: dict[str, int] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.name = _node_name(node, taken)
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _node_name(node: ir.Node, taken: dict[str, int]) -> str:
    """Name a node after the module that it is of and what it does, so that it can be told from others."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    # The last one is the node's own; the first are the function's, and its `model`'s.
    modules = [scope for scope in scopes[:-1] if scope.startswith("model.")]
    module = modules[-1].removeprefix("model.") if modules else ""
    name = f"{module}/{node.op_type}"
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}_{taken[name]}"
