"""Recipe of the autoencoder, an AutoencoderTiny of factor 16: a constructed encoder and a trained decoder.

The encoder is linear. Each 16x16 cell is projected on the 32 principal components of cells (98.4 % of their variance), by
five convolutions whose weights are computed, not trained: four of them gather 2x2 neighbours into channels, the last one
projects. Components are scaled to the square root of their standard deviation, half way between pixels, where the first
few are all that counts, and whitened latents, where all count alike.

The decoder is trained on crowded pictures without captions: squared error of pixels and L1 of their gradients, from latents
with noise on them, so that it forgives what a sampler leaves. (L1 of pixels alone learns nothing but the background, which
fills most of a picture.)

    python -m allaprima.bundled.scenes.autoencoder --out runs/scenes/autoencoder --processes 2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allaprima.bundled.scenes.geometry import BACKGROUND, CELL, CELLS, SIDE, Floats
from allaprima.bundled.scenes.networks import LATENT_CHANNELS, new_autoencoder
from allaprima.bundled.scenes.renderer import crowded_picture, training_pair
from allaprima.distill.devices import Devices
from allaprima.distill.local_sgd import run_locally
from allaprima.distill.loop import LoopConfig, Loss, TrainingProgress, train

NOISE = 0.3
"""Largest standard deviation of the noise on the diffusion model's latents; each picture draws its own up to it."""
LARGEST = 3.0
"""Latents are scaled to this magnitude, beyond which AutoencoderTiny's decoder squeezes what it reads."""
PICTURES = 4000
"""Crowded pictures that the principal components are computed of."""
DATA_SEED = 1
LOOP = LoopConfig(
    max_train_steps=8000,
    train_batch_size=8,
    learning_rate=2e-3,
    weight_decay=0.0,
    emas={"use": 0.995},
    checkpoint_seconds=60,
)


def to_batch(images: Sequence[Any]) -> Tensor:
    """Stack pictures `(H, W, 3)` in [0, 1] to `(B, 3, H, W)` in [-1, 1]."""
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return (x * 2 - 1).contiguous(memory_format=torch.channels_last)


def draw_indices(g: torch.Generator, count: int) -> list[int]:
    """Draw numbers of pairs of the training stream; of 2^40 numbers, none comes twice."""
    return torch.randint(2**40, (count,), generator=g).tolist()


def cells_of(images: Floats) -> Floats:
    """Cut pictures `(B, SIDE, SIDE, 3)` into cells, `(B * CELLS * CELLS, CELL * CELL * 3)`, less the background."""
    parts = (images - BACKGROUND).reshape(-1, CELLS, CELL, CELLS, CELL, 3)
    return np.ascontiguousarray(parts.transpose(0, 1, 3, 2, 4, 5)).reshape(-1, CELL * CELL * 3)


def principal_components(pictures: int = PICTURES) -> tuple[Any, Any]:
    """Compute the projection of the encoder.

    Args:
        pictures: How many crowded pictures to compute it of.

    Returns:
        The projection of cells less the background, `(LATENT_CHANNELS, CELL * CELL * 3)`, scaled so that the largest of
        the latents is `LARGEST`, and the mean square of the latents over cells of training scenes.
    """
    cells = np.concatenate([cells_of(crowded_picture(DATA_SEED, i)[None]) for i in range(pictures)]).astype(np.float64)
    centred = cells - cells.mean(0)
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(cells))
    first = np.argsort(-variances)[:LATENT_CHANNELS]
    vectors = vectors[:, first] * np.sign(vectors[np.abs(vectors[:, first]).argmax(0), first])
    projection = (vectors / variances[first] ** 0.25).T
    projection *= LARGEST / np.abs(cells @ projection.T).max()
    scenes = np.concatenate([cells_of(training_pair(DATA_SEED, i)[1][None]) for i in range(pictures)])
    return projection, float(((scenes @ projection.T) ** 2).mean())


