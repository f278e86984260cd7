"""Packages that break, hang, lie or reach into what belongs to all: found, named, undone, and nobody else's trouble."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packages import GOOD

import transom
from transom.core.attention import Mechanism
from transom.errors import PluginError
from transom.registry import compose
from transom.registry.manager import GROUP, Registry

Install = Callable[..., Path]

FAULTS = [
    ("raise RuntimeError('no luck')", "can't be loaded: RuntimeError: no luck"),
    ("import sys; sys.exit('bye')", "can't be loaded: SystemExit: bye"),
    ("raise KeyboardInterrupt", "can't be loaded: KeyboardInterrupt"),
    ("class Odd(BaseException): pass\nraise Odd(7)", "can't be loaded: Odd: 7"),
    ("def f(): f()\nf()", "can't be loaded: RecursionError"),
    ("import torch.nowhere", "can't be loaded: ModuleNotFoundError: No module named 'torch.nowhere'"),
    ("import warnings; warnings.warn('old')", "can't be loaded: UserWarning: old"),  # here warnings are errors
    ("import torch; torch.manual_seed(5)", "it sets torch's random numbers"),
    ("import torch; torch.rand(3)", "it sets torch's random numbers"),
    ("import random; random.seed(5)", "it sets Python's random numbers"),
    ("import numpy; numpy.random.seed(5)", "it sets numpy's random numbers"),
    ("import torch; torch.set_default_dtype(torch.float64)", "it sets torch's default dtype"),
    ("import torch; torch.set_default_device('meta')", "it sets torch's default device"),
    ("import torch; torch.set_num_threads(3)", "it sets torch's number of threads"),
    ("import torch; torch.set_grad_enabled(False)", "it sets torch's grad mode"),
    ("import torch; torch.use_deterministic_algorithms(True)", "it sets torch's deterministic mode"),
    ("import torch; torch.set_float32_matmul_precision('medium')", "it sets torch's precision of matrix products"),
    ("import torch; torch.autograd.set_detect_anomaly(True)", "it sets torch's anomaly mode"),
    ("import torch.nn.functional as F; F.softmax = F.relu", "it replaces torch.nn.functional.softmax"),
    (
        "import functools, torch\n@functools.wraps(torch.cat)\ndef cat(*a): pass\ntorch.cat = cat",
        "it replaces torch.cat",
    ),
    ("import torch; torch.flash = 3", "it adds torch.flash"),
    ("import torch; del torch.nn.Dropout", "it deletes torch.nn.Dropout"),
    ("import torch; torch.Tensor.__add__ = lambda self, other: self", "it adds torch.Tensor.__add__"),
    ("import torch; torch.nn.Module.__call__ = print", "it replaces torch.nn.Module.__call__"),
    ("from transom.registry import compose; compose.compose = 3", "it replaces transom.registry.compose.compose"),
    (
        "from transom.core.attention import Mechanism; Mechanism.build = None",
        "it replaces transom.core.attention.Mechanism.build",
    ),
    ("import transom; transom.best = 3", "it adds transom.best"),
    ("import transom; transom.train = 3", "transom.train"),  # added or replaced: it is imported when first asked for
    (
        "import sys; sys.modules['transom.core.attention'] = sys",
        "it replaces the module transom.core.attention",
    ),
    (
        "import random, torch; random.seed(5); torch.flash = 3; torch.set_default_dtype(torch.half); raise OSError(8)",
        "can't be loaded: OSError: 8; and changes what belongs to all when it is loaded (put back now): it adds "
        "torch.flash, sets Python's random numbers, sets torch's default dtype",
    ),
]


def fresh() -> Registry:
    return Registry(entry_points(group=GROUP))


def state() -> dict[str, Any]:
    """Return all that the faults above change."""
    return {
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "device": torch.tensor(1.0).device,
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "anomaly": torch.is_anomaly_enabled(),
        "functions": (torch.nn.functional.softmax, torch.cat, torch.nn.Dropout, torch.nn.Module.__call__),
        "sum": torch.Tensor.__add__,
        "compose": compose.compose,
        "build": vars(Mechanism)["build"],
        "train": transom.train,
        "module": sys.modules["transom.core.attention"],
        "added": (hasattr(torch, "flash"), hasattr(transom, "best"), "__add__" in vars(torch.Tensor)),
    }


def refused(registry: Registry) -> str:
    """Return the error that asking for the bad package gives, twice the same."""
    said = set()
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            registry.get("attention", "acme/ring")
        said.add(str(caught.value))
    assert len(said) == 1
    message = said.pop()
    assert message.startswith("package 'acme' (acme-parts, acme_module) ")
    return message


@pytest.mark.parametrize("late", [False, True], ids=["import", "hook"])
@pytest.mark.parametrize(("body", "says"), FAULTS)
def test_a_fault_is_named_undone_and_nobody_elses(install: Install, body: str, says: str, late: bool) -> None:
    indented = body.replace("\n", "\n    ")
    source = f"{GOOD}\ndef transom_components():\n    {indented}\n    return [RingAttention]" if late else body + GOOD
    install("acme", source, distribution="acme-parts")
    install("good", GOOD)
    registry, before, loaded = fresh(), state(), set(sys.modules)
    assert says in refused(registry)
    assert state() == before
    assert "acme_module" not in set(sys.modules) - loaded
    assert registry.get("attention", "good/ring").name == "ring"
    assert registry.get("norm", "rms").name == "rms"
    assert says in refused(fresh())


@pytest.mark.parametrize("body", ["while True: pass", "import time; time.sleep(4)"])
@pytest.mark.parametrize("late", [False, True], ids=["import", "hook"])
def test_a_package_that_hangs(install: Install, monkeypatch: pytest.MonkeyPatch, body: str, late: bool) -> None:
    monkeypatch.setenv("TRANSOM_PLUGIN_SECONDS", "0.7")
    body = "import torch; torch.set_default_dtype(torch.float64)\n" + body
    install("acme", f"{GOOD}\ndef transom_components():\n    {body.splitlines()[1]}" if late else body, "acme-parts")
    install("good", GOOD)
    registry, before = fresh(), state()
    says = refused(registry)
    assert "was still loading after 0.7 s (TRANSOM_PLUGIN_SECONDS sets how long it may)" in says
    assert ("sets torch's default dtype" in says) is not late
    assert state() == before
    assert registry.get("attention", "good/ring").name == "ring"


@pytest.mark.parametrize("value", ["soon", "0", "-3", "nan", "1e300"])
def test_a_limit_that_is_none(install: Install, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRANSOM_PLUGIN_SECONDS", value)
    install("acme", GOOD)
    with pytest.raises(PluginError, match=f"TRANSOM_PLUGIN_SECONDS is '{value}': it should be a number of seconds"):
        fresh().get("attention", "acme/ring")


def test_the_package_in_the_readme_is_the_one_that_is_tested(root: Path) -> None:
    code = (
        (root / "README.md").read_text().partition("## Write an attention")[2].split("```python\n")[1].split("```")[0]
    )
    assert code == (root / "tests" / "third_party" / "acme_ring" / "acme_ring.py").read_text()
    assert "\nTRANSOM_API = 1\n" in code
