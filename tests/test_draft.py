"""A model that runs ahead of another changes the time that writing takes, and no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_generation import Table, hashed

import transom
from transom.cli import main
from transom.core.topology import Topology
from transom.errors import InputError
from transom.generation import Draft, Sampling, generate, stream
from transom.registry.spec import parse_spec
from transom.training.text import Stepper

VOCAB, EOS = 53, 7
WAYS = [
    Sampling(max_new_tokens=21, eos_id=EOS),
    Sampling(max_new_tokens=17, eos_id=EOS, repetition_penalty=1.4),
    Sampling(max_new_tokens=19, eos_id=EOS, temperature=1.1, seed=3),
    Sampling(max_new_tokens=40, temperature=0.7, top_k=9, top_p=0.9, repetition_penalty=0.8, seed=2**33),
]
PROMPTS = [[5], [9, 1, 2, 10, 10, 6, 30], [0, 5], [5], [3, 3, 3, 41]]
GROWS, RING, SUM = "{}, {}", "{}, {attention: {kind: local, window: 4}}", "{attention: linear}, {}"
SPEC = """
name: small
model:
  topology: decoder
  d_model: 24
  max_seq_len: {length}
  embedding: {{kind: token, vocab_size: 53}}
  position: {position}
  layer: {{norm: rms, attention: {{kind: full, n_heads: 3}}, feedforward: {{kind: mlp, d_ff: 31}}}}
  layers: [{{repeat: 1, pattern: [{layers}]}}]
  norm: rms
  head: {{kind: lm}}
