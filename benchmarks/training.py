"""Training speed: consistency distillation as this project does it, against the step of diffusers' own script.

    python -m benchmarks.training [--json] [--models emoji,sd15-tiny] [--batch 16] [--blocks 7] [--steps 3] [--threads N]

The other side is the step of `examples/consistency_distillation/train_lcm_distill_sd_wds.py` (huggingface/diffusers,
Apache-2.0), written anew here with diffusers' classes and in the script's order of operations.

What one step is, on both sides, in float32 and with the same teacher, start weights, batch and settings:

- a batch of latents and prompt embeddings is drawn from memory; texts and pictures are encoded beforehand on both sides;
- times from LCM's 50 (999, 979, ..., 19), noise, guidance scales from U[6, 16] with their 256-wide embedding;
- the student with the embedding, once; c_skip and c_out with timestep scaling 10;
- the teacher for the prompt and for the empty prompt, without gradients: two passes in the script, a doubled one here;
- classifier-free guidance, a DDIM step to the next time; the target network there, with the embedding, once;
- the Huber distance of each number with c = .001, backward, gradients clipped to norm 1, AdamW (betas .9 and .999, weight
  decay .01; PyTorch's default kind in the script, the fused one here), a constant learning rate, gradients freed;
- an EMA of .95 into the target: a loop over parameters in the script, one fused pass here.

Ours does more: a second EMA copy, which is what is exported, and checks that loss and gradient are finite numbers. The
script is spared `accelerate`'s bookkeeping, logging, and its autocast, which on a CPU runs the teacher in bfloat16 (other
numbers, and slower wherever the CPU has no bfloat16). Ours is the real path: `distill.methods.consistency`'s objective and
the loop's own optimizer, descent and EMA.

First both sides are given the same draw: loss and gradient must agree. Then blocks of steps alternate; medians over blocks
with the ends, of samples a second by the clock and of CPU seconds a step, which other work on the machine disturbs less.

`from_pictures` is the script's step with what it does before these: every batch's captions go through the text encoder and
its pictures through the autoencoder, each time they are drawn. Ours read them once, before the first step, and never again;
what once costs is printed beside it (`encode_once_ms`, a picture with its caption). Both sides then take the same updates
from the same pictures and captions; the work that is left out is encoding again what was encoded before.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from allaprima.bundled.emoji.dataset import STYLES, known_concepts
from allaprima.core.errors import SettingError
from allaprima.core.types import Condition
from allaprima.diffusion.schedules import DiscreteVP
from allaprima.distill.embedded_guidance import NEW, with_embedded_guidance
from allaprima.distill.loop import adamw, descend, learning_rate, step_generator, update_emas
from allaprima.distill.methods import consistency
from allaprima.distill.methods.common import TrainingSetup, loop_config, trainable
from allaprima.distill.recipe import Recipe
from allaprima.distill.training_data import TrainingData, embedded
from allaprima.models.cards.card import TextSettings, load_card
from allaprima.models.components.loading import read_json
from allaprima.models.families.sd import SDModel
from allaprima.models.loading.pair import load_pair
from benchmarks.overhead import spread

HUBER, SCALES, GRID, EMA = 0.001, (6.0, 16.0), 50, 0.95
OPTIONS = consistency.ConsistencyOptions(
    w=SCALES, grid_points=GRID, target_ema=EMA, huber=HUBER, huber_over="element", embedded_guidance=True, boundary="lcm"
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One teacher with its scheduler's config, what it is distilled on, and the student's start."""

    teacher: SDModel
    scheduler: Mapping[str, Any]
    data: TrainingData
    null: Condition
    start: Any
    """A UNet with guidance embedded."""
    pictures: tuple[Tensor, tuple[str, ...]] | None = None
    """Pictures `(N, 3, H, W)` uint8 and their captions, for the script that encodes in its step."""


