"""Rows 20, 21 and 24: what torch does to a model: saved, moved, built without weights, checkpointed, cast."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...core.choice import Choices
from ...core.initialise import initialise, materialise
from ..cases import Case
from ..companions import bases, serving
from ..places import directed, everywhere, only, pair, paired
from ..registered import row
from ..stacks import cast_all, lengths, run, shaken, stack, vectors
from ..subjects import Subject, floats
from ..trial import TOLERANCE, Trial, gradients
from .values import COMPUTING, REFERRED


@row(20, "a strict trip through a state_dict", kinds=COMPUTING)
@torch.no_grad()
def a_trip_through_a_state_dict(subject: Subject, trial: Trial) -> None:
    one, other = subject.build(), shaken(subject.raw(), seed=3)
    saved = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    other.load_state_dict(saved, strict=True)
    inputs = subject.inputs(trial.size("batch", (2,)), trial.size("length", (37,)))
    trial.equal(subject.call(other, *inputs), subject.call(one, *inputs), "the result of loaded weights")
    for name, tensor in other.state_dict().items():
        trial.equal(tensor, saved[name], "a weight after the trip")
    again = copy.deepcopy(one)
    trial.equal(subject.call(again, *inputs), subject.call(one, *inputs), "the result of a deep copy")


@row(20, "no tensor is left unregistered, or outlives a move", kinds=COMPUTING)
@torch.no_grad()
def no_tensor_unregistered(subject: Subject, trial: Trial) -> None:
    module = subject.build()
    inputs = subject.inputs(trial.size("batch", (2,)), trial.size("length", (37,)))
    known = {id(t) for t in (*module.parameters(), *module.buffers())}
    for name, part in module.named_modules():
        for key, value in _attributes(part):
            where = ".".join(filter(None, (name, key)))
            trial.holds(id(value) in known, f"{where} is a tensor that no state_dict, device or dtype reaches")
    # What is kept from a pass may not outlive a move.
    subject.call(module, *inputs)
    narrow = cast_all(inputs, torch.float32)
    want = subject.call(subject.build(torch.float32), *narrow)
    trial.equal(subject.call(module.float(), *narrow), want, "the result after a move to fp32")
    elsewhere = subject.call(module.to("meta"), *(x.to("meta") for x in narrow))
    trial.holds(elsewhere.is_meta, "after a move to another device the result is not there")


def _attributes(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, value in vars(part).items():
        if key not in ("_parameters", "_buffers", "_modules"):
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            yield from ((key, item) for item in inner if isinstance(item, Tensor))


@row(21, "on the meta device, then materialised", kinds=COMPUTING)
@torch.no_grad()
def built_on_meta(subject: Subject, trial: Trial) -> None:
    direct = subject.raw()
    initialise(direct, 5)
    with torch.device("meta"):
        late = subject.raw()
    trial.holds(all(t.is_meta for t in (*late.parameters(), *late.buffers())), "a tensor is not on the meta device")
    late.to_empty(device="cpu")
    for tensor in (*late.parameters(), *late.buffers()):
        tensor.fill_(float("nan") if tensor.is_floating_point() else 1)  # what nobody fills would show
    initialise(late, 5)
    for (name, want), (_, got) in zip(_tensors(direct), _tensors(late), strict=True):
        trial.equal(got, want, f"{name}, built late,")
    with torch.device("meta"):
        other = subject.raw()
    materialise(other, "cpu", 6)
    drawn = [not torch.equal(a, b) for (_, a), (_, b) in zip(_tensors(direct), _tensors(other), strict=True)]
    random = any(t.numel() > 1 and bool(t.std() > 0) for t in direct.parameters())
    trial.holds(any(drawn) == random, "the seed has no say in the first weights, or first weights are not its own")


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


@row(24, "activation checkpointing", kinds=("attention",), places=directed)
def checkpointing(subject: Subject, trial: Trial) -> None:
    case = subject.case
    given: dict[str, Any] = {"feedforward": bases("feedforward")[0], "norm": bases("norm")[0]}
    batch, length = trial.size("batch", (2,)), trial.size("length", lengths(case)[:2])
    model = stack([case, case], positions=serving(case), causal=subject.causal, **given)
    x, mask = vectors(batch, length).requires_grad_(), torch.ones(batch, length, dtype=torch.int64)
    mask[1:2, 3:9] = 0
    for options in ({}, {"attention_mask": mask}):
        want = gradients(run(model, x, **options), x, *model.parameters())
        model.checkpointed = 2
        found = gradients(run(model, x, **options), x, *model.parameters())
        model.checkpointed = 0
        trial.all_close(found, want, "a gradient through checkpoints")


@row(24, "activation checkpointing with each position", kinds=("attention", "position"), places=paired)
def checkpointing_with_positions(subject: Subject, trial: Trial) -> None:
    attention, chosen = pair(subject)
    parts: list[Case] = [attention, attention]
    model = stack(parts, positions=[chosen], causal=subject.causal)
    x = vectors(trial.size("batch", (2,)), trial.size("length", (23,))).requires_grad_()
    want = gradients(run(model, x), x, *model.parameters())
    model.checkpointed = 2
    trial.all_close(gradients(run(model, x), x, *model.parameters()), want, "a gradient through checkpoints")


@row(24, "autocast in bf16", kinds=REFERRED)
def autocast(subject: Subject, trial: Trial) -> None:
    module = subject.build(torch.float32)
    inputs = cast_all(subject.inputs(trial.size("batch", (3,)), trial.size("length", (37,))), torch.float32)
    wanted = floats(module, inputs)
    made = Choices()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = subject.call(module, *inputs, choices=made)
        slow = subject.call(module, *inputs, reference=True, choices=Choices(made.chosen))
    taken = Choices(made.chosen)
    want = subject.call(module, *inputs, choices=taken)
    trial.alike(made, taken, torch.bfloat16)
    trial.close(got, want, torch.bfloat16, "the result under autocast")
    found = (gradients(y, *wanted) for y in (got, slow, want))
    for one, other, exact in zip(*found, strict=True):
        trial.holds(one.dtype == exact.dtype, "a gradient under autocast has another dtype")
        # Where an input rounds across an activation's kink the gradient differs by all it is, in the reference too.
        size = float(exact.norm()) or 1.0
        allowed = max(2 * TOLERANCE[torch.bfloat16], 2 * float((other - exact).norm()) / size)
        off = float((one - exact).norm()) / size
        trial.within(off, allowed, "the norm of a gradient's error under autocast, relative to its own,", one.shape)


def _named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list((module[-1] if isinstance(module, nn.ModuleList) else module).named_parameters())


@row(24, "every parameter is trained", kinds=COMPUTING,
     places=partial(only, lambda subject: bool(_named(subject.raw())), everywhere),
     excuse=lambda cls: "it has no parameters")  # fmt: skip
def every_parameter_is_trained(subject: Subject, trial: Trial) -> None:
    module, inputs = subject.build(), subject.inputs(trial.size("batch", (3,)), trial.size("length", (37,), least=37))
    named = _named(module)
    y = subject.call(module, *inputs)
    if getattr(subject.case.config, "blank", False):
        y = y + module.asking().mean()  # type: ignore[operator]  # what stands where a token is only asked for
    found = gradients(y, *(p for _, p in named))
    for (name, _), gradient in zip(named, found, strict=True):
        trial.finite(gradient, what=f"the gradient of {name}")
        trial.holds(gradient.any(), f"{name} has no gradient")
