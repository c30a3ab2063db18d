"""A reward model on a diffusion model's own network: features of a picture at time 0, pooled, to one logit.

The network that learned to paint a prompt knows how its words and a picture belong together (a latent reward model,
arXiv 2502.01051). It is trained on pictures with right and wrong prompts; `P(right) = sigmoid(score)`. It reads pictures
with its own autoencoder's encoder and prompts with its own text encoder, so that it belongs to no pair.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from allaprima.core.errors import ModelError
from allaprima.core.files import read_json
from allaprima.data.grammars import GRAMMARS, canonical_prompt
from allaprima.oracles.load import OracleRequest, folder_digest


class LatentRewardModel(nn.Module):
    """`(latents, times, tokens) -> logits`.

    Args:
        encoder: Pictures `(B, 3, H, W)` in [-1, 1] to latents; frozen.
        unet: A UNet2DConditionModel; its last convolution is replaced.
        text_encoder: A BertModel without a pooling layer.
        scaling_factor: What the network's latents are of the encoder's, a factor.
        head_width: Width of the hidden layer behind the pooled features.
    """

    def __init__(self, encoder: Any, unet: Any, text_encoder: Any, scaling_factor: float, head_width: int = 128) -> None:
        super().__init__()
        self.encoder, self.unet, self.text_encoder = encoder, unet, text_encoder
        self.scaling_factor, self.head_width = scaling_factor, head_width
        self.unet.conv_out = nn.Identity()
        width = int(unet.config.block_out_channels[0])
        last = nn.Linear(head_width, 1)
        nn.init.zeros_(last.weight)
        self.head = nn.Sequential(nn.Linear(2 * width, head_width), nn.SiLU(), last)

    def forward(self, latents: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Return logits `(B,)` for latents `(B, C, h, w)`, times `(B,)` (0 for a finished picture) and tokens `(B, L)`."""
        hidden = self.text_encoder(input_ids=ids).last_hidden_state
        features = self.unet(latents.contiguous(memory_format=torch.channels_last), t, hidden).sample.flatten(2)
        return self.head(torch.cat([features.mean(2), features.amax(2)], 1)).squeeze(1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Return latents `(B, C, h, w)` of pictures `(B, 3, H, W)` in [0, 1]."""
        return self.encoder((images * 2 - 1).contiguous(memory_format=torch.channels_last)) * self.scaling_factor

    def save_pretrained(self, folder: Path, tokenizer: Any, vae_config: Any, grammar: str | None = None) -> None:
        """Write `config.json`, `model.safetensors` in float16 and `tokenizer/`.

        Args:
            folder: Where to.
            tokenizer: Of the text encoder.
            vae_config: Config of the autoencoder whose encoder this is.
            grammar: One of `data.grammars.GRAMMARS` for a model that knows sentences of one kind only.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "_class_name": type(self).__name__,
            "scaling_factor": self.scaling_factor,
            "head_width": self.head_width,
            "grammar": grammar,
            # AutoencoderTiny makes `block_out_channels` again, and warns of one that it reads.
            "vae": {k: v for k, v in _plain(vae_config).items() if k != "block_out_channels"},
            "unet": _plain(self.unet.config),
            "text_encoder": self.text_encoder.config.to_diff_dict(),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        tokenizer.save_pretrained(folder / "tokenizer")

    @classmethod
    def from_pretrained(cls, folder: Path) -> tuple[Self, str | None]:
        """Read what `save_pretrained` wrote: the model in float32, frozen, and its grammar.

        Raises:
            ModelError: If the folder is not whole.
        """
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers import BertConfig, BertModel

        config = read_json(folder / "config.json")
        try:
            vae: Any = AutoencoderTiny.from_config(config["vae"])
            unet: Any = UNet2DConditionModel.from_config(config["unet"])
            text_encoder = BertModel(BertConfig(**config["text_encoder"]), add_pooling_layer=False)
            net = cls(vae.encoder, unet, text_encoder, float(config["scaling_factor"]), int(config["head_width"]))
            state = load_file(folder / "model.safetensors")
            net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
            grammar = config["grammar"]
            if grammar is not None and grammar not in GRAMMARS:
                raise ModelError(f"grammar {grammar!r} is not known: {', '.join(GRAMMARS)} are")
        except Exception as e:
            raise ModelError(f"{folder} cannot be loaded as a {cls.__name__}: {e}. Copy or download it again.") from e
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return net.eval().requires_grad_(False), grammar


def _plain(config: Any) -> dict[str, Any]:
    return {k: v for k, v in dict(config).items() if k != "_name_or_path"}


class LatentRewardOracle:
    """A latent reward model behind the oracle protocol.

    Args:
        model: The network.
        tokenizer: Of its text encoder.
        grammar: One of `data.grammars.GRAMMARS`; prompts are read by it.
        fingerprint: Hash of weights and config.
        cost: What a look costs as a share of a guided teacher step.
    """

    def __init__(
        self, model: LatentRewardModel, tokenizer: Any, grammar: str | None, fingerprint: str, cost: float = 0.6
    ) -> None:
        self.model, self.tokenizer, self.grammar = model, tokenizer, grammar
        self.name, self.fingerprint, self.cost = "latent_reward", fingerprint, cost

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """Return the tokens of prompts, `(B, L)`, as the text encoder reads them."""
        sentences = [canonical_prompt(self.grammar, prompt) for prompt in prompts]
        length = self.model.text_encoder.config.max_position_embeddings
        found = self.tokenizer(sentences, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return found.input_ids

    @torch.inference_mode()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the logit of each picture being right for its prompt, `(B,)`; higher is better.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            prompts: One each.
        """
        latents = self.model.encode_images(images)
        return self.model(latents, torch.zeros(len(images)), self.token_ids(prompts))


def load(request: OracleRequest) -> LatentRewardOracle:
    """Load the oracle of a card's folder (`oracles.load`)."""
    from transformers import AutoTokenizer

    request.no_settings()
    model, grammar = LatentRewardModel.from_pretrained(request.folder)
    tokenizer = AutoTokenizer.from_pretrained(request.folder / "tokenizer", trust_remote_code=False)
    return LatentRewardOracle(model, tokenizer, grammar, folder_digest(request.folder))
