"""The suite catches planted faults, and finds none where there is none."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from transom.conformance import check
from transom.conformance.runner import items

from .faults import CAUGHT, CAUSAL_LM, FULL, LM, MLP, RMS, TOKEN


@pytest.mark.parametrize(("fault", "number"), CAUGHT.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_fault_is_caught(fault: type[Any], number: int) -> None:
    # Up to the first failure: shrinking the rest would say no more.
    for item in items(fault, rows=[number]):
        if item.subject is not None and item.attempt(item.subject, {})[1] is not None:
            return
    pytest.fail(f"row {number} does not catch {fault.__name__}")


@pytest.mark.parametrize("sound", [FULL, RMS, MLP, TOKEN, LM, CAUSAL_LM], ids=lambda cls: cls.name)
def test_what_is_sound_passes_the_rows_that_catch_faults(sound: type[Any]) -> None:
    numbers = {0, 2, 4, 6, 7, 9, 11, 14, 15, 17, 20, 21, 24, 26, 27}

    class Sound(sound):  # a class of no package, without a fault
        name: ClassVar[str] = "sound"

    report = check(Sound, rows=numbers)
    assert report.passed, report.table()
    assert {outcome.component for outcome in report.outcomes} == {"given/sound"}
