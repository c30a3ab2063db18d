"""Recipe of the bundled student: consistency distillation of the bundled teacher (arXiv 2312.10835, appendix A).

Kept from the paper: guidance outside the student with a real-valued scale shared by student, target and teacher, the
50-point DDIM grid 981..1, uniform weight, target EMA .95, a second EMA for use, no c_skip.

A second stage (`--trajectories`) goes on from the first: the same map, taught where points of the teacher's own
trajectories end (`endpoint_loss`). In a training this short the first stage alone gathers noise: after 790 steps more of
it drafts were worse than before (docs/decisions/0010), since what the clean end says has to wander through 50 links.

Departures, all for two CPU cores: batch 32 instead of 512 with a learning rate of 1e-4 instead of 1e-5, w ~ U[1, 5]
instead of U[1, 8] (the emoji teacher is used at 3 and burns at 8), use-EMA .995 for a training this short.

    python -m allaprima.bundled.emoji.student --data emoji64.tar --start emoji-start \\
        --teacher runs/teacher/unet --out runs/student
    python -m allaprima.bundled.emoji.trajectories --data emoji64.tar --out runs/trajectories.safetensors
    python -m allaprima.bundled.emoji.student --data emoji64.tar --start emoji-start --teacher runs/teacher/unet \\
        --unet runs/student/unet --trajectories runs/trajectories.safetensors --out runs/student2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from allaprima.bundled.emoji.dataset import known_concepts, load_tar
from allaprima.bundled.emoji.start import load_start_autoencoder
from allaprima.bundled.emoji.teacher import SCHEDULER_CONFIG, latents_of
from allaprima.bundled.emoji.text import embed, load_text_encoder
from allaprima.bundled.emoji.trajectories import GUIDANCE as TRAJECTORY_GUIDANCE
from allaprima.core.errors import TrainingError
from allaprima.diffusion.schedules import DiscreteVP, expand
from allaprima.distill.loop import LoopConfig, Loss, TrainingProgress, train
from allaprima.distill.losses.consistency import GuidedPrediction, consistency_loss, endpoint_loss

GUIDANCE = (1.0, 5.0)
LOOP = LoopConfig(
    max_train_steps=1200,
    train_batch_size=32,
    learning_rate=1e-4,
    lr_scheduler="cosine",
    weight_decay=0.0,
    emas={"target": 0.95, "use": 0.995},
    checkpoint_seconds=120,
    log_every=10,
)


def guided(unet: nn.Module, cond: Tensor, null: Tensor, schedule: DiscreteVP) -> GuidedPrediction:
    """Return the guided clean prediction of a v-prediction UNet, in one doubled forward pass."""

    def predict(x_t: Tensor, t: Tensor, w: Tensor) -> Tensor:
        double = torch.cat([x_t, x_t]).contiguous(memory_format=torch.channels_last)
        v_u, v_c = unet(double, torch.cat([t, t]).float(), torch.cat([null.expand_as(cond), cond])).sample.chunk(2)
        v = v_u + expand(w, x_t) * (v_c - v_u)
        return expand(schedule.alpha(t), x_t) * x_t - expand(schedule.sigma(t), x_t) * v

    return predict


def student_loss(teacher: nn.Module, latents: Tensor, texts: Tensor, null: Tensor, schedule: DiscreteVP, batch: int) -> Loss:
    """Return a `Loss` for the loop. `latents: (N,C,H,W)`, `texts: (N,L,D)`, `null: (1,L,D)`."""
    grid = schedule.timesteps(50)

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        pick = torch.randint(len(latents), (batch,), generator=g)
        x0, cond = latents[pick], texts[pick]
        eps = torch.randn(x0.shape, generator=g)
        index = torch.randint(len(grid), (batch,), generator=g)
        w = GUIDANCE[0] + (GUIDANCE[1] - GUIDANCE[0]) * torch.rand(batch, generator=g)
        student, target, guide = (guided(net, cond, null, schedule) for net in (model, emas["target"], teacher))
        return consistency_loss(student, target, guide, schedule, grid, x0, eps, index, w)

    return loss


def trajectory_loss(files: Sequence[Path], texts: Tensor, null: Tensor, schedule: DiscreteVP, batch: int) -> Loss:
    """Return a `Loss` for the loop, on points of trajectories as `trajectories.py` writes them; every point is as likely."""
    points, times, ends, captions, scales = [], [], [], [], []
    for file in files:
        data = load_file(file)
        if int(data["caption"].max()) >= len(texts):
            raise TrainingError(f"{file} knows caption {int(data['caption'].max())} of {len(texts)}: make it again.")
        n = data["points"].shape[1]
        points.append(data["points"].flatten(0, 1))
        times.append(data["times"].flatten())
        ends.append(data["ends"].half().repeat_interleave(n, 0))
        captions.append(data["caption"].repeat_interleave(n))
        scales.append(data["w"].repeat_interleave(n))
    x_t, t, x_0, caption, w = (torch.cat(v) for v in (points, times, ends, captions, scales))

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        pick = torch.randint(len(x_t), (batch,), generator=g)
        student = guided(model, texts[caption[pick]], null, schedule)
        return endpoint_loss(student, x_t[pick].float(), t[pick], w[pick], x_0[pick].float())

    return loss


def main() -> None:
    """Command line of the recipe."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="emoji64.tar, made by `python -m allaprima.bundled.emoji.build`")
    p.add_argument("--start", type=Path, required=True, help="folder of the warm start, for its latent space")
    p.add_argument("--text", type=Path, help="folder of a text encoder; default: the bundled one")
    p.add_argument("--teacher", type=Path, required=True, help="the teacher's UNet folder")
    p.add_argument("--unet", type=Path, help="go on from this student's UNet folder; default: the teacher's own weights")
    p.add_argument("--trajectories", type=Path, nargs="+", help="second stage: files of `trajectories.py`")
    p.add_argument("--out", type=Path, required=True, help="run folder; run again to resume")
    p.add_argument("--steps", type=int, default=LOOP.max_train_steps)
    p.add_argument("--lr", type=float, default=LOOP.learning_rate)
    args = p.parse_args()

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    def unet(folder: Path) -> Any:
        net: Any = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True).float()
        return net.to(memory_format=torch.channels_last)

    data = load_tar(args.data).pick(known_concepts(), "train")
    schedule = DiscreteVP.from_config(SCHEDULER_CONFIG)
    latents = latents_of(data, load_start_autoencoder(args.start))
    tokenizer, encoder = load_text_encoder(args.text)
    texts, null = embed(tokenizer, encoder, [r.caption for r in data.rows]), embed(tokenizer, encoder, [""])
    teacher = unet(args.teacher).eval().requires_grad_(False)
    config = replace(LOOP, max_train_steps=args.steps, learning_rate=args.lr)
    recipe = {
        "name": "emoji-student",
        "method": "consistency distillation",
        "data_sha256": data.sha256,
        "w": list(GUIDANCE if args.trajectories is None else TRAJECTORY_GUIDANCE),
        "stage": "consistency" if args.trajectories is None else "trajectories",
        "goes_on": args.unet is not None,
    }

    def on_checkpoint(emas: Mapping[str, nn.Module], progress: TrainingProgress) -> None:
        emas["use"].save_pretrained(args.out / "unet")  # pyright: ignore[reportCallIssue]
        (args.out / "progress.json").write_text(json.dumps({"recipe": recipe, **progress.__dict__}, indent=1))
        print(
            f"step {progress.step}  samples {progress.samples}  {progress.seconds:.0f} s  loss {progress.loss:.4f}",
            flush=True,
        )

    if args.trajectories is None:
        loss = student_loss(teacher, latents, texts, null, schedule, config.train_batch_size)
    else:
        loss = trajectory_loss(args.trajectories, texts, null, schedule, config.train_batch_size)
    train(unet(args.unet or args.teacher).train(), loss, config, args.out, recipe, on_checkpoint)


if __name__ == "__main__":
    main()
