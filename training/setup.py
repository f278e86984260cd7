"""All that is found out before a run folder is made: the device, first weights, and whether data and model fit."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

from ..core.objective import Objective
from ..core.stack import Stack
from ..core.topology import Topology
from ..data import Dataset, Tokenizer, prepare
from ..registry import units
from ..registry.compose import build_data, build_objective, outline
from ..registry.estimate import estimate, share_of
from ..registry.limits import check_activations, check_batch, check_memory
from ..registry.marks import BrokenSpec, Problem
from ..registry.spec import Spec
from ..registry.weights import fill, last_weights, renewed
from .events import Initialised
from .float8 import EVEN, fits
from .graph import check_graph
from .precision import check_precision
from .processes import World
from .run import read_run
from .sharing import UNSHARED


def choose_device(spec: Spec) -> str:
    """Return "cpu" or "cuda"; raise SpecError when a GPU is asked for and there is none."""
    there = torch.cuda.is_available()
    if spec.train.device == "cuda" and not there:
        raise BrokenSpec([spec.problem("train.device", "PyTorch sees no CUDA device here: use cpu or auto")])
    return "cpu" if spec.train.device == "cpu" or not there else "cuda"


def check_settings(spec: Spec, world: World) -> Mapping[str, int]:
    """Return by stack how many layers, the first ones, compute their activations twice in each of the processes.

    Raises:
        SpecError: settings that this machine, or this number of processes, can't follow.
    """
    settings, problems = spec.train, list[Problem]()
    build_objective(spec, None)
    build_data(spec)
    own = share_of(spec, world.size)
    if why := check_precision(settings.precision, world.device):
        problems.append(spec.problem("train.precision", why))
    if settings.shard and world.size > 1 and (why := UNSHARED.get(settings.precision)):
        problems.append(spec.problem("train.precision", why))
    if settings.cuda_graph and (why := check_graph(spec, world)):
        problems.append(spec.problem("train.cuda_graph", why))
    if settings.tensorboard and find_spec("tensorboard") is None:
        message = "TensorBoard is not installed: pip install tensorboard, or leave it out"
        problems.append(spec.problem("train.tensorboard", message))
    if problems:
        raise BrokenSpec(problems)
    check_batch(spec)
    check_activations(own, world.device)
    model = outline(own)
    if settings.precision == "float8" and not any(map(fits, model.modules())):
        message = f"no map of this model has sizes that are multiples of {EVEN}, which float8 needs: use bf16"
        raise BrokenSpec([spec.problem("train.precision", message)])
    found = estimate(spec, model, world.size)
    cost = found.training
    if cost is None and settings.memory_gb is not None:
        why = "; ".join(found.notes)
        raise BrokenSpec([spec.problem("train.memory_gb", f"what a step holds is not known: {why}")])
    if cost is not None:
        if settings.memory_gb is not None and cost.peak > settings.memory_gb * 1e9:
            message = (
                f"a step holds {units.size(cost.peak)}, though the activations of all layers are computed twice: "
                "batch_size makes it smaller, and accumulate makes up for that"
            )
            raise BrokenSpec([spec.problem("train.memory_gb", message)])
        held = "a share of the model" if settings.shard and world.size > 1 else "the model"
        check_memory(spec, "model", cost.held, f"{held} with its gradients and moments", world.device)
        check_memory(spec, "train.batch_size", cost.peak, "a training step", world.device)
        return cost.checkpointed
    return {name: len(stack.layers) * settings.checkpoint_activations for name, stack in spec.model.stacks.items()}


def compute_twice(model: Topology, layers: Mapping[str, int]) -> None:
    """Have so many layers of each stack, the first ones, compute their activations twice."""
    for name, count in layers.items():
        stack = getattr(model, name)
        assert isinstance(stack, Stack)
        stack.checkpointed = count


def initialise_from(model: Topology, folder: str) -> tuple[Initialised, Tokenizer | None]:
    """Put the weights of the run in `folder` into a model, and return what was done, with that run's tokenizer.

    Heads that the run has not, or not of the same shape, keep their first weights; all else must be there. Stacks of
    the run that the model has not are left.

    Raises:
        CheckpointError: it is no run, or other parts of the models differ.
    """
    run = read_run(folder)
    weights, own = renewed(model, last_weights(run.folder)), model.state_dict()
    taken = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] in model.stacks}
    fresh = []
    for name, tensor in own.items():
        if name.startswith("heads."):
            same = name in weights and weights[name].shape == tensor.shape
            taken[name] = weights[name] if same else tensor
            fresh += [] if same else [name]
    fill(model, taken, run.folder)
    return Initialised(run.folder, tuple(fresh)), run.tokenizer


def prepare_data(spec: Spec, folder: Path, tokenizer: Tokenizer | None = None) -> tuple[Dataset, Objective]:
    """Prepare a spec's data in a run folder, and build the objective for its tokens; raise DataError as `prepare`."""
    assert spec.objective is not None  # check_settings has seen to it
    lookahead = build_objective(spec, None).lookahead
    dataset = prepare(build_data(spec), folder, lookahead=lookahead, seed=spec.train.seed, tokenizer=tokenizer)
    return dataset, build_objective(spec, dataset.vocabulary)


def check_fit(spec: Spec, model: Topology, objective: Objective, dataset: Dataset) -> None:
    """Run one row through the model; raise SpecError where its sizes and the data's do not fit.

    Raises:
        SpecError: rows longer than the model takes, tokens that it has no vector for, targets that it has no logit for.
        InputError: the model takes other inputs than the data gives.
    """
    problems = []
    seq_len, most = dataset.data.config.seq_len, spec.model.max_seq_len
    if seq_len is not None and seq_len > most:
        problems.append(spec.problem("data.seq_len", f"{seq_len} is more than the model's max_seq_len: {most}"))
    tokens = dataset.vocabulary.size + objective.extra_ids if dataset.vocabulary else 0
    for name in spec.model.stacks:
        stack = getattr(model, name)
        assert isinstance(stack, Stack)
        size = stack.embedding.vocab_size
        if size is not None and size < tokens:
            more = f", {objective.extra_ids} of the objective among them" if objective.extra_ids else ""
            message = f"vocab_size: {size} is less than the {tokens} tokens of the data's tokenizer{more}"
            problems.append(spec.problem(f"model.stacks.{name}.embedding", message))
    if not problems:
        problems += _check_targets(spec, model, objective, dataset, tokens)
    if problems:
        raise BrokenSpec(problems)


def _check_targets(spec: Spec, model: Topology, objective: Objective, dataset: Dataset, tokens: int) -> list[Problem]:
    batch = {name: torch.from_numpy(array) for name, array in dataset.batch(0, 1).items()}
    prepared = objective.prepare(batch, torch.Generator().manual_seed(0))
    training, problems = model.training, list[Problem]()
    model.eval()
    with torch.no_grad():
        for name, asked in objective.asked(model, prepared).items():
            width, asks = model.heads[name](asked.hidden, prepared.mask).shape[-1], asked.objective
            wanted = asks.logits or (tokens if asks.per_token else len(dataset.report.classes))
            if width < wanted:
                what = "tokens" if asks.per_token else "classes"
                message = f"scores {width} {what}, and the data has {wanted}"
                problems.append(spec.problem(f"model.heads.{name}", message))
    model.train(training)
    return problems
