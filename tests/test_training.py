"""Training: every topology learns, the parts of a step add up, and what comes out is what was asked for."""

from __future__ import annotations

import json
import math
import random
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from transom.errors import TrainingError
from transom.generation import Sampling, generate
from transom.registry.settings import TrainSettings
from transom.registry.spec import Spec, parse_spec
from transom.training import Event, evaluate, load, read_run, train
from transom.training.events import Evaluated, Initialised, Saved, Started, Stepped, Stopped
from transom.training.metrics import read_metrics
from transom.training.schedule import learning_rate
from transom.training.text import writing

WORDS = ["ape", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
STACK = {
    "embedding": {"kind": "token", "vocab_size": 300},
    "position": "rope",
    "layer": {
        "norm": "rms",
        "attention": {"kind": "full", "n_heads": 2},
        "feedforward": {"kind": "glu", "d_ff": 40},
    },
    "layers": [{"repeat": 2}],
    "norm": "rms",
}
TRAIN = {"steps": 6, "batch_size": 4, "lr": 5e-3, "eval_every": 0, "checkpoint_every": 0, "log_every": 1}
TOKENIZER = {"kind": "bpe", "vocab_size": 290}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Return a folder of documents in which each word decides the next."""
    draw = random.Random(3)
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(24):
        first = draw.randrange(len(WORDS))
        words = (WORDS[(first + place * place) % len(WORDS)] for place in range(60))
        (folder / f"{number}.txt").write_text(" ".join(words))
    return folder


def decoder(text: Path, *overrides: str, **train: Any) -> Spec:
    """Return a tiny language model's spec."""
    plain = {
        "name": "tiny",
        "model": {"topology": "decoder", "d_model": 16, "max_seq_len": 27, **STACK, "head": {"kind": "lm"}},
        "objective": "causal_lm",
        "data": {"kind": "text", "path": str(text), "seq_len": 23, "hold_out": 0.2, "tokenizer": TOKENIZER},
        "train": {**TRAIN, **train},
    }
    return parse_spec(plain, overrides)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return a run's last good weights."""
    return load(run).state_dict()


def losses(run: Path) -> list[float]:
    """Return the loss of each logged step."""
    return [line["loss"] for line in read_metrics(run) if "loss" in line]


def test_a_run_tells_and_leaves_what_it_did(text: Path, tmp_path: Path) -> None:
    out, events = tmp_path / "runs" / "a", list[Event]()
    spec = decoder(text, steps=7, log_every=3, eval_every=5, checkpoint_every=2, keep_checkpoints=2)
    run = train(spec, out, report=events.append)

    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 3, 6, 7]
    assert [event.step for event in events if isinstance(event, Evaluated)] == [5, 7]
    assert [event.step for event in events if isinstance(event, Saved)] == [2, 4, 6, 7]
    assert isinstance(events[0], Started)
    assert events[0].parameters == events[0].trained == sum(p.numel() for p in load(run).parameters())
    assert events[-1] == Stopped(7, "done")
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000006", "step-00000007"]
    assert {path.name for path in out.iterdir()} == {
        "spec.yaml", "made_by.json", "metrics.jsonl", "checkpoints", "model", "loss.png", "data.json", "tokenizer.json",
        ".lock",
    }  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 5, 6, 7, 7]
    assert set(lines[0]) == {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second"}
    assert {name.removeprefix("eval_"): value for name, value in lines[-1].items() if name != "step"} == run.metrics
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert run.spec == spec
    assert run.step == 7
    assert list(tmp_path.glob("runs/.*")) == []


def test_evaluate_measures_what_the_run_reports(text: Path, tmp_path: Path) -> None:
    run = train(decoder(text, eval_every=6), tmp_path / "run")
    figures = evaluate(run.folder)
    assert figures == run.metrics
    assert figures["perplexity"] == math.exp(figures["loss"])

    # By hand: one document at a time in float64, each of its tokens once, in the rows that it was cut to.
    model, tokenizer = load(run).double(), run.tokenizer
    assert tokenizer is not None
    from transom.data.survey import is_held_out

    nats = targets = hits = read = 0.0
    for path in sorted(text.iterdir()):
        if not is_held_out(path.name, 0.2):
            continue
        ids = torch.tensor([[tokenizer.vocabulary.bos, *tokenizer.encode(path.read_text()), tokenizer.vocabulary.eos]])
        read += len(path.read_bytes())
        for start in range(0, ids.shape[1] - 1, 23):
            row = ids[:, start : start + 24]
            logits = model(input_ids=row[:, :-1]).logits[0]
            nats += F.cross_entropy(logits, row[0, 1:], reduction="sum").item()
            targets += row.shape[1] - 1
            hits += (logits.argmax(-1) == row[0, 1:]).sum().item()
    assert figures["loss"] == pytest.approx(nats / targets, rel=1e-5)
    assert figures["accuracy"] == pytest.approx(hits / targets)
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / read, rel=1e-5)


