"""Recipe of the student: consistency distillation of the teacher (arXiv 2312.10835, appendix A; arXiv 2303.01469).

`--guidance inside` (the bundled student): the teacher's step is guided, the student predicts where it leads in one
evaluation without guidance, as few-step students are used today. `--guidance outside` is the paper's own: student, target
and teacher are guided alike by a real scale, w ~ U[1, 6], and a step costs two evaluations.

The grid has links of 100 times: each step of the training draws one of the five grids 999, 899, ... to 919, 819, ..., so
that together they hold the 50 times of `consistency@trailing`, and a student of any number of steps knows its times.

Departures, all for two CPU cores: ten links in place of 50, batch 64 in place of 512 with a learning rate of 3e-4 in place
of 1e-5, the pseudo-Huber distance, an EMA of .999 for use.

    python -m allaprima.bundled.scenes.student --vae runs/scenes/autoencoder/vae --teacher runs/scenes/teacher \\
        --out runs/scenes/student --processes 2
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allaprima.bundled.scenes.autoencoder import linear_encoder
from allaprima.bundled.scenes.networks import SCHEDULER_CONFIG, new_tokenizer
from allaprima.bundled.scenes.teacher import TextToLatents, load_vae, token_ids, training_batch
from allaprima.diffusion.schedules import DiscreteVP, expand
from allaprima.distill.devices import Devices
from allaprima.distill.local_sgd import run_locally
from allaprima.distill.loop import LoopConfig, Loss, TrainingProgress, train
from allaprima.distill.losses.consistency import GuidedPrediction, consistency_loss

DATA_SEED = 20
SCALE = 2.0
"""Guidance of the teacher that goes into the student."""
SCALES_OUTSIDE = (1.0, 6.0)
LINK, GRIDS = 100, 5
HUBER = 0.01
LOOP = LoopConfig(
    max_train_steps=4000,
    train_batch_size=32,
    learning_rate=3e-4,
    weight_decay=0.0,
    emas={"target": 0.95, "use": 0.999},
    checkpoint_seconds=120,
)


def plain(unet: Any, hidden: Tensor) -> GuidedPrediction:
    """Return the conditional prediction of x0, whatever the scale."""

    def predict(x_t: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return unet(x_t.contiguous(memory_format=torch.channels_last), t, hidden).sample

    return predict


def guided(unet: Any, hidden: Tensor, empty: Tensor) -> GuidedPrediction:
    """Return the guided prediction of x0, in one doubled forward pass."""
    both = torch.cat([empty.expand_as(hidden), hidden])

    def predict(x_t: Tensor, t: Tensor, w: Tensor) -> Tensor:
        double = torch.cat([x_t, x_t]).contiguous(memory_format=torch.channels_last)
        without, with_prompt = unet(double, torch.cat([t, t]), both).sample.chunk(2)
        return without + expand(w, x_t) * (with_prompt - without)

    return predict


def student_loss(teacher: TextToLatents, vae: Any, tokenizer: Any, batch: int, outside: bool, scale: float) -> Loss:
    """Return the loss of the recipe for the loop."""
    schedule, encoder = DiscreteVP.from_config(SCHEDULER_CONFIG), linear_encoder(vae)
    with torch.no_grad():
        empty = teacher.text_encoder(input_ids=token_ids(tokenizer, [""])).last_hidden_state

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        x0, ids = training_batch(encoder, tokenizer, DATA_SEED, batch, g)
        with torch.no_grad():
            hidden = teacher.text_encoder(input_ids=ids).last_hidden_state
        offset = 1000 // 50 * int(torch.randint(GRIDS, (1,), generator=g))
        grid = [float(t) for t in range(999 - offset, 0, -LINK)]
        index = torch.randint(len(grid), (batch,), generator=g)
        eps = torch.randn(x0.shape, generator=g)
        low, high = SCALES_OUTSIDE
        w = low + (high - low) * torch.rand(batch, generator=g) if outside else torch.full((batch,), scale)
        guide = guided(teacher.unet, hidden, empty)
        if outside:
            student, target = guided(model, hidden, empty), guided(emas["target"], hidden, empty)
        else:
            student, target = plain(model, hidden), plain(emas["target"], hidden)
        return consistency_loss(student, target, guide, schedule, grid, x0, eps, index, w, HUBER)

    return loss


def train_student(
    vae_folder: Path, teacher_folder: Path, out: Path, start: Path | None, outside: bool, scale: float, config: LoopConfig,
    devices: Devices,
) -> None:  # fmt: skip
    """Train into `out`; resumes when it holds a checkpoint."""
    torch.manual_seed(0)
    teacher = TextToLatents.from_pretrained(teacher_folder).eval().requires_grad_(False)
    teacher.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    vae, tokenizer = load_vae(vae_folder), new_tokenizer()
    unet: Any = copy.deepcopy(teacher.unet) if start is None else TextToLatents.from_pretrained(start).unet
    unet.train().requires_grad_(True).to(memory_format=torch.channels_last)
    recipe = {
        "name": "scenes-student", "data_seed": DATA_SEED, "guidance": "outside" if outside else "inside",
        "w": list(SCALES_OUTSIDE) if outside else scale, "goes_on": start is not None,
    }  # fmt: skip

    def on_checkpoint(emas: Mapping[str, nn.Module], progress: TrainingProgress) -> None:
        TextToLatents(emas["use"], teacher.text_encoder).save_pretrained(out)
        (out / "progress.json").write_text(json.dumps({"recipe": recipe, **progress.__dict__}, indent=1))
        print(
            f"step {progress.step}  samples {progress.samples}  {progress.seconds:.0f} s  loss {progress.loss:.5f}",
            flush=True,
        )

    loss = student_loss(teacher, vae, tokenizer, config.train_batch_size, outside, scale)
    train(unet, loss, config, out, recipe, on_checkpoint, devices=devices)


def main() -> None:
    """Run the recipe from the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vae", type=Path, required=True, help="folder of the autoencoder")
    p.add_argument("--teacher", type=Path, required=True, help="folder with the teacher's unet/ and text_encoder/")
    p.add_argument("--out", type=Path, required=True, help="run folder; run again to resume")
    p.add_argument("--start", type=Path, help="folder of a student to go on from; default: the teacher's own weights")
    p.add_argument("--guidance", choices=("inside", "outside"), default="inside")
    p.add_argument("--scale", type=float, default=SCALE, help="guidance of the teacher with --guidance inside")
    p.add_argument("--steps", type=int, default=LOOP.max_train_steps)
    p.add_argument("--lr", type=float, default=LOOP.learning_rate)
    p.add_argument("--processes", type=int, default=1, help="processes of one thread that average their weights")
    args = p.parse_args()
    config = replace(LOOP, max_train_steps=args.steps, learning_rate=args.lr)
    outside = args.guidance == "outside"
    run_locally(train_student, (args.vae, args.teacher, args.out, args.start, outside, args.scale, config), args.processes)


if __name__ == "__main__":
    main()
