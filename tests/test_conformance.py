"""What the suite says: failures made small, reports, refusals, pytest's items and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import typer
from torch import Tensor, nn
from typer.testing import CliRunner

from transom.cli import checking
from transom.conformance import check, runner
from transom.conformance.runner import classes, items
from transom.conformance.trial import Failure, Trial
from transom.core.attention import Declaration, Mechanism
from transom.errors import PluginError
from transom.registry.manager import get

FULL, LOCAL = get("attention", "full"), get("attention", "local")
ROPE, RMS = get("position", "rope"), get("norm", "rms")
LM, MLP = get("head", "lm"), get("feedforward", "mlp")
CAUSAL_LM, TEXT = get("objective", "causal_lm"), get("data", "text")


# -- what failures say ------------------------------------------------------------------------------------------------


class TooLong(LOCAL):
    """Fail from six tokens on."""

    def forward(self, q, k, v, context, state=None):
        y, after = super().forward(q, k, v, context, state)
        return y * (1.0 if q.shape[1] < 6 else 1.001), after


def test_a_failure_is_made_small() -> None:
    report = check(TooLong, rows=[2])
    failure = next(f for f in report.failures if f.check == "the_reference")
    assert not report.passed
    assert failure.smallest == "batch 1, length 6, n_heads 6, window 5"
    assert failure.figure is not None
    assert failure.allowance == 1e-10
    assert 1e-4 < failure.figure < 1e-2
    assert "fails first at batch 1, length 6" in str(failure)
    assert "differs" in failure.reason
    assert "(3, " in failure.reason  # the shape of what was compared first


def test_a_report_comes_as_table_json_and_badge() -> None:
    report = check("rms", rows=[2, 3, 26], seed=3)
    assert report.passed
    lines = report.table().splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["rms", "2"], ["rms", "3"], ["rms", "26"]]
    found = json.loads(json.dumps(report.as_json()))
    assert found["passed"] is True
    assert found["seed"] == 3
    assert {outcome["number"] for outcome in found["outcomes"]} == {2, 3, 26}
    assert all(outcome["figure"] <= outcome["allowance"] for outcome in found["outcomes"] if outcome["figure"])
    assert "| `rms` (norm) | 3 of 3 |" in report.badge()


def test_what_does_not_apply_is_declared_with_its_reason() -> None:
    outcomes = check("local", rows=[8]).outcomes
    declared = [outcome for outcome in outcomes if outcome.status == "declared"]
    assert [outcome.check for outcome in declared] == ["an_empty_memory"]
    assert declared[0].reason == f"cross: {LOCAL.declares.lacks['cross']}"


def test_the_same_seed_gives_the_same_figures() -> None:
    def figures(seed: int) -> list[float | None]:
        return [outcome.figure for outcome in check("rope", rows=[17], seed=seed).outcomes]

    assert figures(1) == figures(1) != figures(2)


def test_a_run_leaves_torch_s_generator_alone() -> None:
    before = torch.get_rng_state()
    check("rms", rows=[9, 15])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("got", "want"), [(torch.ones(3), torch.zeros(4)), (torch.full((3,), float("nan")), torch.ones(3))], ids=str
)
def test_a_trial_takes_neither_other_shapes_nor_nan(got: Tensor, want: Tensor) -> None:
    with pytest.raises(Failure):
        Trial().close(got, want)


# -- what can't be proven ---------------------------------------------------------------------------------------------


class DeadWeight(MLP):
    """Have a weight that nothing trains."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.spare = nn.Parameter(torch.zeros(3))

    def reset_parameters(self):
        nn.init.zeros_(self.spare)


@dataclass(frozen=True, kw_only=True)
class Strange:
    """Take an option of which nobody knows a value."""

    depth_of_field: int


def refused() -> Mapping[str, tuple[type[Any], str]]:
    """Return classes whose declarations can't be checked, each with what is said of it."""
    half = replace(FULL.declares, time="1.5")  # type: ignore[arg-type]
    nowhere = Declaration(can=FULL.declares.can - {"causal", "two_sided"}, lacks={"causal": "a", "two_sided": "b"})

    def changed(base: type[Any], **attributes: Any) -> type[Any]:
        return type("Changed", (base,), attributes)

    return {
        "nothing": (changed(FULL, declares=None), "it declares nothing"),
        "cost": (changed(FULL, declares=half), "its cost in time, '1.5', is no exponent"),
        "direction": (changed(FULL, declares=nowhere), "it can run in no direction"),
        "reason": (changed(LOCAL, declares=replace(LOCAL.declares, lacks={"cross": " "})), "lacks cross without"),
        "hooks": (changed(ROPE, hooks=frozenset()), "its hooks are none"),
        "unknown hook": (changed(ROPE, hooks=frozenset({"turn"})), "its hooks are turn: one or several of add"),
        "relative": (changed(ROPE, relative="yes"), "`relative` is 'yes'"),
        "per_token": (changed(LM, per_token=None), "`per_token` is None"),
        "fields": (changed(CAUSAL_LM, fields=frozenset()), "declares no `fields`"),
        "rows": (changed(TEXT, rows="pages"), "its rows are 'pages'"),
        "options": (changed(RMS, Config=Strange), r"knows no value of its required depth_of_field.*`trials"),
        "trials": (changed(FULL, trials=({"n_heads": 5},)), "it refuses n_heads=5 .*5 heads do not divide d_model"),
    }