def case_of(teacher: SDModel, scheduler: Mapping[str, Any], conditions: Condition, null: Condition) -> Case:
    """With a seeded start and latents of noise: neither changes what a step costs."""
    g = torch.Generator().manual_seed(0)
    start, n = with_embedded_guidance(teacher.unet), len(conditions)
    start.state_dict()[NEW].normal_(0, 0.02, generator=g)
    side = teacher.unet.config.sample_size
    latents = torch.randn(4 * n, teacher.unet.config.in_channels, side, side, generator=g)
    data = TrainingData(latents, conditions, torch.arange(4 * n) % n, tuple(map(str, range(n))), "noise")
    return Case(teacher, scheduler, data, null, start)


def emoji() -> Case:
    """Return the bundled teacher, on prompts it knows."""
    card = load_card("emoji")
    teacher = load_pair(card).teacher
    prompts = [f"{c}, {STYLES[i % len(STYLES)]}" for i, c in enumerate(known_concepts()[:64])]
    scheduler = read_json(card.path(card.teacher.source or "") / "scheduler" / "scheduler_config.json")
    made = case_of(teacher, scheduler, embedded(prompts, teacher.condition), teacher.condition([""]).clone())
    # Noise for pictures, as for latents: what they show changes nothing about what they cost.
    pixels = torch.randint(0, 256, (256, 3, 64, 64), generator=torch.Generator().manual_seed(2)).byte()
    return dataclasses.replace(made, pictures=(pixels, tuple(prompts[i % len(prompts)] for i in range(256))))


def sd15_tiny() -> Case:
    """Random weights in Stable Diffusion 1.5's shape: its blocks and 77 tokens of 768, a tenth of its width."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64, 128, 128), layers_per_block=2, cross_attention_dim=768,
        attention_head_dim=8, norm_num_groups=32,
    )  # fmt: skip
    unet = unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
    teacher = SDModel(
        unet=unet, vae=None, text_encoder=None, tokenizer=None, schedule=DiscreteVP.from_config(scheduler),
        prediction="epsilon", text=TextSettings(), fingerprints={"unet": "tiny"},
    )  # fmt: skip
    embeds = torch.randn(64, 77, 768, generator=torch.Generator().manual_seed(1))
    return case_of(teacher, scheduler, Condition({"prompt_embeds": embeds}), Condition({"prompt_embeds": embeds[:1] * 0}))


CASES: Mapping[str, Callable[[], Case]] = {"emoji": emoji, "sd15-tiny": sd15_tiny}


class Ours:
    """The method's objective and the loop's parts, put together as `distill.loop.train` does."""

    def __init__(self, case: Case, batch: int, rate: float) -> None:
        loop = {
            "max_train_steps": 10**6, "train_batch_size": batch, "learning_rate": rate, "warmup_steps": 0,
            "adam_beta2": 0.999, "weight_decay": 1e-2, "max_grad_norm": 1.0,
        }  # fmt: skip
        recipe = Recipe.model_validate({"method": "consistency", "options": OPTIONS.model_dump(), "loop": loop})
        self.setup = TrainingSetup(case.teacher, case.data, case.null, recipe, Path(tempfile.gettempdir()))
        self.config = loop_config(recipe.loop, target=EMA)
        self.model = trainable(copy.deepcopy(case.start), recipe.loop)
        self.emas = {name: copy.deepcopy(self.model).requires_grad_(False) for name in self.config.emas}
        self.optimizer = adamw(self.model, self.config)
        self.objective = consistency.objective(self.setup, OPTIONS)

    def draw(self, step: int) -> consistency.Draw:
        """Return what step number `step` is about."""
        return consistency.draw(self.setup, OPTIONS, GRID, step_generator(self.config.seed, step))

    def loss(self, step: int) -> Tensor:
        """Its loss."""
        return self.objective(self.model, self.emas, step_generator(self.config.seed, step))

    def step(self, step: int) -> float:
        """Train by it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        generators = [step_generator(self.config.seed, step)]

        def loss(g: torch.Generator) -> Tensor:
            return self.objective(self.model, self.emas, g)

        current = descend(loss, generators, [self.optimizer], self.config, f"step {step}", self.setup.devices)
        update_emas(self.emas, self.model, self.config, step)
        return current