def test_training_is_plain_adamw_on_the_mean_loss(text: Path, tmp_path: Path) -> None:
    """A loop written by hand, with its own decay, clipping and warm-up, ends at the same weights."""
    from transom.data import prepare
    from transom.registry.compose import build_data, compose

    spec = decoder(text, steps=5, warmup=2, schedule="linear", grad_clip=0.7, weight_decay=0.2, batch_size=3)
    train(spec, tmp_path / "run")
    model = compose(spec)
    dataset = prepare(build_data(spec), tmp_path / "run", lookahead=1, seed=0)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))
    for step, part in enumerate((1 / 2, 1, 1 - 0.3, 1 - 0.6, 0.1)):
        batch = {name: torch.from_numpy(array) for name, array in dataset.batch(step, 3).items()}
        ids, keep = batch["input_ids"], torch.ones_like(batch["input_ids"], dtype=torch.bool)
        inputs = {name: tensor[:, :-1] for name, tensor in batch.items()}
        if "attention_mask" in batch:
            keep &= batch["attention_mask"].bool()
        if "document_ids" in batch:
            keep[:, 1:] &= batch["document_ids"][:, 1:] == batch["document_ids"][:, :-1]
        targets = ids.masked_fill(~keep, -100)[:, 1:]
        loss = F.cross_entropy(model(**inputs).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.7)
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * part
        optimizer.step()
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=2e-3, atol=2e-5, msg=name)


def test_micro_batches_add_up_to_their_step(text: Path, tmp_path: Path) -> None:
    train(decoder(text, batch_size=8), tmp_path / "whole")
    train(decoder(text, batch_size=2, accumulate=4), tmp_path / "parts")
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    tokens = [[line["tokens"] for line in read_metrics(tmp_path / name)] for name in ("whole", "parts")]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("option", [{"precision": "bf16"}, {"checkpoint_activations": True}])
def test_ways_to_save_memory_learn_the_same(text: Path, tmp_path: Path, option: dict[str, Any]) -> None:
    train(decoder(text), tmp_path / "plain")
    run = train(decoder(text, **option), tmp_path / "other")
    within = 1e-6 if "precision" not in option else 0.02
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=within)
    assert {tensor.dtype for tensor in weights(run.folder).values()} == {torch.float32}


# Tracing an autograd function instantiates one, inside torch.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
# Once much else was compiled in a process, dynamo looks at gradients where there are none.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_step_learns_the_same(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is traced as ever; the backend that generates code, which takes a minute, is left out."""
    train(decoder(text, "model.layers=[{repeat: 3}]", steps=3), tmp_path / "plain")
    graphs = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", compiled := Mock(side_effect=partial(torch.compile, backend=graphs)))
    train(decoder(text, "model.layers=[{repeat: 3}]", steps=3, compile=True), tmp_path / "compiled")
    # A block each; one graph in training, and two where rows end apart: the first layer makes their mask.
    assert compiled.call_count == graphs.frame_count == 3
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_what_a_layer_drops_follows_from_the_step(text: Path, tmp_path: Path) -> None:
    """With dropout a run is the same again, whatever was drawn before it, and leaves random numbers as they were."""
    spec = decoder(text, "model.layer.dropout=0.3", checkpoint_activations=True)
    train(spec, tmp_path / "a")
    torch.manual_seed(99)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(99))
    train(spec, tmp_path / "b")
    assert torch.equal(torch.rand(3), expected)
    other = weights(tmp_path / "b")
    assert all(torch.equal(tensor, other[name]) for name, tensor in weights(tmp_path / "a").items())
    train(decoder(text), tmp_path / "plain")
    assert losses(tmp_path / "plain") != losses(tmp_path / "a")


def test_schedules() -> None:
    def rates(steps: list[int], **options: Any) -> list[float]:
        settings = TrainSettings(steps=110, warmup=10, lr=2.0, min_lr_ratio=0.2, **options)
        return [learning_rate(settings, step) for step in steps]

    for name in ("cosine", "linear", "inverse_sqrt", "constant"):
        assert rates([1, 5, 10], schedule=name) == pytest.approx([0.2, 1.0, 2.0])
    assert rates([35, 60, 110], schedule="linear") == pytest.approx([1.6, 1.2, 0.4])
    assert rates([35, 60, 110], schedule="cosine") == pytest.approx([0.4 + 0.8 * (1 + 0.5**0.5), 1.2, 0.4])
    assert rates([40, 90], schedule="inverse_sqrt") == pytest.approx([1.0, 2 / 3])
    assert rates([11, 110], schedule="constant") == [2.0, 2.0]
    assert learning_rate(TrainSettings(steps=1, lr=0.5), 1) == pytest.approx(0.05)


