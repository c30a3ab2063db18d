"""ImageReward (arXiv 2304.05977): BLIP (arXiv 2201.12086) reads prompt and picture together, a head gives the reward.

    h = text(tokens, vision(pixels))[0]            the first token, after cross attention to all patches
    reward = (head(h) - .16717362830052426) / 1.0333394966054072

Networks are transformers' own BLIP blocks; `convert.image_reward` maps the published names onto them. As the published
code has it, the tokenizer knows BLIP's [DEC] and [ENC] but the first token stays [CLS], pads are masked, and text is cut at
35 tokens; here a longer prompt says so (`settings.max_tokens` reads more).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from allaprima.core.errors import ModelError, SettingError
from allaprima.core.files import read_json, weight_files
from allaprima.oracles.encoder import (
    EncoderOracle,
    SavedModule,
    Step,
    identity,
    loaded_tokenizer,
    on_device,
    tokens_of,
    transformer_flops,
    vision_flops,
)
from allaprima.oracles.pixels import Pixels
from allaprima.oracles.reward_head import RewardHead
from allaprima.oracles.settings import ImageRewardSettings

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the rewards of the published model's validation data, taken off and divided by."""
VISION: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
}  # fmt: skip
"""ViT-L/16 as BLIP has it; its epsilon is timm's, not transformers' default."""
TEXT: dict[str, Any] = {
    "vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "pad_token_id": 0, "is_decoder": True, "bos_token_id": None, "eos_token_id": None,
    "sep_token_id": None,
}  # fmt: skip
"""BERT-base with cross attention (BLIP's med_config.json); to transformers `is_decoder` only means that it has some.
Nothing is generated, so other marks have no part in it."""


class ImageRewardModel(SavedModule):
    """`(pixels, tokens) -> rewards`."""

    def __init__(self, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> None:
        super().__init__()
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        self.config = {"vision": {**VISION, **(vision or {})}, "text": {**TEXT, **(text or {})}}
        self.vision: Any = BlipVisionModel(BlipVisionConfig(**self.config["vision"]))
        self.text: Any = BlipTextModel(BlipTextConfig(**self.config["text"]), add_pooling_layer=False)
        self.head = RewardHead(self.config["text"]["hidden_size"])

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`(B, 3, s, s)` normalised, `(B, L)`, `(B, L)` -> `(B,)` float32."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        # Every patch counts, so there is no mask of them; `is_decoder=False`: words see those behind them too.
        read = self.text(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=seen, is_decoder=False
        ).last_hidden_state
        return (self.head(read[:, 0].float()) - MEAN) / STD

    @classmethod
    def from_pretrained(cls, folder: Path) -> ImageRewardModel:
        """Inverse of `save_pretrained`, float32. Raises `ModelError` or `UnsafeWeightsError`."""
        config = read_json(folder / "config.json")
        if config.get("_class_name") != cls.__name__:
            raise ModelError(
                f"{folder / 'config.json'} names {config.get('_class_name')!r}, {cls.__name__} is due: convert the published"
                " checkpoint (allaprima convert-oracle imagereward)."
            )
        weight_files(folder)
        try:
            # Empty, then filled: initialising half a billion numbers at random would only cost time.
            with torch.device("meta"):
                net = cls(config["vision"], config["text"])
            weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
            net.load_state_dict(weights, assign=True)
            _restore_positions(net)
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as e:
            raise ModelError(f"{folder} cannot be loaded as {cls.__name__}: {e}. Convert the checkpoint again.") from e
        return net


def _restore_positions(net: ImageRewardModel) -> None:
    """`position_ids` is no weight: what isn't saved is made again after a start without memory."""
    table = net.text.embeddings
    table.position_ids = torch.arange(net.config["text"]["max_position_embeddings"]).expand(1, -1)
    left = [n for n, b in net.named_buffers() if b.is_meta]
    if left:
        raise ModelError(f"{left[0]} was not restored: this version of transformers has another BLIP than the one known.")


class ImageRewardOracle(EncoderOracle):
    """How well people would like a picture for its prompt, about -2.5 to 2 (0 is the mean); behind the oracle protocol."""

    name = "imagereward"

    def __init__(
        self, model: ImageRewardModel, tokenizer: Any, fingerprint: str, settings: ImageRewardSettings | None = None,
        step: Step | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings or ImageRewardSettings()
        most = int(model.config["text"]["max_position_embeddings"])
        if self.settings.max_tokens > most:
            raise SettingError(f"oracle.settings.max_tokens = {self.settings.max_tokens}: this text encoder reads {most}.")
        # The head stays in float32, as the published code applies it.
        self.model = on_device(model, self.settings)
        self.model.head.float()
        self.tokenizer, self.fingerprint, self._step = tokenizer, fingerprint, step
        how = "pillow" if self.settings.resize == "published" else "tensor"
        self.pixels = Pixels(int(model.config["vision"]["image_size"]), resize=how)

    @classmethod
    def from_folder(
        cls, folder: Path, settings: ImageRewardSettings | None = None, step: Step | None = None
    ) -> ImageRewardOracle:
        """Load what `convert.image_reward` wrote; raises `ModelError` or `UnsafeWeightsError` naming the file."""
        settings = settings or ImageRewardSettings()
        model = ImageRewardModel.from_pretrained(folder)
        words = folder / "tokenizer"
        if not words.is_dir():
            raise ModelError(f"{words} is missing: convert the checkpoint again, with --tokenizer.")
        print_ = identity("imagereward", settings, folder, words)
        return cls(model, loaded_tokenizer(words), print_, settings, step)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of one score, without the head's."""
        text, vision = self.model.text.config, self.model.vision.config
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        words = transformer_flops(
            text.num_hidden_layers, text.hidden_size, text.intermediate_size, self.settings.max_tokens,
            cross=(patches, vision.hidden_size),
        )  # fmt: skip
        return vision_flops(vision) + words

    @torch.inference_mode()
    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens = tokens_of(self.tokenizer, prompts, self.settings.max_tokens, self.name, self.settings)
        return self.model(self.pixels(images).to(self.model.vision.dtype), **tokens)
