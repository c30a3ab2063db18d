"""Recipe of the bundled teacher: v-prediction diffusion on normalised latents, warm-started, on well-known concepts.

Loss: `min(SNR_t, 5) / (SNR_t + 1) * ||v_hat - v||^2`, `v = alpha eps - sigma x0` (progressive distillation,
arXiv 2202.00512; min-SNR, arXiv 2303.09556, with its v-prediction weight). Prompts are dropped 10 % of the time.

    python -m allaprima.bundled.emoji.teacher --data emoji64.tar --start emoji-start --out runs/teacher
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allaprima.bundled.emoji.dataset import EmojiData, known_concepts, load_tar
from allaprima.bundled.emoji.start import load_start_autoencoder
from allaprima.bundled.emoji.text import embed, load_text_encoder
from allaprima.diffusion.schedules import DiscreteVP, expand
from allaprima.distill.loop import LoopConfig, TrainingProgress, train

SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
LOOP = LoopConfig(max_train_steps=6000, train_batch_size=32, learning_rate=6e-4, emas={"use": 0.999})


@torch.no_grad()
def latents_of(data: EmojiData, autoencoder: Any, batch: int = 128) -> Tensor:
    """Normalised latents of every picture."""
    images = data.images
    parts = [autoencoder.encode(images[i : i + batch].float() / 127.5 - 1).latent for i in range(0, len(images), batch)]
    return torch.cat(parts)


def min_snr_v_loss(v_hat: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """Weighted squared error, a scalar. `alpha, sigma: (B,)`."""
    snr = (alpha / sigma).square()
    weight = torch.minimum(snr, torch.full_like(snr, gamma)) / (snr + 1)
    return (weight * (v_hat - v).square().flatten(1).mean(1)).mean()


def diffusion_loss(
    latents: Tensor, texts: Tensor, null: Tensor, schedule: DiscreteVP, batch_size: int, drop: float = 0.1
) -> Any:
    """A `Loss` for the loop. `latents: (N,C,H,W)`, `texts: (N,L,D)`, `null: (1,L,D)`."""

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (batch_size,), generator=g)
        x0, cond = latents[index], texts[index]
        cond = torch.where(torch.rand(batch_size, 1, 1, generator=g) < drop, null, cond)
        t = torch.randint(schedule.num_train_timesteps, (batch_size,), generator=g)
        eps = torch.randn(x0.shape, generator=g)
        a, s = schedule.alpha(t).float(), schedule.sigma(t).float()
        x_t = expand(a, x0) * x0 + expand(s, x0) * eps
        v = expand(a, x0) * eps - expand(s, x0) * x0
        v_hat = model(x_t.contiguous(memory_format=torch.channels_last), t, cond).sample
        return min_snr_v_loss(v_hat, v, a, s)

    return loss


def main() -> None:
    """Command line of the recipe."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="emoji64.tar, made by `python -m allaprima.bundled.emoji.build`")
    p.add_argument("--start", type=Path, required=True, help="folder of the warm start (unet/, autoencoder.safetensors)")
    p.add_argument("--text", type=Path, help="folder of a text encoder; default: the bundled one")
    p.add_argument("--out", type=Path, required=True, help="run folder; run again to resume")
    p.add_argument("--unet", type=Path, help="start from this UNet folder instead of the warm start's")
    p.add_argument("--steps", type=int, default=LOOP.max_train_steps)
    p.add_argument("--lr", type=float, default=LOOP.learning_rate)
    args = p.parse_args()

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    data = load_tar(args.data).pick(known_concepts(), "train")
    schedule = DiscreteVP.from_config(SCHEDULER_CONFIG)
    latents = latents_of(data, load_start_autoencoder(args.start))
    tokenizer, encoder = load_text_encoder(args.text)
    texts, null = embed(tokenizer, encoder, [r.caption for r in data.rows]), embed(tokenizer, encoder, [""])
    source = args.unet or args.start / "unet"
    unet: Any = UNet2DConditionModel.from_pretrained(source, use_safetensors=True).float().train()
    unet.to(memory_format=torch.channels_last)
    config = replace(LOOP, max_train_steps=args.steps, learning_rate=args.lr)
    recipe = {
        "name": "emoji-teacher",
        "data_sha256": data.sha256,
        "pictures": len(data.rows),
        "warm_start": source.parent.name,
    }

    def on_checkpoint(emas: Mapping[str, nn.Module], progress: TrainingProgress) -> None:
        emas["use"].save_pretrained(args.out / "unet")  # pyright: ignore[reportCallIssue]
        (args.out / "progress.json").write_text(json.dumps({"recipe": recipe, **progress.__dict__}, indent=1))
        print(
            f"step {progress.step}  samples {progress.samples}  {progress.seconds:.0f} s  loss {progress.loss:.4f}",
            flush=True,
        )

    train(
        unet,
        diffusion_loss(latents, texts, null, schedule, config.train_batch_size),
        config,
        args.out,
        recipe,
        on_checkpoint,
    )


if __name__ == "__main__":
    main()
