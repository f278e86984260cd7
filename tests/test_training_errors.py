"""Training refuses what can't work before it makes a run folder, and says what is wrong with one that is there."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from transom.errors import CheckpointError, DataError, SpecError, TransomError
from transom.registry.spec import Spec, dump_spec, parse_spec
from transom.training import evaluate, load, read_run, train
from transom.training.disk import locked
from transom.training.text import writing


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Return a folder of documents of random letters."""
    draw = random.Random(8)
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text("".join(draw.choices("abcd ", k=150)))
    return folder


def decoder(text: Path, *overrides: str, **train: Any) -> Spec:
    """Return the spec of a very small language model."""
    plain = {
        "name": "tiny",
        "model": {
            "topology": "decoder",
            "d_model": 8,
            "max_seq_len": 21,
            "embedding": {"kind": "token", "vocab_size": 262},
            "position": "none",
            "layer": {"norm": "rms", "attention": {"kind": "full", "n_heads": 1}, "feedforward": "none"},
            "layers": [{"repeat": 1}],
            "norm": "rms",
            "head": "lm",
        },
        "objective": "causal_lm",
        "data": {
            "kind": "text",
            "path": str(text),
            "seq_len": 17,
            "hold_out": 0.2,
            "tokenizer": {"kind": "bpe", "vocab_size": 262},
        },
        "train": {"steps": 4, "batch_size": 2, "checkpoint_every": 1, "eval_every": 0, "keep_checkpoints": 3, **train},
    }
    return parse_spec(plain, overrides)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ["train.freeze=[decoder.layer.*]"],
            SpecError,
            "train.freeze: 'decoder.layer.*' matches no parameter; near it",
        ),
        (["train.memory_gb=1e-5"], SpecError, "train.memory_gb: a step holds"),
        (["train.freeze=['*']"], SpecError, "train.freeze: leaves nothing to learn"),
        (["train.batch_size=5000"], DataError, "train.batch_size: 5000"),
        (["data.seq_len=22"], SpecError, "data.seq_len: 22 is more than the model's max_seq_len: 21"),
        (
            ["model.embedding.vocab_size=260", "model.head.vocab_size=262"],
            SpecError,
            "embedding: vocab_size: 260 is less than the 262 tokens",
        ),
        (["model.head.vocab_size=261"], SpecError, "head: scores 261 tokens, and the data has 262"),
        (["data.path=nowhere"], DataError, "data.path: 'nowhere' is no file or folder"),
        (["train.init=nowhere"], CheckpointError, "nowhere: is no run: it has no spec.yaml"),
        (["objective=none"], SpecError, "objective: is missing"),
        (["data=none"], SpecError, "data: is missing"),
    ],
)
def test_nothing_is_written_for_what_cannot_be_trained(
    text: Path, tmp_path: Path, overrides: list[str], error: type[TransomError], message: str
) -> None:
    with pytest.raises(error) as raised:
        train(decoder(text, *overrides), tmp_path / "runs" / "new")
    assert message in str(raised.value)
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_what_is_not_here_is_said(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match=r"train\.device: PyTorch sees no CUDA device here: use cpu or auto"):
        train(decoder(text, device="cuda"), tmp_path / "run")
    monkeypatch.setattr("transom.training.setup.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"train\.tensorboard: TensorBoard is not installed: pip install tensorboard"):
        train(decoder(text, tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_spec_is_refused_line_by_line(text: Path, tmp_path: Path) -> None:
    train(decoder(text), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as raised:
        train(decoder(text, lr=0.25), tmp_path / "run")
    lines = str(raised.value).splitlines()
    assert lines[0].endswith("run: holds a run of another spec; choose another folder, or undo the difference:")
    assert [line for line in lines[3:] if line[0] in "+-"] == ["-  lr: 0.001", "+  lr: 0.25"]
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_other_folders_and_files_are_left_alone(text: Path, tmp_path: Path) -> None:
    for path in (text, text / "0.txt"):
        with pytest.raises(CheckpointError, match="is there already, and is no run"):
            train(decoder(text), path)
    (tmp_path / "empty").mkdir()
    assert train(decoder(text), tmp_path / "empty").step == 4


def test_a_run_in_use_is_refused(text: Path, tmp_path: Path) -> None:
    train(decoder(text), tmp_path / "run")
    # The lock belongs to the opened file, so that this process stands for another one.
    with locked(tmp_path / "run" / ".lock", "x"):
        with pytest.raises(CheckpointError, match="run: another process is training there: wait for it, or stop it"):
            train(decoder(text), tmp_path / "run")
        assert evaluate(tmp_path / "run")["loss"] > 0
    assert train(decoder(text), tmp_path / "run").step == 4


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 4] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer.json", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_never_used(text: Path, tmp_path: Path, name: str, damage: Any) -> None:
    run = tmp_path / "run"
    train(decoder(text), run)
    damage(run / "checkpoints" / "step-00000004" / name)
    with pytest.raises(CheckpointError) as raised:
        train(decoder(text), run)
    first, second = str(raised.value).splitlines()
    assert f"step-00000004/{name}: is damaged" in first or "is damaged: its SHA-256 is" in first
    assert second.endswith("step-00000003 is whole: to go on from there, remove the later ones (step-00000004)")

    weights = load(run).state_dict()
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    assert train(decoder(text), run).step == 4
    assert all(torch.equal(tensor, weights[key]) for key, tensor in load(run).state_dict().items())


def test_without_a_whole_checkpoint_there_is_no_way_on(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(decoder(text), run)
    for step in (run / "checkpoints").iterdir():
        flip(step / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match="no older one is whole: start a new run"):
        train(decoder(text), run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="has weights but no checkpoint to go on from"):
        train(decoder(text), run)


def test_weights_that_do_not_fit_are_refused(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(decoder(text), run)
    with pytest.raises(CheckpointError, match=r"decoder\.norm\.weight is \(8,\), in the model \(9,\)"):
        train(decoder(text, "model.d_model=9", init=str(run)), tmp_path / "wider")
    with pytest.raises(CheckpointError, match=r"is missing"):
        train(decoder(text, "model.layers=[{repeat: 2}]", init=str(run)), tmp_path / "deeper")

    file = run / "model" / "model.safetensors"
    flip(file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        load(run)
    save_file(load_file(file), file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        load(run)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: can't be read as safetensors"):
        load(run)
    file.unlink()
    with pytest.raises(CheckpointError, match="has no weights yet"):
        load(run)


def test_a_wrong_name_of_a_run_gets_the_right_one(text: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-1").mkdir()
    (tmp_path / "tiny-1" / "spec.yaml").write_text(dump_spec(decoder(text)))
    with pytest.raises(CheckpointError) as raised:
        read_run(tmp_path / "tiny1")
    assert str(raised.value).endswith(f"tiny1: is no run: it has no spec.yaml (did you mean {tmp_path / 'tiny-1'}?)")


def test_a_model_that_gives_no_next_tokens_writes_no_text(text: Path, tmp_path: Path) -> None:
    spec = decoder(text, "model.topology=encoder", "objective=masked_lm")
    train(spec, tmp_path / "run")
    with pytest.raises(CheckpointError, match="can't write text: topology 'encoder' gives no next tokens"):
        writing(tmp_path / "run", ["abc"])


def test_a_size_is_not_left_out_where_no_step_can_be_estimated(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*given: Any) -> Any:
        raise DataError("it reads no zeros")

    monkeypatch.setattr("transom.registry.estimate.longest_batch", unknown)
    said = r"train\.memory_gb: what a step holds is not known: no estimate of training: it reads no zeros"
    with pytest.raises(SpecError, match=said):
        train(decoder(text, memory_gb=1.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
