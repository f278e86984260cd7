"""The settings of a spec that belong to no component: how to train, and what to export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Method = Literal["int8", "int8_weights", "int4", "gptq"]
METHODS: Mapping[Method, Mapping[str, int | bool | tuple[str, ...]]] = {
    "int8": {},
    "int8_weights": {"block_size": 32, "accuracy_level": 4, "symmetric": False, "embedding": False},
    "int4": {"block_size": 32, "accuracy_level": 4, "symmetric": False, "embedding": False, "wide": ()},
    "gptq": {"block_size": 32, "accuracy_level": 4, "symmetric": False, "embedding": False, "wide": (), "samples": 32},
}
"""How weights can be quantized: method -> the options that it takes besides `leave_out`, with what they are unless set.

`int8`: 8-bit weights, a scale for each column, times activations that are rounded to 8 bits as they come.
`int8_weights`, `int4`: 8-bit and 4-bit weights with a scale for each block of a column, rounded so that each block's
squared error is least. `gptq`: the same format, rounded column by column so that what a matrix gives on the run's own
data changes least (Frantar et al. 2022, https://arxiv.org/abs/2210.17323).
"""
BLOCKS = (16, 32, 64, 128, 256)
LEVELS = (0, 1, 4)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Say how a model is trained.

    `steps`: optimizer steps. `batch_size`: rows in one micro batch. `accumulate`: micro batches in one step. `lr`: peak
    learning rate. `warmup`: steps of linear rise up to it. `schedule`: how it falls afterwards. `min_lr_ratio`: the
    part of `lr` that cosine and linear end at. `weight_decay`, `betas`, `eps`: AdamW's. `grad_clip`: largest gradient
    norm, 0 for no limit. `precision`: of the forward and backward pass; `float8` is bf16 with the products of
    projections in 8 bits. `compile`: whether torch.compile is used. `cuda_graph`: whether a micro batch's kernels are
    captured once on CUDA, and replayed for all others. `checkpoint_activations`: whether activations are computed twice
    to save memory. `memory_gb`: what a step may hold at most, in GB of 10^9 bytes; the first layers compute activations
    twice, as many as that takes. `shard`: whether several processes have a share of each weight, its gradient and its
    moments, in place of all of them. `seed`: of weights, batches and dropout. `eval_every`, `checkpoint_every`,
    `log_every`: in steps, 0 for never. `keep_checkpoints`: how many of the newest stay. `early_stop`: evaluations
    without improvement that end the run, 0 for none. `init`: a run folder whose weights are the start. `freeze`: glob
    patterns of parameter names that stay as they are. `threads`: CPU threads, null for PyTorch's choice. `device`:
    where to train. `tensorboard`: whether figures are written for TensorBoard too.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 0
    schedule: Literal["cosine", "linear", "inverse_sqrt", "constant"] = "cosine"
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    grad_clip: float = 1.0
    precision: Literal["fp32", "bf16", "fp16", "float8"] = "fp32"
    compile: bool = False
    cuda_graph: bool = False
    checkpoint_activations: bool = False
    memory_gb: float | None = None
    shard: bool = False
    seed: int = 0
    eval_every: int = 200
    checkpoint_every: int = 200
    log_every: int = 10
    keep_checkpoints: int = 2
    early_stop: int = 0
    init: str | None = None
    freeze: tuple[str, ...] = ()
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep_checkpoints", "threads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "at least 1", value)
        for name in ("warmup", "seed", "eval_every", "checkpoint_every", "early_stop"):
            _require(0 <= getattr(self, name) < 2**63, name, "at least 0", getattr(self, name))
        for name in ("lr", "eps"):
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("weight_decay", "grad_clip"):
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        _require(0 <= self.min_lr_ratio <= 1, "min_lr_ratio", "from 0 to 1", self.min_lr_ratio)
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", "from 0 to below 1", self.betas)
        _require(self.memory_gb is None or self.memory_gb > 0, "memory_gb", "above 0", self.memory_gb)
        if self.memory_gb is not None and self.checkpoint_activations:
            raise ValueError("memory_gb: chooses the layers itself; leave checkpoint_activations out")
        _require(not self.early_stop or self.eval_every > 0, "early_stop", "0 where eval_every is 0", self.early_stop)


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """Say how the weights of an exported graph are quantized.

    `method`: `int8`, 8-bit weights and activations; `int8_weights` and `int4`, weights alone, in blocks; `gptq`, 4-bit
    weights that are rounded for the run's own data. `block_size`: how many weights share a scale. `accuracy_level`: how
    the products are computed, 4 with activations of 8 bits a block, 1 in fp32, 0 as the runtime likes; on a CPU only 4
    is fast. `symmetric`: whether blocks go without a zero point. `embedding`: whether tables that rows are looked up in
    are quantized too. `wide`: glob patterns of modules whose matrices get 8 bits in place of 4. `samples`: rows of the
    run's data that `gptq` reads. `leave_out`: glob patterns of modules that stay as they are. Null is the method's own.
    """

    method: Method
    block_size: int | None = None
    accuracy_level: int | None = None
    symmetric: bool | None = None
    embedding: bool | None = None
    wide: tuple[str, ...] | None = None
    samples: int | None = None
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        takes = METHODS[self.method]
        for name in ("block_size", "accuracy_level", "symmetric", "embedding", "wide", "samples"):
            given = getattr(self, name)
            _require(given is None or name in takes, name, f"left out: {self.method} takes none", given)
            object.__setattr__(self, name, takes.get(name) if given is None else given)
        _require(self.block_size in (None, *BLOCKS), "block_size", _one_of(BLOCKS), self.block_size)
        _require(self.accuracy_level in (None, *LEVELS), "accuracy_level", _one_of(LEVELS), self.accuracy_level)
        _require(self.samples is None or self.samples >= 1, "samples", "at least 1", self.samples)


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Say what a model is exported to.

    `target`: `onnx` for standard operators alone, `ort` where ONNX Runtime's own may stand for a part that offers them.
    `opset`: of the ONNX standard. `precision`: of weights and activations. `quantize`: how weights are quantized: a
    method, or a map with its options. `logits`: those that a graph gives which takes steps, of each row's last token
    alone or of all.
    """

    target: Literal["ort", "onnx"] = "ort"
    opset: int = 24
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    quantize: Literal["none", "int8", "int8_weights", "int4", "gptq"] | QuantizeSettings = "none"
    logits: Literal["last", "all"] = "last"

    def __post_init__(self) -> None:
        _require(23 <= self.opset <= 24, "opset", "23 or 24", self.opset)
        if isinstance(self.quantize, str) and self.quantize != "none":
            object.__setattr__(self, "quantize", QuantizeSettings(method=self.quantize))
        if self.quantization is not None:
            allowed = "none where target is onnx, because the operators are ONNX Runtime's own"
            _require(self.target == "ort", "quantize", allowed, self.quantization.method)
            fits = self.precision == "fp32" or self.quantization.method != "int8"
            _require(fits, "precision", "fp32 where quantize is int8, whose operator takes no other", self.precision)

    @property
    def quantization(self) -> QuantizeSettings | None:
        """Return how weights are quantized; None where they are not."""
        return self.quantize if isinstance(self.quantize, QuantizeSettings) else None


def _one_of(values: tuple[int, ...]) -> str:
    return f"one of {', '.join(map(str, values))}"


def _require(holds: bool, field: str, allowed: str, given: object) -> None:
    if not holds:
        raise ValueError(f"{field}: must be {allowed}, not {given}")
