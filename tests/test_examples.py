"""The example packages: installed by pip as anyone's would be, they train, decode, export and keep to the paper."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import onnx
import pytest
from safetensors.torch import load_file
from texts import write_texts

EXAMPLES = ("differential", "recurrence")
# What a spec of an example is trained with here, instead of the sample that it names.
SMALL = [
    "data.path=text", "data.seq_len=19", "data.hold_out=0.25", "data.tokenizer.vocab_size=270",
    "model.embedding.vocab_size=270", "model.d_model=24", "model.max_seq_len=60", "model.layer.feedforward.d_ff=24",
    "model.layers.0.repeat=1", "train.steps=3", "train.batch_size=2", "train.warmup=0", "train.eval_every=3",
    "train.checkpoint_every=3", "train.threads=1",
]  # fmt: skip
# Command lines, one after the other in a process that imports torch once; a line of two dashes ends what each prints.
COMMANDS = """
import json, sys
from transom.cli import main

for args in json.loads(sys.argv[1]):
    try:
        main(args)
    except SystemExit as ended:
        if ended.code:
            raise
    print("--", flush=True)
"""
# What a package's own tests say of the paper; then abilities, values and gradients, the receptive field, steps, packed
# documents and order. The other of its tests asks for all rows, which takes longer.
PROVES = """
import sys
import pytest
from transom import conformance

assert pytest.main(["-q", "-p", "no:cacheprovider", "-k", "paper", sys.argv[1]]) == 0
report = conformance.check(sys.argv[2], rows=(0, 2, 6, 10, 12, 16))
print(report.table())
assert report.passed
"""


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the examples by pip, each from its folder alone, and return where they are."""
    folder = tmp_path_factory.mktemp("examples")
    sources = [str(shutil.copytree(root / "examples" / name, folder / name)) for name in EXAMPLES]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    target = ["--no-build-isolation", "--target", str(folder / "site"), *sources]
    done = subprocess.run([*pip, *target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> Path:
    """Return the folder of an example, whose spec, and some text, are in the folder that commands run in."""
    folder: Path = root / "examples" / request.param
    shutil.copy(folder / "spec.yaml", tmp_path)
    write_texts(tmp_path)
    return folder


def child(site: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, as a process that has the examples."""
    return subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_short_and_knows_the_authors_names_alone(example: Path) -> None:
    lines = 0
    for file in example.rglob("*.py"):
        text = file.read_text()
        lines += sum(1 for line in text.splitlines() if line.strip() and "src" in file.parts)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("transom.") for alias in node.names), file
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "transom":
                assert node.module == "transom.core" or (file.parent.name == "tests" and node.module == "transom"), file
    assert 0 < lines < 150


def test_it_trains_exports_and_writes(site: Path, example: Path, tmp_path: Path) -> None:
    prompt = ["3 and", "--max-new-tokens", "12"]
    lines = [
        ["train", "spec.yaml", "-o", "run", *SMALL],
        ["generate", "run", *prompt],
        ["export", "run", "-o", "out"],
        ["generate", "out", *prompt],
    ]
    done = child(site, tmp_path, "-c", COMMANDS, json.dumps(lines))
    assert done.returncode == 0, done.stderr
    trained, written, exported, again = done.stdout.split("--\n")[:-1]
    assert (trained, exported.splitlines()[-1], again) == ("run\n", "out", written)


MODULES = """
hf:
  modules:
    decoder.embedding: embed_tokens
    decoder.layers.{layer}.attention: layers.{layer}.self_attn
    decoder.layers.{layer}.attention_norm: layers.{layer}.self_attn_layer_norm
    decoder.layers.{layer}.feedforward: layers.{layer}.ffn
    decoder.layers.{layer}.feedforward_norm: layers.{layer}.final_layer_norm
    decoder.norm: layer_norm
"""


def test_differential_brings_its_layout_and_its_lowering(site: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text((root / "examples" / "differential" / "spec.yaml").read_text() + MODULES)
    write_texts(tmp_path)
    lines = [
        ["train", "spec.yaml", "-o", "run", *SMALL],
        ["export", "run", "--to", "hf", "-o", "published"],
        ["import", "published", "--spec", "run/spec.yaml", "-o", "again"],
        ["export", "again", "-o", "out"],
    ]
    done = child(site, tmp_path, "-c", COMMANDS, json.dumps(lines))
    assert done.returncode == 0, done.stderr
    own = load_file(tmp_path / "run" / "model" / "model.safetensors")
    back = load_file(tmp_path / "again" / "model" / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in own.items()} == {n: t.tolist() for n, t in back.items()}
    published = load_file(tmp_path / "published" / "model.safetensors")
    factors = own["decoder.layers.2.attention.mechanism.factors"]
    for row, name in enumerate(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")):
        assert published[f"layers.2.self_attn.{name}"].tolist() == factors.flatten(0, 1)[row].tolist()
    assert published["layers.0.self_attn.out_proj.weight"].shape == (24, 24)
    said = json.loads((tmp_path / "out" / "transom.json").read_text())["layers"]
    assert said["decoder.layers.0.attention.mechanism"] == "attention pairs: narrow, its lowering for onnx"
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert sum(node.op_type == "Attention" for node in graph.node) == 4


def test_it_is_what_the_paper_says_and_conforms(site: Path, example: Path, tmp_path: Path) -> None:
    package = tomllib.loads((example / "pyproject.toml").read_text())["project"]["entry-points"]["transom"]
    done = child(site, tmp_path, "-c", PROVES, str(example / "tests"), *package)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert done.stdout.count("passed  ") == 6
