"""CLIP score (arXiv 2104.08718) by any CLIP model folder: `100 max(cos(image, text), 0)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.core.files import fingerprint, weight_files
from allaprima.features.preprocess import Preprocess


class CLIPScore:
    """Scorer on a transformers CLIP folder (weights as safetensors, tokenizer, preprocessor settings).

    Raises `ModelError` for a folder that isn't one. The paper this project follows used ViT-bigG.
    """

    higher_is_better = True
    needs_prompts = True
    needs_references = False

    def __init__(self, folder: Path | str) -> None:
        path = Path(folder)
        weight_files(path)
        import transformers
        from transformers import AutoTokenizer, CLIPModel

        transformers.utils.logging.disable_progress_bar()
        self.preprocess = Preprocess.from_folder(path)
        try:
            model: Any = CLIPModel.from_pretrained(
                path, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
            )
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as e:
            raise ModelError(f"{path} cannot be loaded as a CLIP model: {e}. Copy or download it again.") from e
        self._model = model.eval().requires_grad_(False)
        self.length = int(model.config.text_config.max_position_embeddings)
        self.fingerprint = fingerprint(path)
        self.name = f"clip score ({path.name})"

    def protocol(self) -> dict[str, Any]:
        """The model, its resizing and its longest prompt."""
        return {
            "formula": "100 max(cos(image, text), 0)",
            "paper": "arXiv 2104.08718 (with w = 100 instead of 2.5)",
            "features": {
                "name": self.name,
                "fingerprint": self.fingerprint,
                "dim": int(self._model.config.projection_dim),
                "preprocessing": self.preprocess.describe(),
            },
            "prompts": f"as they are, cut at {self.length} tokens",
        }

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B, D)`, unit length."""
        return F.normalize(_tensor(self._model.get_image_features(pixel_values=self.preprocess(images))), dim=1)

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """`(B, D)`, unit length."""
        tokens = self._tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        out = self._model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return F.normalize(_tensor(out), dim=1)

    def score(self, images: Tensor, prompts: Sequence[str], references: Tensor | None = None) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] with prompts -> `(B,)` in [0, 100]."""
        return 100 * (self.embed_images(images) * self.embed_captions(prompts)).sum(1).clamp(min=0)


def _tensor(out: Any) -> Tensor:
    """A tensor before transformers 5, an output with `pooler_output` since."""
    return out if isinstance(out, Tensor) else out.pooler_output
