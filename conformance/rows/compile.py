"""Row 18: torch.compile takes a component whole, at any length, or it declares that it can't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..companions import serving
from ..places import Cases, able, base, base_everywhere, causal
from ..registered import row, unless_able
from ..stacks import context, run, stack, step, sublayer, vectors
from ..subjects import Subject
from ..trial import Failure, Trial, gradients
from .values import COMPUTING

LENGTHS = (11, 13, 23, 37, 53)
RECOMPILATIONS = 2


class Graphs:
    """Count the graphs that the compiler hands over, and run them as they are."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        self.count += 1
        return graph.forward


def _compiled(call: Callable[..., Any]) -> tuple[Callable[..., Any], Graphs]:
    """Return a call compiled whole, and the count of its graphs, with a compiler that remembers nothing."""
    torch._dynamo.reset()
    graphs = Graphs()
    return torch.compile(call, fullgraph=True, backend=graphs), graphs


def _unless_compiled(cls: type[Any]) -> str:
    return unless_able("compile")(cls) if cls.kind == "attention" else ""


def _lacks_nothing(cls: type[Any]) -> str:
    return "" if "compile" not in cls.declares.can else "compile: it can, which other checks prove"


def _compiling(cases: Cases) -> Any:
    lacking = cases[0].cls.kind == "attention" and not able(cases[0], "compile")
    return [] if lacking else base_everywhere(cases)


def _not_compiling(cases: Cases) -> Any:
    return [] if able(cases[0], "compile") else base(cases)


@row(18, "whole and seldom", kinds=COMPUTING, places=_compiling, excuse=_unless_compiled)
@torch.no_grad()
def whole_and_seldom(subject: Subject, trial: Trial) -> None:
    module = subject.build()
    compiled, graphs = _compiled(lambda *inputs: subject.call(module, *inputs))
    try:
        for length in LENGTHS:
            inputs = subject.inputs(3, length)
            trial.close(compiled(*inputs), subject.call(module, *inputs), what="the compiled result")
    except torch._dynamo.exc.TorchDynamoException as broken:
        raise Failure(f"it does not compile: {str(broken).partition(chr(10))[0]}") from broken
    finally:
        torch._dynamo.reset()
    trial.within(graphs.count, 1 + RECOMPILATIONS, f"graphs for {len(LENGTHS)} lengths")


@row(18, "gradients, and steps with a growing state", kinds=("attention",), excuse=unless_able("causal", "compile"),
     places=lambda cases: causal(cases[:1]) if able(cases[0], "compile") else [])  # fmt: skip
def gradients_and_steps(subject: Subject, trial: Trial) -> None:
    case = subject.case
    model = stack([case], positions=serving(case))
    x = vectors(2, 24).requires_grad_()
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[1, :5] = 0
    try:
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        found = gradients(compiled({"x": x}, attention_mask=mask)[0], x, *model.parameters())
        trial.all_close(found, gradients(run(model, x, attention_mask=mask), x, *model.parameters()))
        with torch.no_grad():
            _, state = step(model, x[:, :11], model.empty_state(2))
            stepped, graphs = _compiled(model)
            for _ in range(5):
                new = vectors(2, 1)
                want, _ = step(model, new, state)
                got, state = stepped({"x": new}, state=state)
                trial.close(got, want, what="a compiled step")
    except torch._dynamo.exc.TorchDynamoException as broken:
        raise Failure(f"it does not compile: {str(broken).partition(chr(10))[0]}") from broken
    finally:
        torch._dynamo.reset()
    trial.within(graphs.count, 1 + RECOMPILATIONS, "graphs for 5 steps")


@row(18, "what lacks it can not", kinds=("attention",), places=_not_compiling, excuse=_lacks_nothing)
@torch.no_grad()
def what_lacks_it_can_not(subject: Subject, trial: Trial) -> None:
    layer = sublayer(subject.case)
    compiled, graphs = _compiled(lambda x: layer(x, context(x))[0])
    refused = (torch._dynamo.exc.Unsupported, torch._dynamo.exc.FailOnRecompileLimitHit)
    try:
        for length in LENGTHS:
            compiled(vectors(2, length))
    except refused:
        trial.holds(True, "it is refused")
        return
    finally:
        torch._dynamo.reset()
    trial.holds(graphs.count > 1 + RECOMPILATIONS, "it compiles: declare it")
