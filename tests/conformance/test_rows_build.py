"""Rows 18, 20, 21 and 24: what torch does to a model: compiled, saved, built without weights, checkpointed, cast."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transom.core.initialise import initialise, materialise

from . import harness
from .harness import Case
from .subjects import Subject, floats, subjects

EVERY = subjects()
LENGTHS = (11, 13, 23, 37, 53)
RECOMPILATIONS = 2


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class _Graphs:
    """Count the graphs that the compiler hands over, and run them as they are."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        self.count += 1
        return graph.forward


def _compiled(call: Any) -> tuple[Any, _Graphs]:
    graphs = _Graphs()
    return torch.compile(call, fullgraph=True, backend=graphs), graphs


def _samples() -> list[Subject]:
    """Return the subjects whose graphs may differ: each component once, at each place."""
    return [s for s in EVERY if s.case.label == "base" and (s.kind != "attention" or _compiles(s.case))]


def _compiles(case: Case) -> bool:
    return "compile" in case.cls.declares.can


@torch.no_grad()
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("subject", _samples(), ids=str)
def test_row_18_compiles_whole_and_seldom(subject: Subject) -> None:
    module = subject.build()
    compiled, graphs = _compiled(lambda *inputs: subject.call(module, *inputs))
    for length in LENGTHS:
        inputs = subject.inputs(3, length)
        harness.close(compiled(*inputs), subject.call(module, *inputs))
    assert graphs.count <= 1 + RECOMPILATIONS


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("case", [case for case in harness.bases("attention") if _compiles(case)], ids=str)
def test_row_18_steps_and_gradients_compile(case: Case) -> None:
    model = harness.stack([case], positions=harness.serving(case))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = harness.vectors(2, 24).requires_grad_()
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[1, :5] = 0
    for found, want in zip(
        harness.gradients(compiled({"x": x}, attention_mask=mask)[0], x, *model.parameters()),
        harness.gradients(harness.run(model, x, attention_mask=mask), x, *model.parameters()), strict=True,
    ):  # fmt: skip
        harness.close(found, want)
    with torch.no_grad():
        want, state = harness.step(model, x[:, :11], model.empty_state(2))
        graphs = _Graphs()
        stepped = torch.compile(model, fullgraph=True, backend=graphs)
        for length in (1, 1, 1, 1, 1):
            new = harness.vectors(2, length)
            want, _ = harness.step(model, new, state)
            got, state = stepped({"x": new}, state=state)
            harness.close(got, want)
        assert graphs.count <= 1 + RECOMPILATIONS


@torch.no_grad()
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("case", [c for c in harness.bases("attention") if not _compiles(c)], ids=str)
def test_row_18_what_lacks_it_can_not(case: Case) -> None:
    layer = harness.sublayer(case)
    compiled, graphs = _compiled(lambda x: layer(x, harness.context(x))[0])
    try:
        for length in LENGTHS:
            compiled(harness.vectors(2, length))
    except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.FailOnRecompileLimitHit):
        return
    assert graphs.count > 1 + RECOMPILATIONS, "it compiles; declare it"


@torch.no_grad()
@pytest.mark.parametrize("subject", EVERY, ids=str)
def test_row_20_weights_survive_a_trip(subject: Subject) -> None:
    one, other = subject.build(), harness.shaken(subject.raw(), seed=3)
    saved = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    other.load_state_dict(saved, strict=True)
    inputs = subject.inputs(2, 37)
    assert torch.equal(subject.call(other, *inputs), subject.call(one, *inputs))
    assert all(torch.equal(tensor, saved[name]) for name, tensor in other.state_dict().items())
    again = copy.deepcopy(one)
    assert torch.equal(subject.call(again, *inputs), subject.call(one, *inputs))


@torch.no_grad()
@pytest.mark.parametrize("subject", EVERY, ids=str)
def test_row_20_no_tensor_is_left_unregistered(subject: Subject) -> None:
    module, inputs = subject.build(), subject.inputs(2, 37)
    known = {id(t) for t in (*module.parameters(), *module.buffers())}
    for name, part in module.named_modules():
        for key, value in _attributes(part):
            assert id(value) in known, f"{name}.{key} is a tensor that no state_dict, device or dtype reaches"
    # What is kept from a pass may not outlive a move.
    subject.call(module, *inputs)
    narrow = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    assert torch.equal(subject.call(module.float(), *narrow), subject.call(subject.build(torch.float32), *narrow))
    assert subject.call(module.to("meta"), *(x.to("meta") for x in narrow)).is_meta