def test_freeze_keeps_bits_and_init_takes_weights(text: Path, tmp_path: Path) -> None:
    train(decoder(text), tmp_path / "base")
    events = list[Event]()
    spec = decoder(text, init=str(tmp_path / "base"), freeze=["decoder.embedding.*", "*.norm*"], seed=4)
    run = train(spec, tmp_path / "tuned", report=events.append)
    assert events[0] == Initialised(tmp_path / "base", ())
    assert isinstance(events[1], Started)
    assert events[1].trained < events[1].parameters
    before, after = weights(tmp_path / "base"), weights(run.folder)
    for name, tensor in after.items():
        frozen = name.startswith("decoder.embedding.") or ".norm" in name
        assert torch.equal(tensor, before[name]) == frozen, name
    assert losses(run.folder)[0] < losses(tmp_path / "base")[0] - 0.5
    assert (run.folder / "tokenizer.json").read_bytes() == (tmp_path / "base" / "tokenizer.json").read_bytes()


def test_a_head_that_the_other_run_lacks_starts_fresh(text: Path, tmp_path: Path) -> None:
    train(decoder(text, "model.head={kind: lm, tied: true}"), tmp_path / "base")
    events = list[Event]()
    train(decoder(text, init=str(tmp_path / "base")), tmp_path / "tuned", report=events.append)
    assert events[0] == Initialised(tmp_path / "base", ("heads.head.weight",))


def test_early_stop(text: Path, tmp_path: Path) -> None:
    events = list[Event]()
    spec = decoder(text, steps=50, lr=1e-12, weight_decay=0.0, eval_every=2, early_stop=3)
    run = train(spec, tmp_path / "run", report=events.append)
    found = [event.figures["loss"] for event in events if isinstance(event, Evaluated)]
    assert len(found) == found.index(min(found)) + 1 + 3
    assert run.step == 2 * len(found) < 50
    assert events[-1] == Stopped(run.step, "early_stop")
    again = list[Event]()
    assert train(spec, tmp_path / "run", report=again.append).step == run.step
    assert not any(isinstance(event, Stepped) for event in again)