def per_sample(table: Tensor, index: Tensor) -> Tensor:
    """Entries of a table as `(B, 1, 1, 1)`."""
    return table.gather(-1, index).reshape(-1, 1, 1, 1)


def embedding(w: Tensor, dim: int) -> Tensor:
    """Return the script's embedding of its w, which is the guidance scale less one."""
    half = dim // 2
    steps = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = (w * 1000.0)[:, None] * steps[None, :]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def scalings(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, `(B, 1, 1, 1)`."""
    scaled = 10.0 * timesteps.reshape(-1, 1, 1, 1)
    return 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5


class Script:
    """The script's step, in its order."""

    def __init__(self, case: Case, batch: int, rate: float) -> None:
        self.data, self.batch = case.data, batch
        self.noise_scheduler: Any = DDPMScheduler.from_config(dict(case.scheduler))
        self.kind = str(self.noise_scheduler.config.prediction_type)
        cumprod = self.noise_scheduler.alphas_cumprod
        self.alphas, self.sigmas = torch.sqrt(cumprod), torch.sqrt(1 - cumprod)
        self.skip = len(cumprod) // GRID
        self.timesteps = torch.arange(1, GRID + 1) * self.skip - 1
        # Kept in float64, as the script has it.
        self.cumprod_prev = torch.tensor([float(cumprod[0]), *cumprod[self.timesteps[:-1]].tolist()], dtype=torch.float64)
        plain = torch.contiguous_format
        self.teacher = copy.deepcopy(case.teacher.unet).to(memory_format=plain)
        self.unet = copy.deepcopy(case.start).to(memory_format=plain).requires_grad_(True).train()
        self.target = copy.deepcopy(case.start).to(memory_format=plain).train()
        self.dim = int(self.unet.config.time_cond_proj_dim)
        self.empty = case.null.tensors["prompt_embeds"].expand(batch, -1, -1).clone()
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        self.lr_scheduler = get_scheduler("constant", optimizer=self.optimizer)

    def x0(self, output: Tensor, t: Tensor, sample: Tensor) -> Tensor:
        """Clean prediction."""
        a, s = per_sample(self.alphas, t), per_sample(self.sigmas, t)
        return (sample - s * output) / a if self.kind == "epsilon" else a * sample - s * output

    def eps(self, output: Tensor, t: Tensor, sample: Tensor) -> Tensor:
        """Predicted noise."""
        a, s = per_sample(self.alphas, t), per_sample(self.sigmas, t)
        return output if self.kind == "epsilon" else a * output + s * sample

    def loss(self, latents: Tensor, embeds: Tensor, index: Tensor, noise: Tensor, w: Tensor) -> Tensor:
        """Parts 2 to 10 of the script's step; `index` counts its times upwards, `w` is the guidance scale less one."""
        start = self.timesteps[index]
        timesteps = start - self.skip
        timesteps = torch.where(timesteps < 0, torch.zeros_like(timesteps), timesteps)
        c_skip_start, c_out_start = scalings(start)
        c_skip, c_out = scalings(timesteps)
        noisy = self.noise_scheduler.add_noise(latents, noise, start)
        told = embedding(w, self.dim)
        w = w.reshape(-1, 1, 1, 1)
        output = self.unet(noisy, start, timestep_cond=told, encoder_hidden_states=embeds.float()).sample
        model_pred = c_skip_start * noisy + c_out_start * self.x0(output, start, noisy)
        with torch.no_grad():
            cond = self.teacher(noisy, start, encoder_hidden_states=embeds).sample
            cond_x0, cond_eps = self.x0(cond, start, noisy), self.eps(cond, start, noisy)
            uncond = self.teacher(noisy, start, encoder_hidden_states=self.empty).sample
            uncond_x0, uncond_eps = self.x0(uncond, start, noisy), self.eps(uncond, start, noisy)
            pred_x0 = cond_x0 + w * (cond_x0 - uncond_x0)
            pred_eps = cond_eps + w * (cond_eps - uncond_eps)
            prev = per_sample(self.cumprod_prev, index)
            x_prev = prev.sqrt() * pred_x0 + (1.0 - prev).sqrt() * pred_eps
        with torch.no_grad():
            output = self.target(x_prev.float(), timesteps, timestep_cond=told, encoder_hidden_states=embeds.float()).sample
            target = c_skip * x_prev + c_out * self.x0(output, timesteps, x_prev)
        return torch.mean(torch.sqrt((model_pred.float() - target.float()) ** 2 + HUBER**2) - HUBER)

    def loss_of(self, d: consistency.Draw) -> Tensor:
        """Return the loss of what the other side drew."""
        return self.loss(d.x0, d.cond.tensors["prompt_embeds"], GRID - 1 - d.index, d.eps, d.w - 1)

    def descend(self, loss: Tensor) -> float:
        """Parts 11 and 12, and the loss as it is logged."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for mine, theirs in zip(self.target.parameters(), self.unet.parameters(), strict=True):
                mine.detach().mul_(EMA).add_(theirs, alpha=1 - EMA)
        return loss.detach().item()

    def step(self, step: int) -> float:
        """Train on a batch and draws of its own."""
        latents, cond = self.data.draw(self.batch, step_generator(1, step))
        index = torch.randint(0, GRID, (self.batch,)).long()
        w = (SCALES[1] - SCALES[0]) * torch.rand((self.batch,)) + SCALES[0] - 1
        return self.descend(self.loss(latents, cond.tensors["prompt_embeds"], index, torch.randn_like(latents), w))


@torch.no_grad()
def encode(case: Case, index: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Latents and hidden states of some of the pictures and their captions."""
    assert case.pictures is not None
    pixels, captions = case.pictures
    latents = case.teacher.vae.encode(pixels[list(index)].float() / 127.5 - 1).latent
    return latents, case.teacher.encode([captions[i] for i in index]).clone()


class FromPictures(Script):
    """The same, with part 1: captions and pictures are encoded in each step."""

    def __init__(self, case: Case, batch: int, rate: float) -> None:
        super().__init__(case, batch, rate)
        self.case = case

    def step(self, step: int) -> float:
        """Train on a batch of pictures."""
        assert self.case.pictures is not None
        drawn = torch.randint(len(self.case.pictures[1]), (self.batch,), generator=step_generator(1, step))
        latents, embeds = encode(self.case, drawn.tolist())
        index = torch.randint(0, GRID, (self.batch,)).long()
        w = (SCALES[1] - SCALES[0]) * torch.rand((self.batch,)) + SCALES[0] - 1
        return self.descend(self.loss(latents, embeds, index, torch.randn_like(latents), w))


def agreement(ours: Ours, script: Script) -> dict[str, float]:
    """Both losses of one draw, and how far apart loss and gradient are, relatively."""

    def gradient(loss: Tensor, net: nn.Module) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    mine, theirs = ours.loss(0), script.loss_of(ours.draw(0))
    a, b = gradient(mine, ours.model), gradient(theirs, script.unet)
    return {
        "ours": float(mine.detach()),
        "script": float(theirs.detach()),
        "loss_apart": float((mine - theirs).detach().abs() / theirs.detach()),
        "gradient_apart": float((a - b).norm() / b.norm()),
    }


def block(side: Ours | Script, first: int, steps: int) -> tuple[float, float]:
    """Seconds and CPU seconds a step."""
    clock, cpu = time.perf_counter(), time.process_time()
    for step in range(first, first + steps):
        side.step(step)
    return (time.perf_counter() - clock) / steps, (time.process_time() - cpu) / steps


def measure(case: Case, batch: int, blocks: int, steps: int) -> dict[str, Any]:
    """Agreement, then alternating blocks; the side that begins alternates too."""
    ours, script = Ours(case, batch, 1e-6), Script(case, batch, 1e-6)
    agree = agreement(ours, script)
    sides: dict[str, Ours | Script] = {"ours": ours, "script": script}
    if case.pictures is not None:
        sides["from_pictures"] = FromPictures(case, batch, 1e-6)
    for side in sides.values():
        block(side, 1, 1)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for i in range(blocks):
        for name in sorted(sides, reverse=bool(i % 2)):
            found[name].append(block(sides[name], 2 + i * steps, steps))
    pairs = list(zip(found["script"], found["ours"], strict=True))
    more: dict[str, Any] = {}
    if case.pictures is not None:
        begun = time.perf_counter()
        for i in range(0, 256, 64):
            encode(case, range(i, i + 64))
        more["encode_once_ms"] = 1000 * (time.perf_counter() - begun) / 256
        more["ratio_from_pictures"] = spread(
            [s / o for (s, _), (o, _) in zip(found["from_pictures"], found["ours"], strict=True)]
        )
    return {
        "batch": batch,
        "parameters": sum(p.numel() for p in ours.model.parameters()),
        "same_draw": agree,
        "samples_a_second": {k: spread([batch / s for s, _ in v]) for k, v in found.items()},
        "cpu_seconds_a_step": {k: spread([c for _, c in v]) for k, v in found.items()},
        "ratio": spread([s / o for (s, _), (o, _) in pairs]),
        "ratio_of_cpu_seconds": spread([s / o for (_, s), (_, o) in pairs]),
        **more,
    }


def show(name: str, r: Mapping[str, Any]) -> None:
    """Return a case in words."""
    print(f"{name}: batch {r['batch']}, {r['parameters'] / 1e6:.1f} million parameters")
    same = r["same_draw"]
    print(f"  one draw: loss {same['ours']:.6f} ours, {same['script']:.6f} script, {same['loss_apart']:.1e} apart;", end=" ")
    print(f"gradients {same['gradient_apart']:.1e} apart")
    for what, unit in (("samples_a_second", "samples/s"), ("cpu_seconds_a_step", "CPU s a step")):
        for side, x in r[what].items():
            print(f"  {side}: {x['median']:.3f} {unit} ({x['min']:.3f}..{x['max']:.3f})")
    if "encode_once_ms" in r:
        print(f"  encoding once: {r['encode_once_ms']:.2f} ms a picture with its caption")
    for key in [k for k in ("ratio", "ratio_of_cpu_seconds", "ratio_from_pictures") if k in r]:
        print(f"  {key}: {r[key]['median']:.2f} ({r[key]['min']:.2f}..{r[key]['max']:.2f})")


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", action="store_true")
    p.add_argument("--models", default=",".join(CASES))
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--blocks", type=int, default=7)
    p.add_argument("--steps", type=int, default=3, help="steps a block")
    p.add_argument("--threads", type=int, default=None)
    args = p.parse_args(argv)
    names = args.models.split(",")
    if unknown := sorted(set(names) - CASES.keys()):
        raise SettingError(f"models={unknown[0]!r} is not known: {', '.join(CASES)} are.")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cases: dict[str, Any] = {}
    for name in names:
        cases[name] = measure(CASES[name](), args.batch, args.blocks, args.steps)
        if not args.json:
            show(name, cases[name])
            sys.stdout.flush()
    result = {"blocks": args.blocks, "steps": args.steps, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if args.json:
        print(json.dumps({**result, "models": cases}, indent=1))


if __name__ == "__main__":
    main()
