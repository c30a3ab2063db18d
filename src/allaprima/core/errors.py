"""Every error a caller may want to catch, in one tree.

AllaprimaError
 |- SettingError        a value out of range, an unknown name, settings that contradict each other   (exit code 2)
 |- PromptError         an empty or over-long prompt, an unreadable prompts file                     (exit code 2)
 |- ModelError          a card, a folder or weights that cannot be used                              (exit code 2)
 |   '- UnsafeWeights   a pickle where safetensors is due
 |- CalibrationError    an artifact that does not belong to these models and settings                (exit code 2)
 |- RunFolderError      an output folder of another run, or one that cannot be written               (exit code 2)
 |- PaintingError       pictures that failed while others were painted; it holds them all             (exit code 2)
 |- TrainingError       a training that went wrong (NaN, resume of another recipe)                   (exit code 2)
 '- ServingError        a request that a server takes no more, or gave up                             (exit code 2)
     |- QueueFull         no room now; `retry_after` says when it is worth another try
     |- Draining          it finishes what it has and takes nothing new
     |- DeadlinePassed    the picture would come, or came, too late
     |- RequestCancelled  whoever asked took it back
     |- EngineStopped     the server ended before the picture was finished
     '- PictureFailed     this picture can't be painted; others are not touched

Each message names the value, the rule, and the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class AllaprimaError(Exception):
    """Base of every error raised on purpose by allaprima."""


class SettingError(AllaprimaError, ValueError):
    """A setting is out of range, unknown, or contradicts another."""


class PromptError(AllaprimaError, ValueError):
    """A prompt (or a file of them) cannot be painted."""


class ModelError(AllaprimaError):
    """A card, a model folder or its weights cannot be used."""


class UnsafeWeightsError(ModelError):
    """Weights come as a pickle, which can run code; only safetensors are read."""


class CalibrationError(AllaprimaError):
    """A calibration does not belong to the models and settings at hand."""


class RunFolderError(AllaprimaError):
    """An output folder belongs to another run or cannot be written."""


class PaintingError(AllaprimaError):
    """Pictures of a call failed; `results` holds all of them, those that were painted too."""

    def __init__(self, message: str, results: Sequence[Any]) -> None:
        super().__init__(message)
        self.results = list(results)


class TrainingError(AllaprimaError):
    """A training cannot go on, and must not do so in silence."""


class ServingError(AllaprimaError):
    """A request that a server doesn't take, or doesn't finish."""


class QueueFullError(ServingError):
    """There is no room for a request now; `retry_after`: seconds after which there probably is."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DrainingError(ServingError):
    """The server finishes what it has accepted and takes nothing new."""


class DeadlinePassedError(ServingError):
    """A request's deadline passed, or can't be met any more."""


class RequestCancelledError(ServingError):
    """Whoever asked for the picture took it back."""


class EngineStoppedError(ServingError):
    """The server was stopped before the picture was finished."""


class PictureFailedError(ServingError):
    """One picture can't be painted, for a reason of its own; its `__cause__` is what was raised, if anything was."""