def test_tensorboard_gets_the_same_figures(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (folder, purge_step) == (str(tmp_path / "run" / "tensorboard"), 1)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setattr("transom.training.setup.find_spec", lambda name: name)
    train(decoder(text, tensorboard=True, eval_every=6), tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    expected = [
        (name.replace("eval_", "eval/"), line[name], line["step"]) for line in lines for name in line if name != "step"
    ]
    assert written == [*expected, ("closed", 0.0, 0)]


def test_a_loss_that_is_not_finite_stops_before_the_update(text: Path, tmp_path: Path) -> None:
    spec = decoder(text, steps=40, lr=1e30, grad_clip=0.0, checkpoint_every=1, schedule="constant")
    with pytest.raises(TrainingError, match=r"^step \d+: the (loss|norm of the gradients) is (nan|inf)") as error:
        train(spec, tmp_path / "run")
    assert error.value.exit_code == 1
    stopped = int(str(error.value).split(":")[0].removeprefix("step "))
    run = read_run(tmp_path / "run")
    assert run.step == stopped - 1 == len(losses(run.folder))
    assert all(tensor.isfinite().all() for tensor in weights(run.folder).values())


def test_fp16_goes_on_where_gradients_overflow(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is too high costs some steps their update; one that never gets low enough ends the run."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**40, growth_interval=2))
    train(decoder(text, precision="fp16", steps=40), tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    skipped = [line["step"] for line in lines if "grad_norm" not in line]
    assert skipped[0] == 1
    assert len(skipped) < 40
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5

    train(decoder(text, steps=1), tmp_path / "fp32")
    assert lines[0]["loss"] == pytest.approx(losses(tmp_path / "fp32")[0], rel=1e-3)

    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=3e-5))
    monkeypatch.setattr("transom.training.sharing.get_total_norm", lambda gradients: torch.tensor(math.inf))
    with pytest.raises(
        TrainingError, match=r"^step 1: the gradients overflow fp16 even with the loss scaled by 3\.0e-05"
    ):
        train(decoder(text, precision="fp16"), tmp_path / "collapsed")


def pairs(tmp_path: Path) -> Path:
    """Write pairs of a word and its letters apart."""
    draw = random.Random(5)
    path = tmp_path / "pairs.tsv"
    rows = [[draw.choice(WORDS) for _ in range(draw.randint(1, 4))] for _ in range(60)]
    path.write_text("".join(f"{' '.join(row)}\t{'-'.join(reversed(row))}\n" for row in rows))
    return path


def test_an_encoder_decoder_learns_and_writes(tmp_path: Path) -> None:
    stack = {name: part for name, part in STACK.items() if name != "layers"}
    cross = {"layer": {"cross_attention": {"kind": "full", "n_heads": 2}}, "layers": [{"repeat": 1}]}
    model = {"topology": "encoder_decoder", "d_model": 16, "max_seq_len": 31, **stack, "head": "lm"}
    plain = {
        "name": "pairs",
        "model": {**model, "encoder": {"layers": [{"repeat": 1}]}, "decoder": cross},
        "objective": "seq2seq_lm",
        "data": {"kind": "pairs", "path": str(pairs(tmp_path)), "seq_len": 30, "hold_out": 0.2, "tokenizer": TOKENIZER},
        "train": {**TRAIN, "steps": 12, "eval_every": 12},
    }
    run = train(parse_spec(plain), tmp_path / "run")
    assert losses(run.folder)[-1] < losses(run.folder)[0] - 0.5
    assert set(run.metrics) == {"loss", "perplexity", "accuracy", "bits_per_byte"}

    ready = writing(run, ["ape bee cat", "dog"])
    sampling = Sampling(max_new_tokens=5, eos_id=ready.eos_id)
    together = generate(ready.stepper, ready.prompts, sampling, ready.tokenizer.decode)
    alone = writing(run, ["dog"])
    assert generate(alone.stepper, alone.prompts, sampling, alone.tokenizer.decode) == together[1:]
    # One pass over source and target at once chooses the same tokens.
    tokenizer, written = ready.tokenizer, together[0].ids
    source = torch.tensor([[*tokenizer.encode("ape bee cat"), *ready.eos_id]])
    target = torch.tensor([[tokenizer.vocabulary.bos, *written]])
    logits = load(run)(input_ids=source, decoder_input_ids=target).logits[0, :, : tokenizer.vocabulary.size]
    assert logits.argmax(-1)[: len(written)].tolist() == written


def test_a_decoder_writes_what_its_logits_say(text: Path, tmp_path: Path) -> None:
    run = train(decoder(text), tmp_path / "run")
    ready = writing(run.folder, ["ape bee", "cat"])
    sampling = Sampling(max_new_tokens=6, eos_id=ready.eos_id)
    first, second = generate(ready.stepper, ready.prompts, sampling, ready.tokenizer.decode)
    model, size = load(run), ready.tokenizer.vocabulary.size
    for prompt, result in zip(ready.prompts, (first, second), strict=True):
        assert prompt[0] == ready.tokenizer.vocabulary.bos
        logits = model(input_ids=torch.tensor([prompt + result.ids])).logits[0, len(prompt) - 1 :, :size]
        assert logits.argmax(-1)[: len(result.ids)].tolist() == result.ids
    assert first.text == ready.tokenizer.decode(first.ids)


def test_an_encoder_learns_hidden_tokens(text: Path, tmp_path: Path) -> None:
    plain = decoder(text, "model.topology=encoder", "objective=masked_lm", steps=12, eval_every=12, batch_size=8)
    run = train(plain, tmp_path / "run")
    assert losses(run.folder)[-1] < losses(run.folder)[0]
    # Only some tokens are asked for, so there are no bits per byte of the text.
    assert set(run.metrics) == {"loss", "perplexity", "accuracy"}
    assert evaluate(run) == run.metrics


def test_an_image_classifier_learns(tmp_path: Path) -> None:
    stack = {**STACK, "embedding": {"kind": "patch_2d", "image_size": 8, "patch_size": 4, "channels": 1}}
    plain = {
        "name": "digits",
        "model": {
            "topology": "encoder",
            "d_model": 16,
            "max_seq_len": 4,
            **stack,
            "position": "learned",
            "head": {"kind": "classifier", "n_classes": 10},
        },
        "objective": "classification",
        "data": {"kind": "labelled", "source": "digits", "hold_out": 0.1},
        "train": {**TRAIN, "steps": 40, "batch_size": 32, "eval_every": 40, "lr": 1e-2},
    }
    run = train(parse_spec(plain), tmp_path / "run")
    assert set(run.metrics) == {"loss", "accuracy"}
    assert run.metrics["accuracy"] > 0.5
    assert run.tokenizer is None
    images = np.zeros((2, 1, 8, 8), np.float32)
    assert load(run)(pixel_values=torch.from_numpy(images)).logits.shape == (2, 10)
