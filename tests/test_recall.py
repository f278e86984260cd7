"""The comparisons: each question of recall has one right answer, and models are trained, asked and told of by it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from transom.core.objective import Prepared
from transom.core.topology import Output

ROWS, SLOTS, PAIRS = 37, 11, 3


@pytest.fixture
def recall(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark as a module."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("recall")


class Oracle(torch.nn.Module):
    """Remember what every key was followed by; `reach`: how many tokens back."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, input_ids: torch.Tensor) -> Output:
        logits = torch.zeros(*input_ids.shape, 65)
        for row, ids in enumerate(input_ids.tolist()):
            told: dict[int, tuple[int, int]] = {}
            for place, token in enumerate(ids):
                if token in told and place - told[token][0] <= self.reach:
                    logits[row, place, told[token][1]] = 1.0
                elif token not in told and place + 1 < len(ids):
                    told[token] = place + 1, ids[place + 1]
        return Output(logits, logits)


def test_each_question_asks_for_what_was_shown(recall: ModuleType) -> None:
    drawn = recall.questions(ROWS, SLOTS, PAIRS, torch.Generator().manual_seed(5))
    for ids, targets, distance in zip(*(t.tolist() for t in (drawn.ids, drawn.targets, drawn.distance)), strict=True):
        shown: dict[int, int] = {}
        for place in range(0, 2 * SLOTS, 2):
            key, value = ids[place : place + 2]
            if value:
                assert 1 <= key <= 32 < value <= 64
                assert key not in shown
                assert place < SLOTS
                shown[key] = place + 1
            else:
                assert (targets[place] == -100) == (not shown)
                assert key in shown if shown else key == 0
                assert not shown or targets[place] == ids[shown[key]]
                assert not shown or distance[place] == place - shown[key]
            assert targets[place + 1] == -100
            assert not value or targets[place] == -100
        assert len(shown) == PAIRS
    again = recall.questions(ROWS, SLOTS, PAIRS, torch.Generator().manual_seed(5))
    assert torch.equal(drawn.ids, again.ids)
    assert torch.equal(drawn.targets, again.targets)


def test_shares_are_told_by_distance(recall: ModuleType) -> None:
    assert recall.shares(Oracle(reach=96), 48, 8, rows=19) == [1.0] * 4
    everything, near, middle, far = recall.shares(Oracle(reach=63), 48, 8, rows=19)
    assert (near, middle, far) == (1.0, 1.0, 0.0)
    assert 0.5 < everything < 1.0


def test_lessons_follow_one_another(recall: ModuleType) -> None:
    course = recall.Course(recall.spec_of("full", 0).train, recall.LESSONS)

    def micro(step: int) -> Prepared:
        [part] = course.of_step(step)
        return part

    shapes = [tuple(micro(step).targets.shape) for step in (300, 301, 400, 401, 700)]
    assert shapes == [(256, 24), (128, 48), (128, 48), (64, 96), (64, 96)]
    pairs = [int((micro(step).inputs["input_ids"][0] > 32).sum()) for step in (300, 301, 401, 402, 403)]
    assert sorted(pairs[2:]) == [4, 8, 16]
    assert pairs[:2] == [4, 8]
    assert not torch.equal(micro(1).targets, micro(2).targets)


@pytest.mark.parametrize("attention", ["full", "hybrid", "local", "sparse", "linear", "lstm", "gru", "conv"])
def test_every_model_compared_can_be_built_and_asked(recall: ModuleType, attention: str) -> None:
    model = recall.compose(recall.spec_of(attention, 1)).eval()
    assert len(model.decoder.layers) == 2
    right = recall.shares(model, 48, 8, rows=40)
    assert len(right) == 4
    assert right[0] < 0.2


def test_a_model_learns_to_recall(recall: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "TOKENS", 480)
    monkeypatch.setattr(recall, "SPEC", recall.SPEC.replace("steps: 700", "steps: 60"))
    model = recall.train(recall.spec_of("full", 0), [recall.Lesson(60, 3, (1,))])
    # One pair: the value that stands there is the answer, and it must be copied rather than guessed.
    assert recall.shares(model, 3, 1)[0] > 0.5


def test_figures_are_kept_and_found_again(recall: ModuleType, tmp_path: Path) -> None:
    comparison = sys.modules["comparison"]
    taken: list[int] = []

    def measure() -> dict[str, float]:
        taken.append(1)
        return {"right": len(taken) / 7}

    path = tmp_path / "build" / "lines.jsonl"
    first = comparison.Kept(path).of({"row": "full", "seed": 3}, measure)
    assert comparison.Kept(path).of({"row": "full", "seed": 3}, measure) == first
    assert first["right"] == 1 / 7
    assert comparison.Kept(path).of({"row": "full", "seed": 4}, measure)["right"] == 2 / 7
    assert len(path.read_text().splitlines()) == 2


def test_a_section_takes_the_place_of_its_older_self(recall: ModuleType, tmp_path: Path) -> None:
    publish, page = sys.modules["comparison"].publish, tmp_path / "page.md"
    page.write_text("# Title\n\nWords.\n")
    publish("One", "first", page)
    publish("Two", "second", page)
    publish("One", "third\n\n", page)
    assert page.read_text() == "# Title\n\nWords.\n\n## One\n\nthird\n\n## Two\n\nsecond\n"


def test_losing_to_none_is_told(recall: ModuleType) -> None:
    swap = importlib.import_module("swap")
    found = {"none": [2.0, 2.05, 2.1], "full": [1.7, 1.72, 1.8], "local": [1.94, 1.95, 1.96], "lstm": [2.5]}
    assert swap.losers(found) == ["local"]
