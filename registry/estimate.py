"""Figures of a spec's model that take no weights to find: parameters, FLOPs, state, and memory of a training step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from ..core.data import DataConfig, ImageField, LabelField, TextField
from ..core.head import Head
from ..core.objective import Objective, Prepared
from ..core.stack import Stack
from ..core.topology import Topology
from ..core.vocabulary import Vocabulary
from ..errors import DataError, SpecError, TransomError
from .check import asked_heads
from .compose import build_data, build_objective, stand_ins
from .marks import BrokenSpec
from .meter import CpuKernels, Meter
from .spec import Spec
from .timeline import Segment, Timeline, inputs_of, meta, most_alive

LOW = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16, "float8": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Training:
    """Hold what a step costs: FLOPs and peak bytes, of which `held` are weights, gradients and AdamW's moments.

    All of one process. `checkpointed`: by stack, how many layers, the first ones, compute their activations twice.
    """

    processes: int
    rows: int
    flops: int
    peak: int
    held: int
    checkpointed: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Hold the figures of a model.

    `parameters`: shared ones counted once. `weights`: their bytes, buffers included. `tokens`: of the row that the
    other figures are for. `forward`: FLOPs of a forward pass over it for each token. `state`: bytes that one row's
    state has after `max_seq_len` tokens, `grows` how. `training`: None where the spec can't be trained. `notes`: why
    not, or why that takes more than it might.
    """

    parameters: int
    weights: int
    tokens: int
    forward: float
    state: int
    grows: tuple[str, ...]
    training: Training | None
    notes: tuple[str, ...] = ()


def estimate(spec: Spec, model: Topology, processes: int = 1) -> Estimate:
    """Estimate from the outline of a spec's model, which so many processes train: of a step, what one of them does."""
    whole = _Whole(share_of(spec, processes), model, processes)
    tokens, forward = whole.forward()
    training, notes = None, list[str]()
    if spec.objective is not None and spec.data is not None:
        try:
            training = whole.training(notes)
        except TransomError as error:
            notes.append(f"no estimate of training: {error}")
    state, grows = whole.state()
    return Estimate(
        parameters=whole.parameters,
        weights=whole.weights,
        tokens=tokens,
        forward=forward,
        state=state,
        grows=grows,
        training=training,
        notes=tuple(notes),
    )


