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

from allaprima.models.backends.backend import Run

FILE = "graph.xml"


class OpenVino:
    """On the CPU, in float32, with as many threads as torch has."""

    def __init__(self) -> None:
        import openvino

        self._ov: Any = openvino
        self._core: Any = openvino.Core()

    @property
    def signature(self) -> str:
        """`openvino-YEAR.RELEASE.PATCH`."""
        # get_version adds a build number; the package's version is what can be asked for again.
        return f"openvino-{self._ov.__version__.split('-')[0]}"

    @torch.no_grad()
    def convert(self, module: nn.Module, inputs: Sequence[Tensor], folder: Path) -> None:
        """Fixed shapes: they let it choose its kernels once."""
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
        # Weights stay float32: by default they would be written as float16.
        self._ov.save_model(model, folder / FILE, compress_to_fp16=False)

    def load(self, folder: Path) -> Run:
        """Compiled for this CPU; the compiled form is kept beside the graph."""
        options = {
            # Some CPUs would be given bfloat16 otherwise.
            "INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(), "CACHE_DIR": str(folder / "compiled"),
        }  # fmt: skip
        compiled = self._core.compile_model(folder / FILE, "CPU", options)
        request, lock, outputs = compiled.create_infer_request(), threading.Lock(), len(compiled.outputs)

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            given: list[np.ndarray] = [x.detach().contiguous().numpy() for x in inputs]
            with lock:
                request.infer(dict(enumerate(given)), share_inputs=True)
                return [torch.from_numpy(np.array(request.get_output_tensor(i).data)) for i in range(outputs)]

        return run
