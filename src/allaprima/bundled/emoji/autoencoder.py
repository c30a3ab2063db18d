"""Recipe of the bundled autoencoder: a deeper decoder for the warm start's latent space.

The encoder is the warm start's and stays frozen, so a teacher trained in its latent space needs no translation. The
decoder goes on from the warm start's with two more residual blocks (which begin as the identity): L1 + L1 of gradients
on every training picture of the data set, latents with a little noise on them, as a diffusion model's have.

    python -m allaprima.bundled.emoji.autoencoder --data emoji64.tar --start emoji-start --out runs/autoencoder
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allaprima.bundled.emoji.dataset import known_concepts, load_tar
from allaprima.bundled.emoji.start import load_start_autoencoder
from allaprima.bundled.emoji.teacher import latents_of
from allaprima.distill.loop import LoopConfig, Loss, TrainingProgress, train
from allaprima.models.autoencoder import PixelShuffleAutoencoder

BLOCKS = 5
NOISE = 0.05
"""Standard deviation of the noise on normalised latents: the decoder learns to forgive what a sampler leaves."""
LOOP = LoopConfig(
    max_train_steps=900,
    train_batch_size=32,
    learning_rate=5e-4,
    weight_decay=1e-4,
    emas={"use": 0.995},
    checkpoint_seconds=90,
)


def deepen(start: PixelShuffleAutoencoder, blocks: int = BLOCKS) -> PixelShuffleAutoencoder:
    """The same autoencoder with a decoder of `blocks` residual blocks; the new ones begin as the identity."""
    old = int(start.config["decoder_blocks"])
    deep = PixelShuffleAutoencoder(decoder_blocks=blocks)
    tensors: dict[str, Tensor] = {}
    for name, value in start.state_dict().items():
        parts = name.split(".")
        # dec: 0 convolution, 1..old blocks, then norm, SiLU, convolution, shuffle.
        if parts[0] == "dec" and int(parts[1]) > old:
            parts[1] = str(int(parts[1]) + blocks - old)
        tensors[".".join(parts)] = value
    deep.load_state_dict({**deep.state_dict(), **tensors})
    for i in range(old + 1, blocks + 1):
        last = deep.dec[i].c2
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return deep


def gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    """L1 of horizontal and vertical differences: keeps outlines sharp without an adversary."""
    d = a - b
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


def decoder_loss(images: Tensor, latents: Tensor, batch: int) -> Loss:
    """A `Loss` for the loop. `images: (N,3,64,64)` uint8, `latents: (N,8,16,16)`, normalised."""

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        assert isinstance(model, PixelShuffleAutoencoder)
        pick = torch.randint(len(images), (batch,), generator=g)
        x, z = images[pick].float() / 127.5 - 1, latents[pick]
        z = (z + NOISE * torch.randn(z.shape, generator=g)).contiguous(memory_format=torch.channels_last)
        y = model.decode(z).sample
        return F.l1_loss(y, x) + gradient_l1(y, x)

    return loss


@torch.no_grad()
def psnr(model: PixelShuffleAutoencoder, images: Tensor) -> float:
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

    data = load_tar(args.data)
    known, rest = data.pick(known_concepts(), "train"), data.pick(None, "train", skin=True)
    start = load_start_autoencoder(args.start)
    # Known concepts five times as often: they are what the pair paints.
    images = torch.cat([rest.images, *[known.images] * 4])
    latents = torch.cat([latents_of(rest, start), *[latents_of(known, start)] * 4])
    held_out = data.pick(known_concepts(), "test").images
    torch.manual_seed(0)
    model = deepen(start).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.enc.requires_grad_(False)
    config = replace(LOOP, max_train_steps=args.steps)
    recipe = {
        "name": "emoji-autoencoder",
        "data_sha256": data.sha256,
        "decoder_blocks": BLOCKS,
        "warm_start_psnr": psnr(start, held_out),
    }

    def on_checkpoint(emas: Mapping[str, nn.Module], progress: TrainingProgress) -> None:
        use = emas["use"]
        assert isinstance(use, PixelShuffleAutoencoder)
        use.save_pretrained(args.out / "vae")
        db = psnr(use, held_out)
        (args.out / "progress.json").write_text(json.dumps({"recipe": recipe, **progress.__dict__, "psnr": db}, indent=1))
        print(f"step {progress.step}  {progress.seconds:.0f} s  loss {progress.loss:.4f}  held-out {db:.2f} dB", flush=True)

    train(model, decoder_loss(images, latents, config.train_batch_size), config, args.out, recipe, on_checkpoint)


if __name__ == "__main__":
    main()
