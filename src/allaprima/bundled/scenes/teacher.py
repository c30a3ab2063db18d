"""Recipe of the teacher: a latent diffusion model with its text encoder, trained jointly on the endless stream of scenes.

Loss: `min(1 / sigma_t^2, 5) ||x0_hat - x0||^2` with a network that predicts x0. Times are drawn as `1000 u^p`, so that
noisy ones, where the layout is decided, come more often: p is .8 in the first training, .5 in those that go on from it.
Prompts are dropped 10 % of the time for classifier-free guidance.

    python -m allaprima.bundled.scenes.teacher --vae runs/scenes/autoencoder/vae --out runs/scenes/teacher --processes 2
    python -m allaprima.bundled.scenes.teacher --vae runs/scenes/autoencoder/vae --start runs/scenes/teacher \\
        --out runs/scenes/teacher2 --data-seed 11 --lr 6e-4 --time-power .5 --processes 2

`--start` goes on from another training's networks. Every power of two times 100,000 samples, a checkpoint of the networks
is kept in `ladder/`: a ladder of teachers for experiments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allaprima.bundled.scenes.autoencoder import draw_indices, encode_scenes, linear_encoder
from allaprima.bundled.scenes.grammar import MIXTURES
from allaprima.bundled.scenes.networks import SCHEDULER_CONFIG, TOKENS, new_text_encoder, new_tokenizer, new_unet
from allaprima.bundled.scenes.renderer import training_pair
from allaprima.diffusion.schedules import DiscreteVP, expand
from allaprima.distill.devices import Devices
from allaprima.distill.local_sgd import run_locally
from allaprima.distill.loop import LoopConfig, Loss, TrainingProgress, train

DATA_SEED = 10
DROP = 0.1
"""Share of prompts that are replaced by the empty one."""
TIME_POWER = 0.8
"""Times are 1000 times a uniform number to this power."""
LOOP = LoopConfig(
    max_train_steps=14_000,
    train_batch_size=32,
    learning_rate=1e-3,
    warmup_steps=200,
    emas={"use": 0.999},
    checkpoint_seconds=120,
)


class TextToLatents(nn.Module):
    """A denoising network and the text encoder that is trained with it."""

    def __init__(self, unet: Any, text_encoder: Any) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Return the prediction of x0, `(B, C, 4, 4)`, for noisy latents, times `(B,)` and tokens `(B, L)`."""
        hidden = self.text_encoder(input_ids=ids).last_hidden_state
        return self.unet(x_t.contiguous(memory_format=torch.channels_last), t, hidden).sample

    def save_pretrained(self, folder: Path) -> None:
        """Write `unet/` and `text_encoder/`."""
        self.unet.save_pretrained(folder / "unet")
        self.text_encoder.save_pretrained(folder / "text_encoder")

    @classmethod
    def from_pretrained(cls, folder: Path) -> TextToLatents:
        """Read what `save_pretrained` wrote, in float32."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True)
        return cls(unet.float(), load_text_encoder(folder / "text_encoder"))


def load_text_encoder(folder: Path) -> Any:
    """Return a text encoder from its folder, in float32; an untrained one where there is no folder."""
    from transformers import BertModel
    from transformers.utils import logging

    if not folder.exists():
        return new_text_encoder()
    # Exported ones have a pooling layer, of which transformers would warn that it is left out.
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    net: Any = BertModel.from_pretrained(folder, use_safetensors=True, add_pooling_layer=False)
    logging.set_verbosity(before)
    return net.float()


def token_ids(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Return the tokens of captions, `(B, TOKENS)`."""
    return tokenizer(list(captions), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def load_vae(folder: Path) -> Any:
    """Return an autoencoder, frozen, in float32."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    vae: Any = AutoencoderTiny.from_pretrained(folder, use_safetensors=True)
    return vae.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)


def training_batch(
    encoder: tuple[Tensor, Tensor], tokenizer: Any, seed: int, batch: int, g: torch.Generator, mixture: str = "all"
) -> tuple[Tensor, Tensor]:
    """Return latents `(B, C, 4, 4)` and tokens `(B, TOKENS)` of pairs drawn from the stream.

    Args:
        encoder: What `autoencoder.linear_encoder` returned.
        tokenizer: Of the captions.
        seed: Of the stream.
        batch: Number of pairs.
        g: Source of randomness.
        mixture: One of `grammar.MIXTURES`, of the kinds of captions.
    """
    pairs = [training_pair(seed, i, mixture) for i in draw_indices(g, batch)]
    latents = encode_scenes([image for _, image in pairs], encoder)
    return latents, token_ids(tokenizer, [scene.caption() for scene, _ in pairs])


def diffusion_loss(
    vae: Any, tokenizer: Any, batch: int, seed: int = DATA_SEED, time_power: float = TIME_POWER, mixture: str = "all"
) -> Loss:
    """Return the loss of the recipe for the loop."""
    schedule = DiscreteVP.from_config(SCHEDULER_CONFIG)
    empty, encoder = token_ids(tokenizer, [""]), linear_encoder(vae)

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        x0, ids = training_batch(encoder, tokenizer, seed, batch, g, mixture)
        ids = torch.where(torch.rand(batch, 1, generator=g) < DROP, empty, ids)
        t = (1000 * torch.rand(batch, generator=g) ** time_power).long().clamp(max=999)
        eps = torch.randn(x0.shape, generator=g)
        alpha, sigma = schedule.alpha(t).float(), schedule.sigma(t).float()
        x0_hat = model(expand(alpha, x0) * x0 + expand(sigma, x0) * eps, t, ids)
        return (sigma.square().reciprocal().clamp(max=5) * (x0_hat - x0).square().flatten(1).mean(1)).mean()

    return loss


def train_teacher(
    vae_folder: Path, out: Path, start: Path | None, seed: int, time_power: float, mixture: str, config: LoopConfig,
    devices: Devices,
) -> None:  # fmt: skip
    """Train into `out`; resumes when it holds a checkpoint."""
    torch.manual_seed(0)
    model = TextToLatents(new_unet(), new_text_encoder()) if start is None else TextToLatents.from_pretrained(start)
    model.train().requires_grad_(True).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    vae, tokenizer = load_vae(vae_folder), new_tokenizer()
    recipe = {
        "name": "scenes-teacher", "data_seed": seed, "time_power": time_power, "mixture": mixture,
        "goes_on": start is not None,
    }  # fmt: skip

    def on_checkpoint(emas: Mapping[str, nn.Module], progress: TrainingProgress) -> None:
        use = emas["use"]
        assert isinstance(use, TextToLatents)
        use.save_pretrained(out)
        (out / "progress.json").write_text(json.dumps({"recipe": recipe, **progress.__dict__}, indent=1))
        rung = 1 << (progress.samples // 100_000).bit_length() - 1 if progress.samples >= 100_000 else 0
        if rung and not (out / "ladder" / f"{rung}00k").exists():
            use.save_pretrained(out / "ladder" / f"{rung}00k")
        print(
            f"step {progress.step}  samples {progress.samples}  {progress.seconds:.0f} s  loss {progress.loss:.4f}",
            flush=True,
        )

    loss = diffusion_loss(vae, tokenizer, config.train_batch_size, seed, time_power, mixture)
    train(model, loss, config, out, recipe, on_checkpoint, devices=devices)


def main() -> None:
    """Run the recipe from the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vae", type=Path, required=True, help="folder of the autoencoder")
    p.add_argument("--out", type=Path, required=True, help="run folder; run again to resume")
    p.add_argument("--start", type=Path, help="folder with unet/ and text_encoder/ to go on from; default: untrained")
    p.add_argument("--steps", type=int, default=LOOP.max_train_steps)
    p.add_argument("--lr", type=float, default=LOOP.learning_rate)
    p.add_argument("--data-seed", type=int, default=DATA_SEED, help="of the stream; trainings that go on take another")
    p.add_argument("--time-power", type=float, default=TIME_POWER, help="smaller: noisy times more often")
    p.add_argument("--mixture", choices=list(MIXTURES), default="all", help="kinds of captions")
    p.add_argument("--processes", type=int, default=1, help="processes of one thread that average their weights")
    args = p.parse_args()
    config = replace(LOOP, max_train_steps=args.steps, learning_rate=args.lr)
    work = (args.vae, args.out, args.start, args.data_seed, args.time_power, args.mixture, config)
    run_locally(train_teacher, work, args.processes)


if __name__ == "__main__":
    main()