def _attributes(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, value in vars(part).items():
        if key not in ("_parameters", "_buffers", "_modules"):
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            yield from ((key, item) for item in inner if isinstance(item, Tensor))


@torch.no_grad()
@pytest.mark.parametrize("subject", EVERY, ids=str)
def test_row_21_built_on_meta_equals_built_directly(subject: Subject) -> None:
    direct = subject.raw()
    initialise(direct, 5)
    with torch.device("meta"):
        late = subject.raw()
    assert all(t.is_meta for t in (*late.parameters(), *late.buffers()))
    late.to_empty(device="cpu")
    for tensor in (*late.parameters(), *late.buffers()):
        tensor.fill_(float("nan") if tensor.is_floating_point() else 1)  # what nobody fills would show
    initialise(late, 5)
    for (name, want), (_, got) in zip(_tensors(direct), _tensors(late), strict=True):
        assert torch.equal(got, want), name
    with torch.device("meta"):
        other = subject.raw()
    materialise(other, "cpu", 6)
    drawn = [not torch.equal(a, b) for (_, a), (_, b) in zip(_tensors(direct), _tensors(other), strict=True)]
    assert any(drawn) == any(t.std() > 0 for t in direct.parameters()), "the seed has no say"


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


@pytest.mark.parametrize(("case", "causal"), harness.directed(harness.cases("attention")), ids=str)
def test_row_24_activation_checkpointing_agrees(case: Case, causal: bool, rng: random.Random) -> None:
    given: dict[str, Any] = {"feedforward": harness.bases("feedforward")[0], "norm": harness.bases("norm")[0]}
    length = rng.choice(harness.lengths(case)[:2])
    model = harness.stack([case, case], positions=harness.serving(case), causal=causal, **given)
    x, mask = harness.vectors(2, length).requires_grad_(), torch.ones(2, length, dtype=torch.int64)
    mask[1, 3:9] = 0
    for options in ({}, {"attention_mask": mask}):
        want = harness.gradients(harness.run(model, x, **options), x, *model.parameters())
        model.checkpoint_activations = True
        found = harness.gradients(harness.run(model, x, **options), x, *model.parameters())
        model.checkpoint_activations = False
        for one, other in zip(found, want, strict=True):
            harness.close(one, other)


@pytest.mark.parametrize(("case", "chosen", "causal"), harness.pairs(), ids=str)
def test_row_24_checkpointing_agrees_with_each_position(case: Case, chosen: Case, causal: bool) -> None:
    model = harness.stack([case, case], positions=[chosen], causal=causal)
    x = harness.vectors(2, 23).requires_grad_()
    want = harness.gradients(harness.run(model, x), x, *model.parameters())
    model.checkpoint_activations = True
    for one, other in zip(harness.gradients(harness.run(model, x), x, *model.parameters()), want, strict=True):
        harness.close(one, other)


@pytest.mark.parametrize("subject", [s for s in EVERY if s.kind != "position"], ids=str)
def test_row_24_autocast_agrees(subject: Subject) -> None:
    module = subject.build(torch.float32)
    inputs = tuple(x.float() if x.is_floating_point() else x for x in subject.inputs(3, 37))
    wanted = floats(module, inputs)
    want = subject.call(module, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, slow = subject.call(module, *inputs), subject.call(module, *inputs, reference=True)
    harness.close(got, want, torch.bfloat16)
    found = (harness.gradients(y, *wanted) for y in (got, slow, want))
    for one, other, exact in zip(*found, strict=True):
        assert one.dtype == exact.dtype
        # Where an input rounds across an activation's kink the gradient differs by all it is, in the reference too.
        allowed = max(2 * harness.TOLERANCE[torch.bfloat16] * exact.norm(), 2 * (other - exact).norm())
        assert (one - exact).norm() <= allowed


@pytest.mark.parametrize("subject", EVERY, ids=str)
def test_row_24_every_parameter_is_trained(subject: Subject) -> None:
    module, inputs = subject.build(), subject.inputs(3, 37)
    named = list((module[-1] if isinstance(module, nn.ModuleList) else module).named_parameters())
    if named:
        found = harness.gradients(subject.call(module, *inputs), *(p for _, p in named))
        for (name, _), gradient in zip(named, found, strict=True):
            assert gradient.isfinite().all(), name
            assert gradient.any(), f"{name} has no gradient"
