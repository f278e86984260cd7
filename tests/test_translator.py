"""torch's exporter is run as it is, with less work."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from torch.onnx._internal.exporter import _registration

from transom.deploy.translator import quiet, translating


def test_translations_are_listed_once_and_are_those_that_there_are() -> None:
    apis: Any = vars(_registration)["onnxscript_apis"]
    theirs = apis.get_torchlib_ops()
    with translating():
        ours, again = apis.get_torchlib_ops(), apis.get_torchlib_ops()
    assert ours is again
    assert len(ours) > 400
    assert [vars(meta) for meta in ours] == [vars(meta) for meta in theirs]
    assert apis.get_torchlib_ops() is not ours


def test_what_is_changed_is_put_back() -> None:
    apis: Any = vars(_registration)["onnxscript_apis"]
    before = apis.get_torchlib_ops
    with pytest.raises(RuntimeError, match="broke"):
        breaking(apis, before)
    assert gc.isenabled()
    assert apis.get_torchlib_ops is before


def test_only_torch_is_kept_quiet() -> None:
    with translating():
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
        with pytest.warns(FutureWarning, match="another"):
            warnings.warn("another", FutureWarning, stacklevel=1)


@pytest.mark.parametrize("within", [quiet, translating])
def test_exporters_say_nothing_of_what_they_leave_as_it_is(
    within: Callable[[], AbstractContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    with within():
        logging.getLogger("onnxscript.optimizer._constant_folding").warning("Skipping constant folding")
        logging.getLogger("torch.onnx._internal").error("broken")
        logging.getLogger("acme").warning("heard")
    assert caplog.messages == ["broken", "heard"]
    logging.getLogger("onnxscript.optimizer").warning("heard again")
    assert caplog.messages[-1] == "heard again"


def breaking(apis: Any, before: Any) -> None:
    with translating():
        assert not gc.isenabled()
        assert apis.get_torchlib_ops is not before
        raise RuntimeError("broke")
