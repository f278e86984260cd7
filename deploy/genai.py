"""What onnxruntime-genai takes to run an exported decoder: its config, and a graph that keeps its state as it can."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .manifest import MASK, Dims, GraphFacts, Manifest, StateFacts

RUNNER = "onnxruntime-genai"
CONFIG, GRAPH = "genai_config.json", "genai.onnx"
IDS = "input_ids"
PAST, PRESENT = "past_key_values.%d.", "present.%d."
PAD = 1024  # bytes from which weights stand in the file that both graphs read


@dataclass(frozen=True)
class _Layer:
    """Hold what one layer remembers: what has slots, and what stays of one size."""

    slots: Mapping[str, StateFacts]
    fixed: Mapping[str, StateFacts]

    @property
    def size(self) -> int:
        """Return how many numbers a row's fixed state has; one more where it does not begin as zeros."""
        return sum(map(_size, self.fixed.values())) + self.marked

    @property
    def marked(self) -> bool:
        """Say whether a mark is kept of a row that has begun: the other runner begins with zeros."""
        return any(facts.fill != 0 for facts in self.fixed.values())


def write_genai(folder: Path, manifest: Manifest) -> str:
    """Write what onnxruntime-genai takes beside the graphs; return "", or why it can't hold the model.

    Its graph is the folder's own where that keeps keys and values as it does; else one with another way in and out,
    which reads the same weights.
    """
    why = _refused(manifest)
    if why:
        return why
    (graph,) = manifest.graphs.values()
    layers = _layers(manifest.state)
    file, templates = graph.file, _templates(layers)
    if templates is None:
        _write_graph(folder, graph, layers)
        file, templates = GRAPH, (f"{PAST}key", f"{PAST}value", f"{PRESENT}key", f"{PRESENT}value")
    text = json.dumps(_config(manifest, layers, file, templates), indent=1, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return ""


def _refused(manifest: Manifest) -> str:
    """Return why onnxruntime-genai can't run the model; "" where it can."""
    if not manifest.generates or len(manifest.graphs) != 1:
        return "it runs models of one graph that gives the next token"
    (graph,) = manifest.graphs.values()
    if len(graph.outputs["logits"].dims) != 3:
        return "the head answers once a text, and not with the next token"
    if set(graph.inputs) != {IDS, MASK}:
        return f"the graph takes {', '.join(graph.inputs)}; it gives {IDS} and {MASK}, both"
    for name, facts in manifest.state.items():
        if _place(name) is None or facts.grows not in ("slots", "ring", "fixed"):
            return f"the model keeps {name}, which is no layer's alone"
        if facts.dtype not in ("float32", "float16"):
            return f"the model keeps {name} as {facts.dtype}; it keeps floats"
    for index, layer in _layers(manifest.state).items():
        if len(layer.slots) > 2 or len({_held(facts) for facts in layer.slots.values()}) > 1:
            return f"layer {index} keeps {', '.join(layer.slots)} of each token; it keeps two tensors of one shape"
    return ""


def _place(name: str) -> tuple[int, str] | None:
    """Return the layer that a state's name is of, and the rest of the name."""
    found = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    return None if found is None else (int(found[1]), found[2])


def _layers(state: Mapping[str, StateFacts]) -> dict[int, _Layer]:
    """Return what each layer remembers."""
    placed = {name: place[0] for name in state if (place := _place(name)) is not None}
    return {
        index: _Layer(
            {n: f for n, f in state.items() if placed.get(n) == index and f.grows == "slots"},
            {n: f for n, f in state.items() if placed.get(n) == index and f.grows != "slots"},
        )
        for index in sorted(set(placed.values()))
    }


def _size(facts: StateFacts) -> int:
    return math.prod(int(size) for size in facts.dims[1:])


def _held(facts: StateFacts) -> tuple[Dims, str]:
    """Return the dimensions (batch, heads, past, size) as which something with slots is held, and its dtype."""
    if len(facts.dims) == 4 and facts.dims[2] == "past":
        return facts.dims, facts.dtype
    place = facts.dims.index("past")
    before, after = (math.prod(int(size) for size in part) for part in (facts.dims[1:place], facts.dims[place + 1 :]))
    return ("batch", before, "past", after), facts.dtype


def _templates(layers: Mapping[int, _Layer]) -> tuple[str, str, str, str] | None:
    """Return the names of past keys and values and of present ones, as the folder's own graph has them.

    None where they are not one pair alike in each layer, or a layer keeps something else.
    """
    found = set()
    for index, layer in layers.items():
        if layer.fixed or len(layer.slots) != 2 or any(_held(f)[0] != f.dims for f in layer.slots.values()):
            return None
        pair = list(layer.slots.values())
        names = (*(facts.input for facts in pair), *(facts.output for facts in pair))
        found.add(tuple(name.replace(f"layers.{index}.", "layers.%d.", 1) for name in names))
    one = next(iter(found), None)
    return one if len(found) == 1 else None  # type: ignore[return-value]


def _config(manifest: Manifest, layers: Mapping[int, _Layer], file: str, names: Sequence[str]) -> dict[str, Any]:
    (graph,) = manifest.graphs.values()
    shapes = [_held(facts)[0] for layer in layers.values() for facts in layer.slots.values()]
    heads, size = (int(shapes[0][1]), int(shapes[0][3])) if shapes else (1, 1)
    # A text that crosses an edge is turned otherwise from its beginning, which no state can follow.
    context = min([manifest.max_seq_len, *manifest.edges])
    special = manifest.special_ids
    ends = [special["eos"], *manifest.stop_ids] if "eos" in special else []
    decoder = {
        "filename": file,
        "num_hidden_layers": 1 + max(layers, default=0),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_size": size,
        "hidden_size": heads * size,
        "session_options": {"log_id": RUNNER, "provider_options": []},
        "inputs": {IDS: IDS, MASK: MASK, "past_key_names": names[0], "past_value_names": names[1]},
        "outputs": {"logits": "logits", "present_key_names": names[2], "present_value_names": names[3]},
    }
    model = {
        "type": "decoder",
        "context_length": context,
        "vocab_size": int(graph.outputs["logits"].dims[-1]),
        # It wants a token that ends a text; without a tokenizer nothing says which.
        "bos_token_id": special.get("bos", 0),
        "eos_token_id": ends or [0],
        "pad_token_id": special.get("pad", special.get("eos", 0)),
        "decoder": decoder,
    }
    search = {"max_length": context, "do_sample": False, "past_present_share_buffer": True}
    return {"model": model, "search": search}


# -- a graph with another way in and out ------------------------------------------------------------------------------


def _write_graph(folder: Path, facts: GraphFacts, layers: Mapping[int, _Layer]) -> None:
    """Write a graph whose state has the names and shapes that the other runner knows; weights are shared."""
    path = folder / facts.file
    data = f"{facts.file}.data"
    if not (folder / data).exists():
        ir.save(ir.load(path), path, external_data=data, size_threshold_bytes=PAD)
    model = ir.load(path)
    ways = _Ways(model.graph)
    widest = max((layer.size for layer in layers.values()), default=0)
    for index, layer in layers.items():
        ways.keep_slots(index, list(layer.slots.values()))
        if layer.fixed:
            ways.keep_fixed(index, layer, widest)
    ways.settle()
    ir.save(model, folder / GRAPH)


class _Ways:
    """Change how a graph takes its state and gives it."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._first: list[ir.Node] = []
        self._last: list[ir.Node] = []
        self._inputs = {str(value.name): value for value in graph.inputs}
        self._outputs = {str(value.name): value for value in graph.outputs}

    def keep_slots(self, index: int, tensors: Sequence[StateFacts]) -> None:
        """Take what has slots as keys and values; beside a single tensor an idle one is handed on."""
        for role, facts in zip(("key", "value"), tensors, strict=False):
            past, present = self._inputs[facts.input], self._outputs[facts.output]
            dims, _ = _held(facts)
            if dims == facts.dims:
                past.name, present.name = PAST % index + role, PRESENT % index + role
                continue
            taken = self._input(PAST % index + role, dims, past.dtype)
            where = facts.dims.index("past")
            shape = [0 if place == 0 else -1 if place == where else int(d) for place, d in enumerate(facts.dims)]
            self._replace(past, self._op("Reshape", taken, shape, first=True))
            given = self._op("Reshape", present, [0, int(dims[1]), -1, int(dims[3])])
            self._give(present, given, PRESENT % index + role, dims)
        if len(tensors) == 1:
            dims, _ = _held(tensors[0])
            idle = self._input(f"{PAST % index}value", dims, self._inputs[tensors[0].input].dtype)
            self._add(self._op("Identity", idle), f"{PRESENT % index}value", dims)

    def keep_fixed(self, index: int, layer: _Layer, widest: int) -> None:
        """Take all that stays of one size in one row of numbers, as long as that of the layer which has most."""
        dims: Dims = ("batch", 1, 1, widest)
        row = self._input(f"{PAST % index}recurrent_state", dims, ir.DataType.FLOAT)
        begun = self._part(row, widest - 1, widest) if layer.marked else None
        start, parts = 0, []
        for facts in layer.fixed.values():
            past, present = self._inputs[facts.input], self._outputs[facts.output]
            part = self._part(row, start, start + _size(facts))
            start += _size(facts)
            self._replace(past, self._unpacked(part, facts, past, begun))
            flat = self._op("Cast", present, to=ir.DataType.FLOAT) if facts.dtype != "float32" else present
            parts.append(self._op("Reshape", flat, [0, 1, 1, _size(facts)]))
            self._graph.outputs.remove(present)
        spare = widest - start - (begun is not None)
        if spare or begun is not None:
            parts.append(self._spare(row, spare, begun is not None))
        self._add(self._op("Concat", *parts, axis=3), f"{PRESENT % index}recurrent_state", dims)
        # The other runner finds such layers by a state of a convolution, so there is one, idle.
        idle = self._input(f"{PAST % index}conv_state", ("batch", 1, 1), ir.DataType.FLOAT)
        self._add(self._op("Identity", idle), f"{PRESENT % index}conv_state", ("batch", 1, 1))

    def _unpacked(self, part: ir.Value, facts: StateFacts, past: ir.Value, begun: ir.Value | None) -> ir.Value:
        """Return a tensor of the state out of its part of the row."""
        value = self._op("Reshape", part, [0, *map(int, facts.dims[1:])], first=True)
        if facts.dtype != "float32":
            value = self._op("Cast", value, to=past.dtype, first=True)
        if facts.fill != 0:
            assert begun is not None
            flags = self._op("Reshape", begun, [0, *[1] * (len(facts.dims) - 1)], first=True)
            yes = self._op("Greater", flags, np.zeros((), dtype=np.float32), first=True)
            value = self._op("Where", yes, value, np.array(facts.fill, dtype=facts.dtype), first=True)
        return value

    def _spare(self, row: ir.Value, spare: int, marked: bool) -> ir.Value:
        """Return what stands behind a row's numbers: zeros, and at the end a mark that it has begun."""
        nothing = self._op("Mul", self._part(row, 0, 1, first=False), np.zeros((), dtype=np.float32))
        ends = np.array([0.0] * spare + [1.0] * marked, dtype=np.float32)
        return self._op("Add", nothing, ends)

    def _part(self, row: ir.Value, start: int, end: int, first: bool = True) -> ir.Value:
        return self._op("Slice", row, [start], [end], [3], first=first)

    def _op(
        self, kind: str, *inputs: ir.Value | np.ndarray[Any, Any] | list[int], first: bool = False, **said: Any
    ) -> ir.Value:
        """Add an operator to the way in or out, and return what it gives."""
        nodes = self._first if first else self._last
        values = [each if isinstance(each, ir.Value) else self._constant(nodes, each) for each in inputs]
        said = {name: ir.Attr(name, ir.AttributeType.INT, int(value)) for name, value in said.items()}
        nodes.append(ir.Node("", kind, values, list(said.values()), num_outputs=1))
        return self._named(nodes[-1])

    def _constant(self, nodes: list[ir.Node], value: np.ndarray[Any, Any] | list[int]) -> ir.Value:
        tensor = ir.tensor(value if isinstance(value, np.ndarray) else np.array(value, dtype=np.int64))
        attribute = ir.Attr("value", ir.AttributeType.TENSOR, tensor)
        nodes.append(ir.Node("", "Constant", [], [attribute], num_outputs=1))
        return self._named(nodes[-1])

    def _named(self, node: ir.Node) -> ir.Value:
        value = node.outputs[0]
        value.name = f"genai.{len(self._first) + len(self._last)}"
        return value

    def _input(self, name: str, dims: Dims, dtype: ir.DataType | None) -> ir.Value:
        assert dtype is not None
        value = ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))
        self._graph.inputs.append(value)
        return value

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        ir.convenience.replace_all_uses_with(old, new)
        self._graph.inputs.remove(old)

    def _give(self, old: ir.Value, new: ir.Value, name: str, dims: Dims) -> None:
        self._graph.outputs.remove(old)
        self._add(new, name, dims)

    def _add(self, value: ir.Value, name: str, dims: Dims) -> None:
        value.name, value.shape = name, ir.Shape(dims)
        source = value.producer()
        assert source is not None
        value.type = ir.TensorType(self._kind(source))
        self._graph.outputs.append(value)

    def _kind(self, node: ir.Node) -> ir.DataType:
        """Return the dtype that goes through an operator of the way out."""
        given = node.inputs[0]
        return given.dtype if given is not None and given.dtype is not None else ir.DataType.FLOAT

    def settle(self) -> None:
        """Put the operators of the way in first, and those of the way out last."""
        nodes = iter(self._graph)
        head = next(nodes, None)
        if head is None:
            self._graph.extend(self._first)
        else:
            self._graph.insert_before(head, self._first)
        self._graph.extend(self._last)
