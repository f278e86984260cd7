"""What is learned and by which rule: AdamW, its state by parameter name, and parameters that stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..core.topology import Topology
from ..errors import CheckpointError
from ..registry.check import asked_heads
from ..registry.marks import BrokenSpec
from ..registry.settings import TrainSettings
from ..registry.spec import Spec

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def freeze(model: Topology, spec: Spec) -> None:
    """Take from learning the parameters that `train.freeze` names, and those of heads that the objective never reads.

    Raises:
        SpecError: a pattern names no parameter, or nothing is left to learn.
    """
    names = [name for name, _ in model.named_parameters()]
    problems = [
        spec.problem("train.freeze", f"'{pattern}' matches no parameter{_near(pattern, names)}")
        for pattern in spec.train.freeze
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if problems:
        raise BrokenSpec(problems)
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in spec.train.freeze):
            parameter.requires_grad_(False)
    for name, head in model.heads.items():
        if name not in asked_heads(spec):
            head.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BrokenSpec([spec.problem("train.freeze", "leaves nothing to learn: every parameter is frozen")])


def _near(pattern: str, names: list[str]) -> str:
    near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    return f"; near it are {', '.join(near)}"


def adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) over what is learned; only matrices decay, not norms and biases."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in learned if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return an AdamW's state as tensors, `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step` by parameter."""
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in MOMENTS
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    keep: Callable[[nn.Parameter, Tensor], Tensor],
) -> None:
    """Give an AdamW the state that `optimizer_tensors` returned.

    `keep`: what becomes of a whole tensor where the parameter is.

    Raises:
        CheckpointError: it is not the state of this model's parameters.
    """
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for key in tensors:
        name, _, moment = key.rpartition(".")
        if name not in learned or moment not in MOMENTS:
            raise CheckpointError(f"optimizer.safetensors: {key} belongs to no parameter that is learned")
    for name, parameter in learned.items():
        if f"{name}.step" in tensors:
            state = {moment: tensors[f"{name}.{moment}"] for moment in MOMENTS}
            if state["exp_avg"].shape != parameter.shape:
                raise CheckpointError(f"optimizer.safetensors: {name}.exp_avg is {tuple(state['exp_avg'].shape)}")
            optimizer.state[parameter] = {moment: keep(parameter, tensor) for moment, tensor in state.items()}