@torch.no_grad()
def construct_encoder(vae: Any, projection: Any) -> None:
    """Fill the convolutions of an encoder so that it projects each cell of a picture.

    A convolution of stride 2 gathers 2x2 neighbours: pixels become 12 numbers, then 48, exactly. Of the 192 of an 8x8
    quarter of a cell, 64 channels keep the combinations that matter most to the projection.

    Args:
        vae: What `networks.new_autoencoder` returns.
        projection: `(LATENT_CHANNELS, CELL * CELL * 3)`.
    """
    layers: list[Any] = [layer for layer in vae.encoder.layers if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    width = layers[0].out_channels
    layers[0].weight[:3, :, 1, 1] = torch.eye(3)
    layers[0].bias[:3] = -torch.from_numpy(BACKGROUND)
    for level, channels in ((1, 3), (2, 12)):
        for y in range(2):
            for x in range(2):
                rows = slice((2 * y + x) * channels, (2 * y + x + 1) * channels)
                layers[level].weight[rows, :channels, 1 + y, 1 + x] = torch.eye(channels)
    # Rows of the projection as (latent, quarter y, x, then 2x2 of 2x2 of 2x2 pixels), in the order the layers gather them.
    tree = torch.from_numpy(projection).reshape(LATENT_CHANNELS, 2, 2, 2, 2, 2, 2, 2, 2, 3)
    # Dimensions: latent, y of 8, 4, 2, 1, x of 8, 4, 2, 1, colour. Gathered: quarter (y, x) | 4s | 2s | 1s | colour.
    quarters = tree.permute(0, 1, 5, 2, 6, 3, 7, 4, 8, 9).reshape(LATENT_CHANNELS, 4, 4, 48)
    flat = quarters.reshape(LATENT_CHANNELS * 4, 192)
    _, _, basis = torch.linalg.svd(flat, full_matrices=False)
    basis = basis[:width]  # (width, 192)
    for y in range(2):
        for x in range(2):
            part = 2 * y + x
            layers[3].weight[:, :48, 1 + y, 1 + x] = basis.reshape(width, 4, 48)[:, part].float()
            layers[4].weight[:LATENT_CHANNELS, :, 1 + y, 1 + x] = (quarters.reshape(-1, 4, 192)[:, part] @ basis.T).float()
    layers[5].weight[:, :LATENT_CHANNELS, 1, 1] = torch.eye(LATENT_CHANNELS)


def linear_encoder(vae: Any) -> tuple[Tensor, Tensor]:
    """Return the encoder as one matrix, `(CELL * CELL * 3, LATENT_CHANNELS)`, and the latents of an empty cell.

    The same numbers as the convolutions' up to rounding, in a tenth of the time: trainings read scenes through it. Latents
    are the diffusion model's, scaled by the autoencoder's `scaling_factor`.
    """
    with torch.no_grad():
        blank = torch.from_numpy(BACKGROUND).reshape(1, 3, 1, 1).expand(1, 3, CELL, CELL) * 2 - 1
        empty = vae.encoder(blank.contiguous())[0, :, 0, 0]
        impulses = torch.eye(CELL * CELL * 3).reshape(-1, CELL, CELL, 3).permute(0, 3, 1, 2) * 2
        answers = torch.cat([vae.encoder(blank + part)[:, :, 0, 0] for part in impulses.split(256)])
    scale = vae.config.scaling_factor
    return (answers - empty) * scale, empty * scale


def encode_scenes(images: Sequence[Floats], encoder: tuple[Tensor, Tensor]) -> Tensor:
    """Return the latents `(B, LATENT_CHANNELS, CELLS, CELLS)` of pictures `(SIDE, SIDE, 3)` in [0, 1].

    Args:
        images: Pictures.
        encoder: What `linear_encoder` returned.
    """
    matrix, empty = encoder
    latents = torch.from_numpy(cells_of(np.stack(images))) @ matrix + empty
    return latents.reshape(len(images), CELLS, CELLS, LATENT_CHANNELS).permute(0, 3, 1, 2)


def gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    """L1 of horizontal and vertical differences, which keeps outlines sharp."""
    d = a - b
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


def decoder_loss(vae: Any, batch: int) -> Loss:
    """Return the loss of the decoder for the loop."""
    encoder, scale = linear_encoder(vae), vae.config.scaling_factor

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        images = [crowded_picture(DATA_SEED, i) for i in draw_indices(g, batch)]
        x, z = to_batch(images), encode_scenes(images, encoder)
        level = NOISE * torch.rand(batch, 1, 1, 1, generator=g)
        z = (z + level * torch.randn(z.shape, generator=g)) / scale
        y = model(z.contiguous(memory_format=torch.channels_last))
        return 20 * F.mse_loss(y, x) + 2 * gradient_l1(y, x)

    return loss


@torch.no_grad()
def reconstructions(vae: Any, images: Tensor, batch: int = 100) -> Tensor:
    """Return pictures after encoding and decoding, `(B, 3, SIDE, SIDE)` in [-1, 1]."""
    assert images.shape[-1] == SIDE
    return torch.cat([vae.decoder(vae.encoder(x)).clamp(-1, 1) for x in images.split(batch)])


def save_autoencoder(vae: Any, folder: Path) -> None:
    """Write an autoencoder in diffusers' format, without the field of its config that AutoencoderTiny warns of."""
    vae.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    kept = {k: v for k, v in config.items() if k not in ("block_out_channels", "_name_or_path")}
    (folder / "config.json").write_text(json.dumps(kept, indent=2) + "\n")


def prepare_autoencoder(pictures: int = PICTURES) -> Any:
    """Return the autoencoder with its constructed encoder and an untrained decoder."""
    torch.manual_seed(0)
    projection, power = principal_components(pictures)
    vae = new_autoencoder()
    construct_encoder(vae, projection)
    vae.register_to_config(scaling_factor=power**-0.5)
    return vae.to(memory_format=torch.channels_last)


def train_autoencoder(out: Path, config: LoopConfig, pictures: int, devices: Devices) -> None:
    """Construct the encoder and train the decoder into `out`; resumes when it holds a checkpoint."""
    vae = prepare_autoencoder(pictures)
    vae.encoder.requires_grad_(False)
    if devices.main and not (out / "vae").exists():
        save_autoencoder(vae, out / "vae")
    test = to_batch([training_pair(DATA_SEED + 1, i)[1] for i in range(100)])

    def on_checkpoint(emas: Mapping[str, nn.Module], progress: TrainingProgress) -> None:
        kept = vae.decoder
        vae.decoder = emas["use"]
        save_autoencoder(vae, out / "vae")
        mse = float((reconstructions(vae, test) - test).square().mean()) / 4
        vae.decoder = kept
        (out / "progress.json").write_text(json.dumps({**progress.__dict__, "test_mse": mse}, indent=1))
        print(f"step {progress.step}  {progress.seconds:.0f} s  loss {progress.loss:.4f}  test MSE {mse:.6f}", flush=True)

    recipe = {"name": "scenes-autoencoder", "noise": NOISE, "data_seed": DATA_SEED, "pictures": pictures}
    loss = decoder_loss(vae, config.train_batch_size)
    train(vae.decoder, loss, config, out, recipe, on_checkpoint, devices=devices)


def main() -> None:
    """Run the recipe from the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="run folder; run again to resume")
    p.add_argument("--steps", type=int, default=LOOP.max_train_steps)
    p.add_argument("--pictures", type=int, default=PICTURES, help="pictures that principal components are computed of")
    p.add_argument("--processes", type=int, default=1, help="processes of one thread that average their weights")
    args = p.parse_args()
    run_locally(train_autoencoder, (args.out, replace(LOOP, max_train_steps=args.steps), args.pictures), args.processes)


if __name__ == "__main__":
    main()
