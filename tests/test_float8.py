"""Training in 8 bits: what is refused, and which maps go through torchao; its own products need a CUDA machine."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_training import decoder, losses, text, weights
from torch import Tensor, nn
from torch.nn import functional as F

from transom.core.linear import Fused, Linear
from transom.errors import SpecError
from transom.training import evaluate, float8, setup, train
from transom.training.precision import check_precision
from transom.training.processes import World

__all__ = ["text"]  # a fixture


class Rounded(nn.Linear):
    """Stand for torchao's: rounds what it multiplies, and passes gradients on."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Rounded.calls += 1
        return F.linear(x + (x.to(torch.float8_e4m3fn).to(x.dtype) - x).detach(), self.weight, self.bias)


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in where torchao would be found, and take any device."""

    def convert(model: nn.Sequential) -> nn.Sequential:
        (plain,) = model
        assert isinstance(plain, nn.Linear)
        made = Rounded(plain.in_features, plain.out_features, bias=False, device="meta")
        made.weight, made.bias = plain.weight, plain.bias
        return nn.Sequential(made)

    package, there = ModuleType("torchao"), ModuleType("torchao.float8")
    package.__spec__ = ModuleSpec("torchao", None)
    there.convert_to_float8_training = convert  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchao", package)
    monkeypatch.setitem(sys.modules, "torchao.float8", there)
    monkeypatch.setattr(float8, "missing", lambda device: None)


def test_a_run_in_8_bits_learns_nearly_the_same(text: Path, tmp_path: Path, torchao: None) -> None:
    wide = "model.layer.feedforward.d_ff=48"
    train(decoder(text, wide, precision="bf16"), tmp_path / "bf16")
    Rounded.calls = 0
    run = train(decoder(text, wide, precision="float8"), tmp_path / "float8")
    assert Rounded.calls >= 6 * 2 * 4  # steps, layers, maps of a layer
    got, want = losses(tmp_path / "float8"), losses(tmp_path / "bf16")
    assert got != want
    assert got == pytest.approx(want, rel=0.05)
    assert weights(run.folder).keys() == weights(tmp_path / "bf16").keys()
    assert {tensor.dtype for tensor in weights(run.folder).values()} == {torch.float32}
    before = Rounded.calls
    assert evaluate(run)["loss"] == pytest.approx(evaluate(tmp_path / "bf16")["loss"], rel=0.05)
    assert Rounded.calls > before


def test_maps_that_fit_and_others(torchao: None) -> None:
    partly, whole = Fused(32, (16, 16), (True, False)), Fused(32, (16, 16), (True, True))
    kept = [Linear(32, 24), nn.Linear(32, 32), partly]
    model = nn.ModuleList([Linear(32, 48, bias=True), whole, *kept])
    x, names = torch.randn(3, 32), list(model.state_dict())
    want = [module(x) for module in model]
    assert float8.multiply_in_float8(model) == 2
    assert list(model.state_dict()) == names
    for place, module in enumerate(model):
        found = module(x)
        assert torch.equal(found, want[place]) == (module in kept)
        torch.testing.assert_close(found, want[place], rtol=0.1, atol=0.3)


def test_what_is_missing_is_said(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = r"train\.precision: float8 needs a CUDA device of compute capability 8.9, and this training is on cpu"
    with pytest.raises(SpecError, match=where):
        setup.check_settings(decoder(text, precision="float8"), World(torch.device("cpu")))
    cuda, there = torch.device("cuda"), {"torchao": None}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(float8, "find_spec", there.get)
    assert check_precision("float8", cuda) == "a card has compute capability 8.0, and float8 needs 8.9"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert check_precision("float8", cuda) == "float8 needs torchao: pip install torchao, or use bf16"
    monkeypatch.setattr(float8, "find_spec", lambda name: ModuleSpec(name, None))
    assert check_precision("float8", cuda) is None


def test_a_model_of_which_nothing_fits_is_refused(text: Path, torchao: None) -> None:
    narrow = ["model.d_model=18", "model.layer.attention.n_heads=1"]
    with pytest.raises(SpecError, match=r"train\.precision: no map of this model has sizes that are multiples of 16"):
        setup.check_settings(decoder(text, *narrow, precision="float8"), World(torch.device("cpu")))
