"""Packages over time: options and weights with new names, options that are gone, and runs that know what made them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import transom
from transom.errors import CheckpointError, PluginError, SpecError, TransomWarning
from transom.registry import manager
from transom.registry.schema import schema
from transom.registry.spec import dump_spec
from transom.registry.versions import MADE_BY, made_by
from transom.registry.weights import WEIGHTS, digest
from transom.training.run import read_run

Install = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]

# The first version, with an option `grow` and a parameter `gain`; what later ones change is marked by comments.
SCALE = """
from dataclasses import dataclass
import torch
from torch import nn
from transom.core.norm import Norm

TRANSOM_API = 1

class ScaleNorm(Norm):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        grow: float = 1.0
        clip: float = 9.0

    # history
    def __init__(self, config, site):
        super().__init__(config, site)
        self.start = config.grow
        self.gain = nn.Parameter(torch.empty(site.d_model))

    def reset_parameters(self):
        nn.init.constant_(self.gain, self.start)

    def forward(self, x):
        return x * self.gain

    reference = forward

def transom_components():
    return [ScaleNorm]
"""
LATER = (
    SCALE.replace("grow: float = 1.0", "growth: float = 1.0")
    .replace("config.grow", "config.growth")
    .replace("clip: float = 9.0", "sharp: bool = False")
    .replace("self.gain", "self.weight")
    .replace(
        "# history",
        "since = {'sharp': '2.0'}; renamed = {'grow': 'growth'}; gone = {'clip': 'it had no effect, leave it out'}\n"
        "    renamed_weights = {'gain': 'weight'}",
    )
)
SPEC = """
name: aging
model:
  topology: decoder
  d_model: 12
  max_seq_len: 24
  embedding: {kind: token, vocab_size: 262}
  position: rope
  layer: {norm: {kind: acme/scale, grow: 0.5}, attention: {kind: full, n_heads: 3}, feedforward: {kind: mlp, d_ff: 20}}
  layers: [{repeat: 2}]
  norm: rms
  head: lm