def share_of(spec: Spec, processes: int) -> Spec:
    """Return a spec of the rows that one of some processes takes.

    Raises:
        SpecError: they can't be shared evenly.
    """
    rows = spec.train.batch_size
    if rows % processes:
        message = f"{rows} rows can't be shared evenly by {processes} processes"
        raise BrokenSpec([spec.problem("train.batch_size", message)])
    return replace(spec, train=replace(spec.train, batch_size=rows // processes))


def parameters_of(module: nn.Module) -> int:
    """Return how many parameters a module has, shared ones counted once."""
    return sum(p.numel() for p in module.parameters())


def _learned(module: nn.Module) -> int:
    return _bytes(p for p in module.parameters() if p.requires_grad)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class _Whole:
    """Reckon a whole model from its outline."""

    def __init__(self, spec: Spec, model: Topology, processes: int) -> None:
        self.spec = spec
        self.processes = processes
        self.shares = processes if spec.train.shard else 1
        self.model = model
        self.layers: dict[str, list[int]] = {}
        self.first: dict[str, list[int]] = {}
        for name, stack in spec.model.stacks.items():
            places = stand_ins(stack.layers)
            self.first[name] = sorted(set(places))
            self.layers[name] = [self.first[name].index(place) for place in places]
        self.parameters = self._times(parameters_of)
        self.weights = self._times(lambda m: _bytes(m.parameters()) + _bytes(m.buffers()))

    def stack(self, name: str) -> Stack:
        """Return an outlined stack."""
        return cast(Stack, getattr(self.model, name))

    def _times(self, measure: Callable[[nn.Module], int]) -> int:
        """Return a figure of the whole model that is a sum over its parts."""
        blocks = {name: [measure(block) for block in self.stack(name).blocks] for name in self.layers}
        repeated = sum(sum(blocks[name][i] for i in places) - sum(blocks[name]) for name, places in self.layers.items())
        return measure(self.model) + repeated

    def forward(self) -> tuple[int, float]:
        """Return the tokens of a row, and the FLOPs that a forward pass takes for each."""
        longest = self.spec.model.max_seq_len
        length = longest if self.spec.data is None else min(self.spec.data.config.seq_len or longest, longest)
        meter = Meter()
        with CpuKernels(meter), meter, torch.no_grad():
            inputs = inputs_of(self.model, 1, length)
            with Timeline(self.model, list(self.layers), meter) as line:
                hidden = self.model(**inputs).hidden
        tokens = hidden.shape[1]
        return tokens, most_alive(line.whole(self.layers))[1] / tokens

    def training(self, notes: list[str]) -> Training:
        """Return what a training step costs; note what makes it cost more than it might.

        With `memory_gb` as few layers compute their activations twice as that takes: what lies between none and all
        follows from both by a straight line, which is a layer's activations too high at the most.

        Raises:
            TransomError: the model can't read what the data gives.
        """
        settings = self.spec.train
        if settings.memory_gb is None:
            return self._step(settings.checkpoint_activations, notes)
        most, plain = settings.memory_gb * 1e9, self._step(False, notes)
        if plain.peak <= most:
            return plain
        spared = self._step(True, [])
        share = min((plain.peak - most) / max(plain.peak - spared.peak, 1), 1.0)
        layers = {name: math.ceil(share * count) for name, count in spared.checkpointed.items()}
        share = min(layers[name] / count for name, count in spared.checkpointed.items())
        return replace(
            plain,
            flops=plain.flops + round(share * (spared.flops - plain.flops)),
            peak=plain.peak + round(share * (spared.peak - plain.peak)),
            checkpointed=layers,
        )

    def _step(self, twice: bool, notes: list[str]) -> Training:
        """Return what a training step costs where all layers compute their activations twice, or none."""
        settings = self.spec.train
        objective, prepared = longest_batch(self.spec, self.model)
        mask = None if prepared.mask is None else prepared.mask.to("meta")
        prepared = Prepared(meta(prepared.inputs), prepared.targets.to("meta"), mask, meta(prepared.others))
        self._freeze()
        if not any(p.requires_grad for p in self.model.parameters()):
            raise SpecError("every parameter is frozen")
        layers = {name: len(places) if twice else 0 for name, places in self.layers.items()}
        for name in self.layers:
            self.stack(name).checkpointed = layers[name]
        segments: list[Segment] = []
        # Where a step has several micro batches, all but the first find gradients to add to. Whole ones are passed on
        # where processes have shares of them.
        for _ in range(2 if settings.accumulate > 1 or self.shares > 1 else 1):
            meter = Meter()
            with CpuKernels(meter, LOW[settings.precision]) as kernels, meter:
                with Timeline(self.model, list(self.layers), meter) as line:
                    loss = _loss(self.model, objective, prepared)
                    kernels.forget()
                    line.backward(loss)
                del loss
            segments = list(line.whole(self.layers))
        notes += [f"scores of attention are formed in full: {why}" for why in kernels.formed]
        peak, flops = most_alive(segments)
        learned = self._times(_learned)
        held = self.weights + 3 * learned
        batch = _bytes([*prepared.inputs.values(), prepared.targets, *prepared.others.values()])
        before = held if settings.accumulate > 1 else held - learned
        if self.shares > 1:
            held, before = self._shared(held)
        return Training(
            processes=self.processes,
            rows=settings.batch_size,
            flops=flops * settings.accumulate,
            peak=max(before + batch + peak, held),
            held=held,
            checkpointed=layers,
        )

    def _shared(self, held: int) -> tuple[int, int]:
        """Return what a process holds of the bytes that are to be held, and that with what it gathers for a while.

        That is all but the layers, weights and gradients, and two layers: one runs, and the next is on its way or was
        just there.
        """
        own = math.ceil(held / self.shares)
        blocks = [self._whole(block) for name in self.layers for block in self.stack(name).blocks]
        outside = self._whole(self.model) - sum(blocks)
        return own, own + outside + 2 * max(blocks, default=0)

    @staticmethod
    def _whole(module: nn.Module) -> int:
        return _bytes(module.parameters()) + _learned(module)

    def _freeze(self) -> None:
        """Take from learning what training takes from it, by the names that parameters have in the whole model."""
        for name, parameter in self.model.named_parameters():
            stack, _, rest = name.partition(".layers.")
            if rest and stack in self.first:
                index, _, rest = rest.partition(".")
                name = f"{stack}.layers.{self.first[stack][int(index)]}.{rest}"
            parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in self.spec.train.freeze))
        for name, head in self.model.heads.items():
            if name not in asked_heads(self.spec):
                head.requires_grad_(False)

    def state(self) -> tuple[int, tuple[str, ...]]:
        """Return the bytes of one row's state after `max_seq_len` tokens, and how it grows."""
        kept = {id(rule) for rule in self.model.declared().values()}
        total, grows = 0, dict[str, None]()
        for name, layers in self.layers.items():
            for key, rule in self.stack(name).declared().items():
                if id(rule) not in kept:
                    continue
                head, _, rest = key.partition(".")
                times = layers.count(int(rest.partition(".")[0])) if head == "layers" else 1
                total += times * rule.nbytes(1, self.spec.model.max_seq_len)
                if head == "layers":
                    grows[rule.grows] = None
        return total, tuple(grows)


