"""OWLv2 as a detector of objects by their names (arXiv 2306.09683)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.core.files import fingerprint, weight_files
from allaprima.oracles.composition import COLOURS, CompositionOracle, Detection, read_composition_prompts
from allaprima.oracles.settings import CompositionSettings, parse

if TYPE_CHECKING:
    from allaprima.oracles.load import OracleRequest

LEAST_SCORE = 0.05
"""Boxes of a lower score are not told at all."""
MAX_OVERLAP = 0.5
"""Intersection over union with a surer box of the same name from which a box is the same object."""


class Owlv2Detector:
    """A transformers folder of Owlv2ForObjectDetection.

    Every patch of the image offers a box, so that overlapping boxes of one name are one object. The colour of a box is
    that of the likeliest of the queries "a photo of a red NAME", ...: OWLv2 names colours itself, where GenEval asks CLIP.

    Args:
        folder: Config, weights as safetensors, tokenizer and preprocessor settings.
        device: Where the network is.
        min_confidence: Score above which an object counts. The model's scores are lower than those of closed-set detectors;
            calibrate it on images whose content you know.

    Raises:
        ModelError: For a folder that isn't such a model.
    """

    name = "owlv2"

    def __init__(self, folder: Path | str, device: str = "cpu", min_confidence: float = 0.2) -> None:
        path = Path(folder)
        weight_files(path)
        import transformers
        from transformers import AutoTokenizer, Owlv2ForObjectDetection

        # transformers 5 has a second class for machines without torchvision.
        processor: Any = getattr(transformers, "Owlv2ImageProcessorPil", None) or transformers.Owlv2ImageProcessor
        transformers.utils.logging.disable_progress_bar()
        try:
            model: Any = Owlv2ForObjectDetection.from_pretrained(path, use_safetensors=True, local_files_only=True)
            self._processor: Any = processor.from_pretrained(path, local_files_only=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as e:
            raise ModelError(f"{path} cannot be loaded as an OWLv2 model: {e}. Copy or download it again.") from e
        self._model = model.float().eval().requires_grad_(False).to(device)
        self._device, self.min_confidence = device, min_confidence
        self._tokens = int(model.config.text_config.max_position_embeddings)
        self.fingerprint = fingerprint(path)

    def detect(self, images: Tensor, names: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Find objects; as `composition.Detector.detect`."""
        return [self._one(image, list(wanted)) for image, wanted in zip(images, names, strict=True)]

    @torch.inference_mode()
    def _one(self, image: Tensor, names: list[str]) -> list[Detection]:
        queries = [f"a photo of a {word}" for n in names for word in (n, *(f"{colour} {n}" for colour in COLOURS))]
        tokens = self._tokenizer(
            queries, padding="max_length", truncation=True, max_length=self._tokens, return_tensors="pt"
        ).to(self._device)
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        seen = self._processor(images=[pixels], return_tensors="pt").pixel_values.to(self._device)
        out = self._model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=seen)
        # (patches, names, 1 + colours)
        logits = out.logits[0].cpu().float().unflatten(1, (len(names), -1))
        boxes = _corners(out.pred_boxes[0].cpu().float()) * max(image.shape[1:])
        detections: list[Detection] = []
        for i, name in enumerate(names):
            scores, colours = logits[:, i, 0].sigmoid(), logits[:, i, 1:].argmax(1)
            for k in _distinct(boxes, scores):
                left, top, right, bottom = boxes[k].tolist()
                found = Detection(name, (left, top, right, bottom), float(scores[k]), COLOURS[int(colours[k])])
                detections.append(found)
        return detections


def _corners(boxes: Tensor) -> Tensor:
    """`(N, 4)`: centre, width and height to left, top, right and bottom."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], 1)


def _distinct(boxes: Tensor, scores: Tensor) -> list[int]:
    """Return the boxes that stay when each surer one removes those that overlap it much, the surest first."""
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    order = [int(k) for k in scores.argsort(descending=True) if scores[k] >= LEAST_SCORE]
    kept: list[int] = []
    for k in order:
        if kept:
            corner = torch.minimum(boxes[kept, 2:], boxes[k, 2:]) - torch.maximum(boxes[kept, :2], boxes[k, :2])
            shared = corner.clamp(min=0).prod(1)
            if bool((shared / (area[kept] + area[k] - shared).clamp(min=1e-9) > MAX_OVERLAP).any()):
                continue
        kept.append(k)
    return kept


def load(request: OracleRequest) -> CompositionOracle:
    """Return the oracle of a card: `source` is the model's folder, `settings.prompts` the file of requirements in it."""
    said = parse(CompositionSettings, request.kind, {"device": request.device, **request.settings})
    detector = Owlv2Detector(request.folder, said.device)
    return CompositionOracle(detector, read_composition_prompts(request.folder / said.prompts))