objective: causal_lm
data: {{kind: text, seq_len: 16, tokenizer: {{kind: bpe, vocab_size: 301}}}}
train: {{steps: 1}}
"""


def model(layers: str = GROWS, seed: int = 0, length: int = 37, position: str = "rope") -> Topology:
    """Return a decoder whose choices are not all alike."""
    torch.manual_seed(seed)
    made = transom.compose(parse_spec(SPEC.format(layers=layers, length=length, position=position)))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4)
    return made.eval()


def nearly(of: Topology, layers: str, noise: float) -> Topology:
    """Return a model that mostly writes what another does."""
    near = model(layers)
    near.load_state_dict(of.state_dict())
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return near


@pytest.mark.parametrize("sampling", WAYS, ids=["greedy", "penalty", "drawn", "all"])
@pytest.mark.parametrize("layers", [GROWS, RING, SUM], ids=["grows", "ring", "sum"])
def test_what_is_written_is_what_is_written_without(layers: str, sampling: Sampling) -> None:
    """Rows of several lengths, which end at different steps, some of them where the model is full."""
    of = model(layers)
    alone = Stepper(of, VOCAB)
    wanted = generate(alone, PROMPTS, sampling)
    for helper, ahead in ((nearly(of, layers, 0.03), 3), (model(GROWS, 1), 2), (of, 5)):
        draft = Draft(Stepper(helper, VOCAB), ahead)
        assert generate(Stepper(of, VOCAB), PROMPTS, sampling, draft=draft) == wanted
        pieces = list(stream(Stepper(of, VOCAB), PROMPTS, sampling, draft=draft))
        for row, result in enumerate(wanted):
            assert [token for piece in pieces if piece.row == row for token in piece.ids] == result.ids
    assert {"full", "length", "eos"} > {row.ended for row in wanted}


class Counted(Stepper):
    """Count the calls."""

    calls = 0

    def _run(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        return super()._run(*args, **options)


def test_a_draft_that_agrees_saves_calls_and_says_how_many_it_proposed() -> None:
    of = model()
    sampling = Sampling(max_new_tokens=24, temperature=0.9, seed=11)
    draft, counted = Draft(Stepper(of, VOCAB), ahead=5), Counted(of, VOCAB)
    written = generate(counted, [[4, 8]], sampling, draft=draft)[0]
    assert len(written.ids) == 24
    assert counted.calls == 4  # each writes six
    assert draft.accepted == draft.proposed == 20
    wrong = Draft(Stepper(model(seed=9), VOCAB), ahead=5)
    assert generate(Stepper(of, VOCAB), [[4, 8]], sampling, draft=wrong)[0] == written
    assert wrong.accepted < wrong.proposed / 2


def test_a_draft_with_fewer_places_helps_as_far_as_they_go() -> None:
    of, short = model(length=37), model(length=11)
    short.load_state_dict(of.state_dict())
    sampling = Sampling(max_new_tokens=30)
    prompts = [[4, 8], [*range(14)]]
    draft, counted = Draft(Stepper(short, VOCAB), ahead=3), Counted(of, VOCAB)
    assert generate(counted, prompts, sampling, draft=draft) == generate(Stepper(of, VOCAB), prompts, sampling)
    assert draft.accepted == draft.proposed == 7  # places 4 to 10: three, three and one, with one of the model's own


STRETCHED = (
    "{kind: rope, scaling: {kind: longrope, trained: 16, short: [1.0, 1.1, 1.5, 2.0], long: [1.3, 2.0, 9.0, 9.5]}}"
)


@pytest.mark.parametrize("drafts", ["rope", STRETCHED])
def test_rows_are_read_anew_beyond_a_length_that_a_state_can_not_cross(drafts: str) -> None:
    of, helper = model(position=STRETCHED), model(position=drafts)
    helper.load_state_dict(of.state_dict())
    stepper = Stepper(of, VOCAB)
    assert stepper.edges == {16}
    prompts, sampling = [[4, 8, 1], [*range(11)], [*range(20)]], Sampling(max_new_tokens=15)
    wanted = generate(stepper, prompts, sampling)
    assert generate(stepper, prompts, sampling, draft=Draft(Stepper(helper, VOCAB), 3)) == wanted


def test_a_state_is_rewound_row_by_row() -> None:
    """What is dropped is as if it had never been read, whether or not other rows keep more."""
    of = model()
    for room in (None, 20):
        ids = torch.from_numpy(np.random.default_rng(5).integers(0, VOCAB, (3, 12)))
        mask = torch.ones(3, 7, dtype=torch.int64)
        mask[1, 4:] = 0
        with torch.inference_mode():
            read = of(input_ids=ids[:, :7], attention_mask=mask, state=of.empty_state(3, room)).state
            back = read.rewind(torch.tensor([2, 1, 5]))
            assert back.seen.tolist() == [5, 3, 2]
            assert back.columns == 5
            more = of(input_ids=ids[:, 7:], state=back).logits
            for row, kept in enumerate([5, 3, 2]):
                alone = torch.cat([ids[row : row + 1, :kept], ids[row : row + 1, 7:]], dim=1)
                wanted = of(input_ids=alone).logits[0, kept:]
                torch.testing.assert_close(more[row], wanted, atol=2e-5, rtol=2e-5)
            assert read.rewind(read.seen).columns == 0


def test_what_can_not_be_a_draft_is_refused() -> None:
    of, sampling = Stepper(model(), VOCAB), Sampling(max_new_tokens=3)
    with pytest.raises(InputError, match=r"draft\.ahead: 0 is not a number of tokens to propose; at least 1"):
        Draft(of, 0)
    with pytest.raises(InputError, match="draft: the draft gives the logits after its last token alone, and can't go"):
        generate(of, [[1]], sampling, draft=Draft(Table(hashed(VOCAB), VOCAB)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="draft: the model gives the logits after its last token alone"):
        generate(Table(hashed(VOCAB), VOCAB), [[1]], sampling, draft=Draft(of))
    with pytest.raises(InputError, match="draft: it knows 41 tokens, and the model 53: they need the same tokenizer"):
        generate(of, [[1]], sampling, draft=Draft(Stepper(model(seed=1), 41)))
    with pytest.raises(InputError, match="a layer forgets on the way"):
        model(SUM).empty_state(2).rewind(torch.tensor([0, 0]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two runs on one text, and of one on another, whose tokenizer differs."""
    folder = tmp_path_factory.mktemp("runs")
    for name, text in (("model", "the cat sat. "), ("cheap", "the cat sat. "), ("other", "a dog ran! ")):
        words = folder / text[:5].replace(" ", "_")
        words.mkdir(exist_ok=True)
        for number in range(30):
            (words / f"{number}.txt").write_text(f"{text}{number} " * 20)
        options = [f"data.path={words}", "data.hold_out=0.3", "model.embedding.vocab_size=301"]
        spec = parse_spec(SPEC.format(layers=GROWS, length=37, position="rope"), [*options, f"train.seed={len(name)}"])
        transom.train(spec, out=folder / name)
    return folder


def test_the_command_writes_the_same_with_a_draft(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["generate", str(runs / "model"), "the cat", "sat", "--max-new-tokens", "12", "--temperature", "0.9"]
    said = []
    for more in ([], ["--draft", str(runs / "cheap"), "--ahead", "3"]):
        with pytest.raises(SystemExit) as ended:
            main([*line, *more])
        assert ended.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--draft", "other"], "other: can't be a draft: its tokenizer is not the model's"),
        (["--draft", "none"], "none: is no run: it has no spec.yaml"),
        (["--draft", "cheap", "--ahead", "0"], "draft.ahead: 0 is not a number of tokens to propose; at least 1"),
    ],
)
def test_the_command_says_why_a_draft_does_not_fit(
    more: list[str], says: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit) as ended:
        main(["generate", "model", "the cat", *more])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
