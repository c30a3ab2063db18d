"""Any transformers vision model folder (DINOv2, CLIP, ViT, ResNet, ...) as a feature network. Safetensors only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.core.files import fingerprint, read_json, weight_files
from allaprima.features.preprocess import Preprocess


class VisionFeatures:
    """`(B, 3, H, W)` in [0, 1] -> the model's pooled output (DINOv2: the normalised class token; CLIP: projected)."""

    def __init__(self, model: Any, preprocess: Preprocess, name: str, fingerprint: str) -> None:
        self.model, self.preprocess = model, preprocess
        self.name, self.fingerprint = name, fingerprint
        self.projects = hasattr(model, "get_image_features")
        config = model.config
        vision = getattr(config, "vision_config", config)
        pooled = "pooled output, or the first token if the model has none"
        self.preprocessing: Mapping[str, Any] = {
            **preprocess.describe(),
            "output": "projected image features" if self.projects else pooled,
        }
        self.patch = getattr(vision, "patch_size", None)
        # Maps after each stage or block, without the embedding's.
        depth = len(getattr(vision, "depths", ())) or getattr(vision, "num_hidden_layers", 0)
        self.layer_names: Sequence[str] = tuple(f"block{i + 1}" for i in range(depth))
        self.dim = int(getattr(config, "projection_dim", 0) if self.projects else 0) or self._width(vision)

    @staticmethod
    def _width(vision: Any) -> int:
        sizes = getattr(vision, "hidden_sizes", None)
        return int(sizes[-1] if sizes else vision.hidden_size)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B, dim)`."""
        pixels = self.preprocess(images)
        if self.projects:
            # A tensor before transformers 5, an output with `pooler_output` since.
            out = self.model.get_image_features(pixel_values=pixels)
            return out if isinstance(out, Tensor) else out.pooler_output
        out = self.model(pixel_values=pixels)
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            pooled = out.last_hidden_state[:, 0] if out.last_hidden_state.ndim == 3 else out.last_hidden_state.mean((2, 3))
        return pooled.flatten(1)

    @torch.inference_mode()
    def layers(self, images: Tensor) -> list[Tensor]:
        """Each block's output; tokens are put back on their grid, class and register tokens left out."""
        pixels = self.preprocess(images)
        net = self.model.vision_model if self.projects else self.model
        hidden = net(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
        return [x if x.ndim == 4 else self._grid(x, pixels) for x in hidden]

    def _grid(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        if not isinstance(self.patch, int):
            raise ModelError(f"{self.name} has no single patch size: its tokens cannot be put on a grid. Use another model.")
        h, w = pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch
        return tokens[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))

    @classmethod
    def from_folder(cls, folder: Path) -> VisionFeatures:
        """Load, float32 and frozen. Raises `ModelError` or `UnsafeWeightsError` naming the file."""
        config = read_json(folder / "config.json")
        preprocess = Preprocess.from_folder(folder)
        weight_files(folder)
        import transformers
        from transformers import AutoModel

        transformers.utils.logging.disable_progress_bar()
        try:
            model: Any = AutoModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False, torch_dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as e:
            raise ModelError(f"{folder} cannot be loaded as a vision model: {e}. Copy or download it again.") from e
        name = str(config.get("model_type", "vision"))
        return cls(model.eval().requires_grad_(False), preprocess, f"{name}:{folder.name}", fingerprint(folder))