objective: causal_lm
data: {kind: text, path: TEXTS, seq_len: 17, hold_out: 0.3, tokenizer: {kind: bpe, vocab_size: 262}}
train: {steps: 4, batch_size: 2, lr: 1.0e-2, checkpoint_every: 2, eval_every: 4, threads: 1}
"""


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    """Let each test find what it installs."""
    manager.default.cache_clear()
    yield
    manager.default.cache_clear()


@pytest.fixture
def old_spec(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / f"texts/{number}.txt").write_text(f"the {number} cats sat on the {number * 7} mats. " * 9)
    path = tmp_path / "old.yaml"
    path.write_text(SPEC.replace("TEXTS", str(tmp_path / "texts")))
    return path


def upgrade(site: Path) -> None:
    """Put version 2.0 of the package, with other names, in place of the first."""
    (site / "acme_module.py").write_text(LATER)
    (site / "acme_parts-1.2.dist-info").rename(site / "acme_parts-2.0.dist-info")
    metadata = site / "acme_parts-2.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.2", "2.0"))
    del sys.modules["acme_module"]
    importlib.invalidate_caches()
    manager.default.cache_clear()


def test_an_old_option_goes_on_working_with_a_note(install: Install, old_spec: Path, tmp_path: Path) -> None:
    install("acme", LATER)
    spec = transom.load_spec(old_spec)
    norm = spec.model.stacks["decoder"].layers[1].norm
    assert norm is not None
    assert norm.config.growth == 0.5
    assert spec.dropped == (f"model.layer.norm.grow: 0.5 ({old_spec}:9:42) is called growth now: write growth",)
    assert "growth: 0.5" in dump_spec(spec)
    assert "grow:" not in dump_spec(spec)
    assert transom.load_spec(old_spec, ["model.layer.norm.growth=3"]).model.stacks["decoder"].layers[0].norm != norm
    child = tmp_path / "child.yaml"
    child.write_text("extends: old.yaml\nmodel: {layer: {norm: {grow: 0.25}}}")
    found = transom.load_spec(child, ["model.norm={kind: acme/scale, grow: 7}"])
    assert found.model.stacks["decoder"].layers[0].norm.config.growth == 0.25  # type: ignore[union-attr]
    assert found.model.stacks["decoder"].norm.config.growth == 7  # type: ignore[union-attr]
    swapped = transom.load_spec(old_spec, ["model.layer.norm.kind=layer"])
    assert swapped.model.stacks["decoder"].layers[0].norm.name == "layer"  # type: ignore[union-attr]


def test_the_schema_says_since_when(install: Install) -> None:
    install("acme", LATER)
    options = next(one for one in schema()["$defs"]["norm"]["anyOf"] if "acme/scale" in str(one.get("properties")))
    assert options["properties"]["sharp"]["description"] == "since 2.0"
    assert "since" not in str(options["properties"]["growth"])


def test_both_names_and_gone_options_are_refused_where_they_stand(install: Install, old_spec: Path) -> None:
    install("acme", LATER)
    old_spec.write_text(old_spec.read_text().replace("grow: 0.5", "grow: 0.5, growth: 0.5, clip: 3.0"))
    with pytest.raises(SpecError) as caught:
        transom.load_spec(old_spec)
    assert str(caught.value).splitlines() == [
        f"{old_spec}:9:36: model.layer.norm.grow: is called 'growth' now, which is given too: leave this one out",
        f"{old_spec}:9:60: model.layer.norm.clip: option 'clip' is gone: it had no effect, leave it out",
    ]


def test_an_old_run_loads_goes_on_and_says_what_is_new(install: Install, old_spec: Path, tmp_path: Path) -> None:
    site, run = install("acme", SCALE, distribution="acme-parts"), tmp_path / "run"
    spec = transom.load_spec(old_spec)
    transom.train(spec, run)
    assert json.loads((run / MADE_BY).read_text()) == made_by(spec)
    assert made_by(spec)["acme"] == "acme-parts 1.2"
    assert list(made_by(spec)) == ["acme", "transom", "torch", "python"]
    ids = torch.randint(262, (2, 13))
    before = transom.load(run)(input_ids=ids).logits
    saved = (run / "spec.yaml").read_text()
    (run / "spec.yaml").write_text("".join(line for line in saved.splitlines(True) if "clip" not in line))

    upgrade(site)
    with pytest.warns(TransomWarning) as caught:
        after = transom.load(run)(input_ids=ids).logits
    assert [str(one.message) for one in caught] == [
        f"{run}: was made with acme-parts 1.2; here: acme-parts 2.0",
    ]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TransomWarning)
        transom.load(run)
    # Goes on from a checkpoint whose weights and moments have the old names, by a spec with the old option or the new.
    last, kept = run / "checkpoints" / "step-00000004", (run / "spec.yaml").read_text()
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    with pytest.warns(TransomWarning, match="was made with acme-parts 1.2"):
        transom.train(transom.load_spec(old_spec), run)
    assert (run / "spec.yaml").read_text() == kept
    assert not [name for name in load_file(run / WEIGHTS) if name.endswith(".gain")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TransomWarning)
        torch.testing.assert_close(transom.load(run)(input_ids=ids).logits, before, rtol=0, atol=0)


def test_a_name_with_a_new_meaning_is_left_alone(install: Install, old_spec: Path, tmp_path: Path) -> None:
    source = LATER.replace("return x * self.weight", "return x * self.weight + self.gain")
    source = source.replace("self.weight = nn", "self.gain = nn.Parameter(torch.empty(12))\n        self.weight = nn")
    source = source.replace("nn.init.con", "nn.init.zeros_(self.gain)\n        nn.init.con")
    install("acme", source)
    run = tmp_path / "run"
    transom.train(transom.load_spec(old_spec), run)
    tensors = load_file(run / WEIGHTS)
    gains = {name: torch.full_like(tensor, 5.0) for name, tensor in tensors.items() if name.endswith(".gain")}
    assert len(gains) == 4
    save_file(tensors | gains, run / WEIGHTS, {"format": "pt", "sha256": digest(tensors | gains)})
    loaded = transom.load(run).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in (tensors | gains).items())


def test_a_package_that_is_missing_is_named_with_its_version(
    install: Install, old_spec: Path, tmp_path: Path, command: Command
) -> None:
    site, run = install("acme", SCALE, distribution="acme-parts"), tmp_path / "run"
    transom.train(transom.load_spec(old_spec), run)
    says = f"{run}: was made with 'acme' (acme-parts 1.2), which is not installed here: install it"
    (site / "acme_parts-1.2.dist-info" / "entry_points.txt").unlink()
    manager.default.cache_clear()
    for use in (transom.load, read_run, lambda place: transom.export(place, tmp_path / "out")):
        with pytest.raises(PluginError) as caught:
            use(run)
        assert str(caught.value) == says
    done = command("generate", "run", "the", PYTHONPATH=str(site))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", says.replace(str(run), "run") + "\n")


def test_the_command_line_says_in_a_line_what_differs(
    install: Install, old_spec: Path, tmp_path: Path, command: Command
) -> None:
    site, run = install("acme", SCALE, distribution="acme-parts"), tmp_path / "run"
    transom.train(transom.load_spec(old_spec), run)
    record = json.loads((run / MADE_BY).read_text())
    (run / MADE_BY).write_text(json.dumps(record | {"acme": "acme-parts 0.9", "torch": "torch 1.0"}))
    done = command("generate", "run", "the", "--max-new-tokens", "2", PYTHONPATH=str(site))
    assert done.returncode == 0
    assert done.stderr == (
        f"run: was made with acme-parts 0.9 and torch 1.0; here: acme-parts 1.2 and {record['torch']}\n"
    )


@pytest.mark.parametrize("text", ["{", "[1]", '{"torch": 3}'])
def test_a_damaged_record_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("")
    (tmp_path / MADE_BY).write_text(text)
    with pytest.raises(CheckpointError, match=MADE_BY):
        transom.load(tmp_path)