@pytest.mark.parametrize(("cls", "said"), refused().values(), ids=refused().keys())
def test_a_declaration_that_can_t_be_checked_is_refused(cls: type[Any], said: str) -> None:
    with pytest.raises(PluginError, match=said):
        check(cls, rows=[0])


def test_options_of_its_own_are_tried_first() -> None:
    class Own(LOCAL):
        trials: ClassVar = ({"n_heads": 3, "window": 7}, {"n_heads": 2, "window": 2})

    found = [str(item.subject) for item in items(Own, rows=[4])]
    assert found[:2] == ["base-causal", "n_heads=2,window=2-causal"]
    subject = next(item.subject for item in items(Own, rows=[4]))
    assert subject is not None
    assert (subject.case.config.n_heads, subject.case.config.window) == (3, 7)


@pytest.mark.parametrize(
    ("name", "said"),
    [("locl", "did you mean 'local'"), ("acmé/ring", "no installed package"), (3, "no component class")],
)
def test_an_unknown_name_is_refused(name: Any, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        check(name)


def test_a_package_stands_for_all_its_components() -> None:
    found = classes("transom")
    assert {cls.kind for cls in found} >= {"attention", "objective", "data"}
    assert len(found) == len(set(found)) > 25


# -- pytest and the command line --------------------------------------------------------------------------------------

PLANTED = """
from transom.conformance import runner
from transom.registry.manager import get

class Wrong(get("norm", "rms")):
    def forward(self, x):
        return super().forward(x) * 1.1

found = runner.classes
runner.classes = lambda name: [Wrong] if name == "wrong" else found(name)
"""


def pytest_in(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run pytest, as an author would, in a folder that holds no tests."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_pytest_runs_one_item_for_each_row_and_place(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(PLANTED)
    args = ("--transom", "wrong", "--transom", "rms", "--transom-profile", "quick", "-k", "row3 or row2", "-v")
    done = pytest_in(tmp_path, *args)
    assert "transom::rms::row3[gradcheck-base] PASSED" in done.stdout, done.stdout + done.stderr
    assert "given::wrong::row2[the_reference-base] FAILED" in done.stdout
    assert "fails first at batch 1, length 1" in done.stdout
    assert "Traceback" not in done.stdout
    assert "runner.py" not in done.stdout
    assert done.returncode == 1


def test_pytest_without_the_option_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import sys\n\ndef test_it():\n    assert 'torch' not in sys.modules\n")
    done = pytest_in(tmp_path, "-q")
    assert done.returncode == 0, done.stdout
    unknown = pytest_in(tmp_path, "--transom", "rmss", "--collect-only")
    assert unknown.returncode == 4
    assert "did you mean 'rms'" in unknown.stderr


def test_the_built_in_softmax_attentions_show_their_weights() -> None:
    from transom.conformance.cases import cases_of
    from transom.conformance.companions import companions
    from transom.conformance.stacks import run, stack, vectors

    for cls in companions("attention"):
        if "score" not in cls.declares.can or not issubclass(cls, Mechanism):
            continue
        shown: list[Tensor] = []
        run(stack([cases_of(cls)[0]] * 2), vectors(2, 23), weights=shown)
        assert [tuple(weights.shape) for weights in shown] == [(2, 6, 23, 23)] * 2
        for sums in (weights.sum(-1) for weights in shown):
            if cls.name == "local_p":  # what its softmax gives is multiplied by the distance's factor
                assert bool(((sums > 0) & (sums < 1)).all())
            else:
                torch.testing.assert_close(sums, torch.ones_like(sums))


def test_the_command_prints_a_table_and_ends_as_it_came_out() -> None:
    app = typer.Typer()
    app.command()(checking.check)
    done = CliRunner().invoke(app, ["rms", "--row", "2", "--row", "26"])
    assert done.exit_code == 0, done.output
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["row", "2", "26"]
    as_json = CliRunner().invoke(app, ["rms", "--row", "2", "--json"])
    assert json.loads(as_json.stdout)["passed"] is True
    assert CliRunner().invoke(app, ["rms", "--row", "2", "--badge"]).stdout.startswith("| component |")
    with pytest.raises(PluginError, match="did you mean 'rms'"):
        CliRunner().invoke(app, ["rmss"], catch_exceptions=False)


def test_the_command_fails_with_the_smallest_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "classes", lambda name: [DeadWeight])
    app = typer.Typer()
    app.command()(checking.check)
    done = CliRunner().invoke(app, ["dead", "--row", "24"])
    assert done.exit_code == 1
    assert "given/dead_weight row 24 (every parameter is trained) [base]: spare has no gradient" in done.stderr
    assert "fails first at batch 1, length 37" in done.stderr


def test_every_row_runs_on_each_built_in_component_or_says_why_not() -> None:
    exported = {"attention", "position", "norm", "feedforward", "embedding", "head", "topology"}
    left = {cls for cls in classes("transom") if cls.kind in exported}
    for item in items("transom", profile="full"):
        assert item.subject is not None or item.excuse
        if item.row.number == 19 and item.subject is not None:
            left.discard(item.cls)
    assert not left, f"no export holds {left}"
