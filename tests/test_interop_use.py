"""Weights of Hugging Face folders in use: components of others, the command line, memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from interop_models import LLAMA, drawn, llama_weights, put, same
from safetensors.torch import load_file
from texts import write_texts

import transom
from transom.errors import CheckpointError
from transom.interop import export_checkpoint, import_run
from transom.interop.families import _by_type, family_of
from transom.registry import manager
from transom.registry.marks import Node, Problem
from transom.registry.sources import families, read_file
from transom.registry.spec import parse_spec

ACME = """
import torch
from transom.core.moves import Interleave, Rows, Take
from transom.plugins.attention.full import FullAttention
from transom.plugins.norm.rms import RmsNorm

TRANSOM_API = 1


class ShiftedNorm(RmsNorm):
    "Published in pairs, after a row that means nothing."

    def layouts(self):
        width = self.shape[0]
        return {"acme": {"weight": Interleave(Rows(Take("g"), 1, width, width + 1), 1, 4)}}


class SinkAttention(FullAttention):
    "Has a parameter, and a layout that has another name for it."

    def __init__(self, config, site):
        super().__init__(config, site)
        self.sinks = torch.nn.Parameter(torch.empty(config.n_heads))
        self.reset_parameters()

    def reset_parameters(self):
        torch.nn.init.zeros_(self.sinks)

    def layouts(self):
        return {"fused": {"sinks": Take("sink_logits")}, "acme": {"out.weight": Take("to_out")}}


def transom_components():
    return [ShiftedNorm, SinkAttention]
"""


@pytest.fixture
def acme(install: Callable[..., Path]) -> Iterator[None]:
    """Have the package installed for a test."""
    install("acme", ACME)
    manager.default.cache_clear()
    yield
    manager.default.cache_clear()


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("layout", "given"),
    [
        ("separate", {"q_proj.weight": (60, 48), "k_proj.weight": (20, 48), "v_proj.weight": (20, 48),
                      "o_proj.weight": (48, 60), "sinks": (6,)}),
        ("fused", {"qkv.weight": (100, 48), "o_proj.weight": (48, 60), "sink_logits": (6,)}),
        ("acme", {"q_proj.weight": (60, 48), "k_proj.weight": (20, 48), "v_proj.weight": (20, 48),
                  "to_out": (48, 60), "sinks": (6,)}),
    ],
)  # fmt: skip
def test_components_of_others_bring_their_own(tmp_path: Path, layout: str, given: dict[str, tuple[int, ...]]) -> None:
    """A mechanism's entries are laid over those of the shell around it, and a norm maps itself."""
    theirs = {name: tensor for name, tensor in llama_weights().items() if "self_attn" not in name}
    theirs |= drawn({f"model.layers.{layer}.self_attn.{name}": given[name] for layer in range(3) for name in given})
    theirs["model.norm.g"] = torch.cat([torch.zeros(1), theirs.pop("model.norm.weight")])
    place = "model.layers.{layer}.self_attn"
    text = LLAMA.replace(place, f"{{at: '{place}', layout: {layout}}}").replace("kind: full", "kind: acme/sink")
    spec = parse_spec(text, ["model.norm=acme/shifted"])
    run = import_run(put(tmp_path / "hf", theirs), spec, tmp_path / "run")
    own = transom.load(run).state_dict()
    assert torch.equal(own["decoder.norm.weight"][:5], theirs["model.norm.g"][1:][torch.tensor([0, 2, 1, 3, 4])])
    sinks = theirs["model.layers.2.self_attn." + ("sink_logits" if layout == "fused" else "sinks")]
    assert torch.equal(own["decoder.layers.2.attention.mechanism.sinks"], sinks)
    same(load_file(export_checkpoint(run, tmp_path / "back") / "model.safetensors"), theirs)


TEXT = """
objective: causal_lm
data: {kind: text, path: text, seq_len: 19, hold_out: 0.25, tokenizer: {kind: bpe, vocab_size: 300}}
train: {steps: 2, batch_size: 2, eval_every: 2, checkpoint_every: 2, threads: 1}
"""


# Command lines, one after the other in a process that imports torch once; a line of two dashes ends what each prints.
COMMANDS = """
import json, sys
from transom.cli import main

for args in json.loads(sys.argv[1]):
    try:
        main(args)
    except SystemExit as ended:
        print(f"-- {ended.code}", flush=True)
"""


