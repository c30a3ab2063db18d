"""ONNX Runtime: torch's exporter writes a file once, the runtime optimises it as it is read."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allaprima.models.backends.backend import Run

FILE = "graph.onnx"
OPSET = 20


class OnnxRuntime:
    """On the CPU, in float32, with as many threads as torch has."""

    tolerance = 1e-3

    def __init__(self, dtype: str = "float32") -> None:
        import onnxruntime

        self.dtype = dtype
        self._ort: Any = onnxruntime

    @property
    def signature(self) -> str:
        """`onnxruntime-VERSION`."""
        return f"onnxruntime-{self._ort.__version__}"

    @torch.no_grad()
    def convert(self, module: nn.Module, inputs: Sequence[Tensor], folder: Path) -> None:
        """Compile for fixed shapes; inputs are named by their place."""
        example = tuple(x.detach().clone().contiguous() for x in inputs)
        with _quiet():
            torch.onnx.export(
                module, example, folder / FILE, input_names=[f"in{i}" for i in range(len(example))], opset_version=OPSET,
                dynamo=True, external_data=True, verbose=False,
            )  # fmt: skip

    def load(self, folder: Path) -> Run:
        """Optimised for this CPU."""
        options = self._ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        # Spinning threads would take the time of torch's, which run between two calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        session = self._ort.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
        names = [x.name for x in session.get_inputs()]

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            given = {f"in{i}": x.detach().contiguous().numpy() for i, x in enumerate(inputs)}
            # What a graph doesn't use it may have dropped.
            return [torch.from_numpy(x) for x in session.run(None, {k: given[k] for k in names})]

        return run


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Return the exporter prints its progress and logs what it can't know is harmless."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [x.level for x in loggers]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for x in loggers:
                x.setLevel(logging.ERROR)
            yield
    finally:
        for x, level in zip(loggers, levels, strict=True):
            x.setLevel(level)
