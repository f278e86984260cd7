"""The errors that users meet: each one a located message, printed without a traceback by the command line."""

from __future__ import annotations


class TransomError(Exception):
    """Stand at the root of every error that Transom raises for its users.

    `exit_code` is what the command line ends with: 2 when the input is wrong, 1 when the work failed.
    """

    exit_code = 2


class SpecError(TransomError):
    """Say that a spec, or a combination of parts that it asks for, can't be used."""


class PluginError(TransomError):
    """Say that a component or the package that brings it is missing, clashes or breaks its contract."""


class DataError(TransomError):
    """Say that a file, a corpus or a batch can't be read as what it should be."""


class CheckpointError(TransomError):
    """Say that a run folder or a checkpoint is missing, altered or of another spec."""


class InputError(TransomError):
    """Say that what a model or a function was called with does not fit it."""


class TrainingError(TransomError):
    """Say that training had to stop, and at which step."""

    exit_code = 1


class ExportError(TransomError):
    """Say that a model could not be exported, or that its graph disagrees with PyTorch."""

    exit_code = 1


class TransomWarning(UserWarning):
    """Tell what a user may want to know and nothing fails for; `warnings.simplefilter` silences it as any other."""
