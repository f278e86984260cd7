"""Run torch's exporter as one wants it from a library: quietly, and without work that it would do again each time."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

from onnxscript import values
from torch.onnx._internal.exporter import _registration


@contextmanager
def translating() -> Iterator[None]:
    """Export what is exported within."""
    with quiet(), _uncollected(), _listed_once():
        yield


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from looking for garbage while millions of small objects are made that are still needed."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from talking: of packages that are not there, of what they leave as it is, of deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def _listed_once() -> Iterator[None]:
    """List onnxscript's translations of operators once, and not by reading the sources of five hundred functions."""
    apis: Any = vars(_registration)["onnxscript_apis"]
    theirs = apis.get_torchlib_ops
    apis.get_torchlib_ops = lambda: _listed(theirs)
    try:
        yield
    finally:
        apis.get_torchlib_ops = theirs


@cache
def _listed(make: Callable[[], list[Any]]) -> list[Any]:
    kind: Any = values.TracedOnnxFunction
    theirs = kind.function_ir
    # The list takes nothing from a function's signature but its domain, for which it is not worth parsing.
    kind.function_ir = property(lambda function: SimpleNamespace(domain=function.opset.domain))
    try:
        return make()
    finally:
        kind.function_ir = theirs
