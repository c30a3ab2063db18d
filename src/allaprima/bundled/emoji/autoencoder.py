"""Recipe of the bundled autoencoder: diffusers' AutoencoderDC in its smallest form, in the warm start's latent space.

The encoder regresses the warm start's normalised latents, so a teacher warm-started in that space needs no translation
and the scaling factor is 1; the decoder is trained on them and on the encoder's own, with L1 + L1 of gradients.
All concepts of the training split are used (an autoencoder should know more than the teacher).

    python -m allaprima.bundled.emoji.autoencoder --data emoji64.tar --start emoji-start --out runs/autoencoder
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allaprima.bundled.emoji.dataset import known_concepts, load_tar
from allaprima.bundled.emoji.start import load_start_autoencoder
from allaprima.bundled.emoji.teacher import latents_of
from allaprima.distill.loop import LoopConfig, Loss, Progress, train

CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 8,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (32, 32, 128),
    "decoder_block_out_channels": (32, 64, 128),
    "encoder_layers_per_block": (0, 1, 2),
    "decoder_layers_per_block": (0, 1, 4),
    "encoder_qkv_multiscales": ((), (), ()),
    "decoder_qkv_multiscales": ((), (), ()),
    "downsample_block_type": "pixel_unshuffle",
    "upsample_block_type": "pixel_shuffle",
    "scaling_factor": 1.0,
}
LOOP = LoopConfig(
    max_train_steps=1000,
    train_batch_size=32,
    learning_rate=2e-3,
    weight_decay=1e-4,
    emas={"use": 0.995},
    checkpoint_seconds=90,
)


def gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    """L1 of horizontal and vertical differences: keeps outlines sharp without an adversary."""
    d = a - b
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


def autoencoder_loss(images: Tensor, latents: Tensor, batch: int) -> Loss:
    """A `Loss` for the loop. `images: (N,3,64,64)` uint8, `latents: (N,8,16,16)` of the warm start."""

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (batch,), generator=g)
        x, z = images[pick].float() / 127.5 - 1, latents[pick]
        z_hat = model.encode(x).latent  # pyright: ignore[reportCallIssue]
        # A little noise, as a diffusion model's latents have: the decoder learns to forgive it.
        y = model.decode(z + 0.05 * torch.randn(z.shape, generator=g)).sample  # pyright: ignore[reportCallIssue]
        return F.mse_loss(z_hat, z) + F.l1_loss(y, x) + gradient_l1(y, x)

    return loss


@torch.no_grad()
def psnr(model: Any, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of encode-decode round trips of `(N,3,64,64)` uint8 pictures."""
    x = images.float() / 127.5 - 1
    y = model.decode(model.encode(x).latent).sample.clamp(-1, 1)
    return -10 * math.log10(float(((y - x) / 2).square().mean()))


def main() -> None:
    """Command line of the recipe."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="emoji64.tar, made by `python -m allaprima.bundled.emoji.build`")
    p.add_argument("--start", type=Path, required=True, help="folder of the warm start")
    p.add_argument("--out", type=Path, required=True, help="run folder; run again to resume")
    p.add_argument("--steps", type=int, default=LOOP.max_train_steps)
    args = p.parse_args()

    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

    data = load_tar(args.data)
    # Known concepts three times as often: they are what the pair paints.
    known = data.pick(known_concepts(), "train")
    rest = data.pick(None, "train")
    images = torch.cat([rest.images, known.images, known.images])
    start = load_start_autoencoder(args.start)
    latents = torch.cat([latents_of(rest, start), *[latents_of(known, start)] * 2])
    held_out = data.pick(known_concepts(), "test").images
    torch.manual_seed(0)
    model = AutoencoderDC(**CONFIG)
    config = replace(LOOP, max_train_steps=args.steps)
    recipe = {"name": "emoji-autoencoder", "data_sha256": data.sha256, "config": CONFIG}

    def on_checkpoint(emas: Mapping[str, nn.Module], progress: Progress) -> None:
        emas["use"].save_pretrained(args.out / "vae")  # pyright: ignore[reportCallIssue]
        db = psnr(emas["use"], held_out)
        (args.out / "progress.json").write_text(json.dumps({"recipe": recipe, **progress.__dict__, "psnr": db}, indent=1))
        print(f"step {progress.step}  {progress.seconds:.0f} s  loss {progress.loss:.4f}  held-out {db:.2f} dB", flush=True)

    train(model, autoencoder_loss(images, latents, config.train_batch_size), config, args.out, recipe, on_checkpoint)


if __name__ == "__main__":
    main()