def test_the_command_line_goes_out_in_and_on(tmp_path: Path) -> None:
    """A run that was trained here goes out and in again, and is as good as before to every command."""
    write_texts(tmp_path)
    (tmp_path / "spec.yaml").write_text(LLAMA.replace("vocab_size: 97", "vocab_size: 300") + TEXT)
    lines = [
        ["train", "spec.yaml", "-o", "runs/a"],
        ["export", "runs/a", "--to", "hf", "-o", "hf"],
        ["import", "hf", "--spec", "spec.yaml", "-o", "runs/b", "train.seed=1"],
        *([*words[:1], run, *words[1:]] for words in (["eval"], ["generate", "1 and"]) for run in ("runs/a", "runs/b")),
        ["export", "runs/b", "-o", "out"],
        ["import", "hf", "--spec", "tiny_gpt", "-o", "runs/c"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(lines)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    printed = re.split(r"-- (\d)\n", done.stdout)
    assert printed[1::2] == ["0"] * 8 + ["2"] if done.returncode == 0 else pytest.fail(done.stderr)
    _, out, back, eval_a, eval_b, text_a, text_b, *_ = printed[::2]
    assert (out, back) == ("hf\n", "runs/b\n")
    assert eval_a == eval_b
    assert text_a == text_b
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == ["model.safetensors", "tokenizer.json"]
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert "hf: is missing: it says where the modules stand in a Hugging Face checkpoint" in done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "b"]


PEAK = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transom.interop import import_checkpoint, import_run
from transom.interop.mapping import mapping
from transom.registry.compose import compose
from transom.registry.spec import parse_spec


def held(which):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return 1024 * int(line.split()[1])


folder, act = Path(sys.argv[1]), sys.argv[2]
wider = ["model.d_model=512", "model.layers.0.repeat=24", "model.layer.feedforward.d_ff=1024"]
spec = parse_spec(sys.argv[3], [*wider, "model.layer.attention={n_heads: 8, n_kv_heads: 2, head_dim: 64}"])
model = compose(spec, "meta")
shapes = {name: shape for item in mapping(model, spec) for name, shape in item.published.items()}
# What the first import makes Python and torch load is there before.
small = parse_spec(sys.argv[3])
few = {name: shape for item in mapping(compose(small), small) for name, shape in item.published.items()}
first = folder / f"first-{act}"
first.mkdir()
save_file({name: torch.zeros(shape) for name, shape in few.items()}, first / "model.safetensors")
import_run(first, small, first / "run")
import_checkpoint(first, small)
print(4 * sum(map(torch.Size.numel, map(torch.Size, shapes.values()))))
before = held("VmRSS")
if act == "write":
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
elif act == "run":
    import_run(folder, spec, folder / "run")
else:
    _, model = import_checkpoint(folder, spec)
print(held("VmHWM") - before)
"""


def test_memory_stays_near_that_of_the_model(tmp_path: Path) -> None:
    """In processes of their own: the most that is held, above what was before, with a model of 200 MB."""
    # What is freed goes back at once: else the heap's holes count too, more of them in one process than in the next.
    returning = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    for act in ("write", "run", "model"):
        args = [sys.executable, "-c", PEAK, str(tmp_path), act, LLAMA]
        done = subprocess.run(args, capture_output=True, text=True, check=False, env=returning)
        assert done.returncode == 0, done.stderr
        size, peak = map(int, done.stdout.split())
        assert size > 200e6
        assert 0.9 * size < peak < 1.2 * size, (act, size, peak)


def test_a_family_is_found_in_the_files_that_name_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    known, parsed = _by_type(families()), list[Path]()

    def parse(path: Path, problems: list[Problem]) -> Node:
        parsed.append(path)
        return read_file(path, problems)

    monkeypatch.setattr("transom.interop.families.read_file", parse)
    assert len(known) > 20
    for model_type, readers in known.items():
        for name, architectures in readers:
            for architecture in architectures:
                first = next(other for other, there in readers if architecture in there)
                assert family_of({"model_type": model_type, "architectures": [architecture]}, Path("c")) == first, name
    parsed.clear()
    assert family_of({"model_type": "gpt2"}, Path("c")) == "gpt2"
    assert len(parsed) < len(families()) / 4
    with pytest.raises(CheckpointError, match=r"no family reads 'gptt2' \(did you mean 'gpt2'\?\)"):
        family_of({"model_type": "gptt2"}, Path("c"))
