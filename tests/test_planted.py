"""The suite catches planted faults where its table says so, and nothing in what they are derived from."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from planted import FAULTS, Fault
from planted.fault import failure, first_failure
from planted.table import read
from slices import COMPILES, EXPORTS

from transom.conformance import check
from transom.conformance.registered import TITLES, Profile
from transom.conformance.runner import items
from transom.core.component import KINDS

CAUGHT = [fault for fault in FAULTS.values() if fault.row is not None]
# `make planted` runs these faults too.
SLOW = (COMPILES, EXPORTS)
FAULTY = [pytest.param(f, marks=[pytest.mark.long] if f.row in SLOW else [], id=f.name) for f in CAUGHT]
SAMPLE = ("NoEps", "NoTargetIsNan", "ShowsTheAnswer")


@pytest.fixture(scope="module")
def rows(root: Path) -> dict[str, list[int]]:
    """Return the rows that catch each fault, as the page says."""
    return read((root / "docs" / "planted.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("fault", FAULTY)
def test_a_fault_is_caught_by_its_row_and_its_sound_twin_passes(fault: Fault) -> None:
    assert fault.row is not None
    found = first_failure(fault.cls, fault.row, fault.profile)
    assert found is not None, f"row {fault.row} does not catch {fault.name}: {fault.wrong}"
    item, said = found
    assert fault.says
    assert fault.says in said
    assert not failures_of(fault.sound, fault.row, fault.profile, item.row.name, item.label)


@functools.cache
def failures_of(sound: type[Any], row: int, profile: Profile, name: str, label: str) -> list[str]:
    """Run a check where a faulty class failed it, or everywhere if this one does not stand there."""
    alike = [item for item in items(sound, profile=profile, rows=[row]) if item.row.name == name]
    assert alike
    here = [item for item in alike if item.label == label] or alike
    return [said for item in here if (said := failure(item))]


def test_the_page_tells_of_every_fault_and_of_the_row_that_catches_it(rows: dict[str, list[int]]) -> None:
    assert list(rows) == list(FAULTS)
    for name, fault in FAULTS.items():
        assert fault.row in rows[name] if fault.row is not None else not rows[name]


def test_the_suite_catches_at_least_95_of_100_faults_of_every_kind(rows: dict[str, list[int]]) -> None:
    assert len(rows) >= 36
    assert {fault.kind for fault in FAULTS.values()} == set(KINDS)
    assert sum(map(bool, rows.values())) >= 0.95 * len(rows)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_fault_leaves_no_check_out_and_no_row_silent(name: str, rows: dict[str, list[int]]) -> None:
    fault = FAULTS[name]
    quick = TITLES.keys() - {*SLOW}
    report, sound = check(fault.cls, rows=quick), check(fault.sound, rows=quick)
    assert sound.passed, sound.table()
    assert not report.passed
    checks = [[(o.number, o.check, o.subject) for o in each.outcomes] for each in (report, sound)]
    assert checks[0] == checks[1]
    assert {outcome.number for outcome in report.failures} <= set(rows[name])
    assert fault.row in {outcome.number for outcome in report.failures}
    assert all(outcome.reason and outcome.smallest for outcome in report.failures)
    failed = {line.number for line in report.lines() if line.status == "failed"}
    assert failed == {outcome.number for outcome in report.failures}
