"""OpenVINO: the torch network is traced and converted, without a file format between."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.models.backends.backend import Run

FILE = "graph.xml"
PARTS = "parts.txt"
ROWS = 8
"""The fewest rows of a part of a batch. Parts run side by side, each on cores of its own: in small batches, cores that each
do half of the rows wait less than cores that share every layer."""


class OpenVino:
    """On the CPU, with as many threads as torch has, in float32; or in bfloat16, where the CPU computes in it.

    Raises `SettingError` for bfloat16 on a CPU without it, which would be given float32 without a word.
    """

    def __init__(self, dtype: str = "float32") -> None:
        import openvino

        self._ov: Any = openvino
        self._core: Any = openvino.Core()
        self.dtype = dtype
        self.tolerance = 1e-3 if dtype == "float32" else 0.05
        if dtype == "bfloat16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise SettingError("dtype='bfloat16': OpenVINO knows no bfloat16 arithmetic of this CPU. Leave dtype out.")

    @property
    def signature(self) -> str:
        """`openvino-YEAR.RELEASE.PATCH`."""
        # get_version adds a build number; the package's version is what can be asked for again.
        return f"openvino-{self._ov.__version__.split('-')[0]}"

    @torch.no_grad()
    def convert(self, module: nn.Module, inputs: Sequence[Tensor], folder: Path) -> None:
        """Compile for fixed shapes: they let it choose its kernels once. The graph is of one part of the rows."""
        parts = parts_of(inputs, torch.get_num_threads())
        model = self._converted(module, [x[: len(x) // parts] for x in inputs] if parts > 1 else inputs)
        if any(list(x.shape)[:1] != [len(inputs[0]) // parts] for x in model.outputs) and parts > 1:
            # Something beside rows is said: it can't be put together from parts.
            parts, model = 1, self._converted(module, inputs)
        (folder / PARTS).write_text(str(parts))
        # Weights stay float32: by default they would be written as float16.
        self._ov.save_model(model, folder / FILE, compress_to_fp16=False)

    def _converted(self, module: nn.Module, inputs: Sequence[Tensor]) -> Any:
        from openvino.frontend import FrontEndManager  # pyright: ignore[reportMissingImports]
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # pyright: ignore[reportMissingImports]

        # What inference mode made can't be traced.
        example = tuple(x.detach().clone().contiguous() for x in inputs)
        frontend: Any = FrontEndManager().load_by_framework("pytorch")
        with warnings.catch_warnings():
            # A trace says of each branch on a shape that it is one: shapes are fixed here.
            warnings.simplefilter("ignore")
            # Not openvino.convert_model: it would tell its makers of each conversion (openvino_telemetry).
            decoder = TorchScriptPythonDecoder(module, example_input=example, trace_kwargs={"check_trace": False})
            model = frontend.convert(frontend.load(decoder))
        if len(model.inputs) != len(inputs):
            raise ValueError(f"{len(model.inputs)} of {len(inputs)} inputs are left of the graph")
        for place, x in zip(model.inputs, example, strict=True):
            place.get_node().set_partial_shape(self._ov.PartialShape(list(x.shape)))
            place.get_node().set_element_type(self._ov.Type(np.dtype(str(x.dtype).removeprefix("torch."))))
        model.validate_nodes_and_infer_types()
        return model

    def load(self, folder: Path) -> Run:
        """Compiled for this CPU; the compiled form is kept beside the graph."""
        parts = int((folder / PARTS).read_text())
        options = {
            # Some CPUs would be given bfloat16 unasked.
            "INFERENCE_PRECISION_HINT": "bf16" if self.dtype == "bfloat16" else "f32",
            "EXECUTION_MODE_HINT": "ACCURACY", "NUM_STREAMS": parts,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(), "CACHE_DIR": str(folder / "compiled"),
        }  # fmt: skip
        compiled = self._core.compile_model(folder / FILE, "CPU", options)
        requests, lock = [compiled.create_infer_request() for _ in range(parts)], threading.Lock()

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            whole: list[np.ndarray] = [x.detach().contiguous().numpy() for x in inputs]
            given = [np.split(x, parts) if parts > 1 else [x] for x in whole]
            with lock:
                for k, request in enumerate(requests):
                    request.start_async({i: x[k] for i, x in enumerate(given)}, share_inputs=True)
                for request in requests:
                    request.wait()
                said = [[np.array(r.get_output_tensor(i).data) for r in requests] for i in range(len(compiled.outputs))]
            return [torch.from_numpy(np.concatenate(x) if parts > 1 else x[0]) for x in said]

        return run


def parts_of(inputs: Sequence[Tensor], threads: int) -> int:
    """How many equal parts of the rows run side by side: a divisor of the threads and of the rows, each of `ROWS` or more.

    1 where the inputs aren't rows of one batch.
    """
    rows = {len(x) if x.ndim else 0 for x in inputs}
    if len(rows) != 1:
        return 1
    n = rows.pop()
    return max((p for p in range(1, threads + 1) if threads % p == 0 and n % p == 0 and n // p >= ROWS), default=1)
