"""Steps of one token a row by compiled layers: each does the same as the last, on CUDA as one graph of kernels."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..core.slots import steady
from ..core.state import State
from ..core.topology import Output, Topology
from .graph import captured
from .regions import compile_regions


class CompiledStep:
    """Take a token of each row, (B, 1), with layers compiled, for a state with room whose rows all take one.

    On CUDA all kernels of a step are captured once for a state's tensors, and replayed; a state with other tensors, as
    when it is given more room, is captured anew. On a CPU each layer is one call of what was compiled of it.
    """

    def __init__(self, model: Topology, prefix: str) -> None:
        self.model = model
        self.name = prefix + "input_ids"
        self.device = next(model.parameters()).device
        self._compiled = compile_regions(model, steps=True)
        self._captured: _Captured | None = None

    @property
    def path(self) -> str:
        """Name how steps are taken."""
        if self.device.type == "cuda":
            return f"{self._compiled}, all kernels of a step captured in one CUDA graph"
        return f"{self._compiled}, on {self.device.type}"

    def serves(self, ids: Tensor, inputs: dict[str, Tensor], state: State) -> bool:
        """Say whether a call is such a step: of one token of each row, with nothing beside them."""
        return ids.shape[1] == 1 and inputs.keys() == {self.name} and state.room is not None and state.columns > 0

    def __call__(self, ids: Tensor, state: State) -> Output:
        """Return the hidden states (B, 1, C) and the next state, whose slots are those of the state that is given."""
        if self.device.type != "cuda":
            hidden, tensors = self.run(ids, state)
        else:
            if self._captured is None or not self._captured.is_of(ids, state):
                self._captured = _Captured(self, ids, state)
            hidden, tensors = self._captured.replay(ids)
        return Output(None, hidden, replace(state, tensors=tensors, columns=state.columns + 1))

    def run(self, ids: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the hidden states and all tensors of the next state."""
        out = self.model(**{self.name: ids}, state=steady(state), logits=False)
        assert out.state is not None
        return out.hidden, out.state.tensors


class _Captured:
    """Hold one step's kernels, which read and write the tensors of one state."""

    def __init__(self, step: CompiledStep, ids: Tensor, state: State) -> None:
        self.ids = ids.clone()
        self.tensors = dict(state.tensors)

        def run() -> Tensor:
            hidden, after = step.run(self.ids, state)
            for name, tensor in self.tensors.items():
                if after[name] is not tensor:  # a ring, or sums: they are made anew
                    tensor.copy_(after[name])
            return hidden

        # The first runs write to the slots of the token what the step will, and nothing else.
        self.hidden, self._graph = captured(lambda: step.run(self.ids, state), run, step.device, None)

    def is_of(self, ids: Tensor, state: State) -> bool:
        """Say whether it was captured for a batch as large, and for a state's own tensors."""
        return ids.shape == self.ids.shape and all(state.tensors[n] is tensor for n, tensor in self.tensors.items())

    def replay(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Take a step: its hidden states stay until the next one, and the state's tensors are written over."""
        self.ids.copy_(ids)
        self._graph.replay()
        return self.hidden, dict(self.tensors)