def longest_batch(spec: Spec, model: Topology) -> tuple[Objective, Prepared]:
    """Return a spec's objective, and a micro batch on CPU as large as training sees, texts at their longest.

    Raises:
        TransomError: the spec has no objective or data, or these do not fit each other.
    """
    data = build_data(spec)
    options: DataConfig = data.config
    vocabulary = None if options.tokenizer is None else Vocabulary(options.tokenizer.vocab_size, 0, 0, 0, 0)
    objective = build_objective(spec, vocabulary)
    rows, length, most = spec.train.batch_size, options.seq_len or 1, spec.model.max_seq_len
    if length > most:
        raise DataError(f"{spec.where('data.seq_len')}: data.seq_len: {length} is more than max_seq_len, {most}")
    declared = inputs_of(model, rows, length)
    batch: dict[str, Tensor] = {}
    for field in data.fields.values():
        match field:
            case TextField() if data.rows == "stream":
                batch[field.ids] = torch.zeros(rows, length + objective.lookahead, dtype=torch.int64)
            case TextField():
                batch[field.ids] = torch.zeros(rows, length, dtype=torch.int64)
                batch[field.mask] = torch.ones(rows, length, dtype=torch.int64)
            case ImageField() if field.values in declared:
                batch[field.values] = torch.zeros(()).expand(declared[field.values].shape)
            case LabelField():
                batch[field.labels] = torch.zeros(rows, dtype=torch.int64)
    if missing := objective.fields - batch.keys():
        raise DataError(f"{spec.where('data')}: data: gives no {', '.join(sorted(missing))}")
    return objective, objective.prepare(batch, torch.Generator().manual_seed(0))


def _loss(model: Topology, objective: Objective, prepared: Prepared) -> Tensor:
    """Return the loss of a batch, keeping nothing else alive."""
    asked = objective.asked(model, prepared)
    totals = [
        each.objective.loss(each.hidden, cast(Head, model.heads[name]), each.prepared).total
        for name, each in asked.items()
    ]
    return torch.stack(totals).sum() * 1.0
