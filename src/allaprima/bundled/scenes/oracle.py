"""Recipe of the oracle: a latent reward model on the teacher's network, trained on right and wrong captions.

Two fifths of a batch are rendered scenes, half of them with a caption altered in one thing (colour, shape, count, relation,
or colours swapped) and some with noise; three fifths are drafts of student and teacher with the exact judge's verdicts
(`drafts.py`). Loss: binary cross-entropy. Judge and oracle share no code: the judge labels, the oracle learns.

    python -m allaprima.bundled.scenes.oracle --vae runs/scenes/autoencoder/vae --teacher runs/scenes/teacher \\
        --drafts runs/scenes/drafts.safetensors --out runs/scenes/oracle --processes 2
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from allaprima.bundled.scenes.autoencoder import encode_scenes, linear_encoder
from allaprima.bundled.scenes.geometry import Floats
from allaprima.bundled.scenes.grammar import RELATIONS, Scene, altered, draw_training_scene
from allaprima.bundled.scenes.networks import new_tokenizer
from allaprima.bundled.scenes.renderer import DrawnObject, draw_layout, render
from allaprima.bundled.scenes.teacher import TextToLatents, load_vae, token_ids
from allaprima.distill.devices import Devices
from allaprima.distill.local_sgd import run_locally
from allaprima.distill.loop import LoopConfig, Loss, TrainingProgress, train
from allaprima.evaluation.decision import area_under_curve
from allaprima.oracles.latent_reward import LatentRewardModel

DRAFTS = 0.6
"""Share of drafts in a batch."""
LOOP = LoopConfig(
    max_train_steps=6000,
    train_batch_size=32,
    learning_rate=4e-4,
    weight_decay=0.05,
    emas={"use": 0.998},
    checkpoint_seconds=120,
)


def relation_holds(scene: Scene, layout: list[DrawnObject]) -> bool:
    """Return whether a layout shows a scene's relation; objects come group by group."""
    if scene.relation is None:
        return True
    dx, dy = RELATIONS[scene.relation]
    first = layout[: scene.groups[0].count]
    second = layout[scene.groups[0].count :]
    return all((a.x - b.x) * dx + (a.y - b.y) * dy > 0 for a in first for b in second)


def rendered_pair(rng: random.Random) -> tuple[Scene, Floats, bool]:
    """Draw a picture with a caption, and whether they belong together."""
    scene = draw_training_scene(rng)
    layout = draw_layout(scene, rng)
    image = render(layout, rng.uniform(-0.03, 0.03))
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 0.05), image.shape)
        image = np.clip(image + noise, 0, 1).astype(np.float32)
    if rng.random() < 0.5:
        return scene, image, True
    other = altered(scene, rng)
    # Of a diagonal layout, a changed relation may hold as well.
    if other is None or (other.groups == scene.groups and relation_holds(other, layout)):
        return scene, image, True
    return other, image, False


def reward_loss(vae: Any, tokenizer: Any, drafts: Mapping[str, Tensor] | None, batch: int) -> Loss:
    """Return the loss of the recipe for the loop."""
    encoder = linear_encoder(vae)
    painted = 0 if drafts is None else int(batch * DRAFTS)

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        rng = random.Random(int(torch.randint(2**62, (1,), generator=g)))
        pairs = [rendered_pair(rng) for _ in range(batch - painted)]
        latents = encode_scenes([image for _, image, _ in pairs], encoder)
        ids = token_ids(tokenizer, [scene.caption() for scene, _, _ in pairs])
        labels = torch.tensor([float(right) for _, _, right in pairs])
        if drafts is not None:
            pick = torch.randint(len(drafts["labels"]), (painted,), generator=g)
            latents = torch.cat([latents, drafts["latents"][pick].float()])
            ids, labels = torch.cat([ids, drafts["ids"][pick]]), torch.cat([labels, drafts["labels"][pick].float()])
        return F.binary_cross_entropy_with_logits(model(latents, torch.zeros(batch), ids), labels)

    return loss


@torch.no_grad()
def held_out(model: nn.Module, drafts: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the area under the curve and the accuracy at 0 on drafts that were kept from training."""
    parts = [
        model(z.float(), torch.zeros(len(z)), ids)
        for z, ids in zip(drafts["latents"].split(200), drafts["ids"].split(200), strict=True)
    ]
    scores = torch.cat(parts)
    right = (scores > 0) == drafts["labels"]
    return {
        "auc": area_under_curve(scores.numpy(), drafts["labels"].numpy().astype(bool)),
        "accuracy": float(right.double().mean()),
    }


def train_oracle(
    vae_folder: Path, teacher: Path, draft_files: Sequence[Path], out: Path, start: Path | None, config: LoopConfig,
    devices: Devices,
) -> None:  # fmt: skip
    """Train into `out`; resumes when it holds a checkpoint."""
    torch.manual_seed(0)
    vae, tokenizer = load_vae(vae_folder), new_tokenizer()
    if start is None:
        networks = TextToLatents.from_pretrained(teacher)
        scale = vae.config.scaling_factor
        model = LatentRewardModel(vae.encoder, networks.unet, networks.text_encoder, scale)
    else:
        model, _ = LatentRewardModel.from_pretrained(start)
    model.train().requires_grad_(True).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.encoder.requires_grad_(False)
    drafts, test = None, None
    if draft_files:
        parts = [load_file(file) for file in draft_files]
        tensors = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
        kept = len(tensors["labels"]) // 20
        test, drafts = ({k: v[:kept] for k, v in tensors.items()}, {k: v[kept:] for k, v in tensors.items()})
    recipe = {
        "name": "scenes-oracle", "goes_on": start is not None, "drafts": 0 if drafts is None else len(drafts["labels"]),
    }  # fmt: skip

    def on_checkpoint(emas: Mapping[str, nn.Module], progress: TrainingProgress) -> None:
        use = emas["use"]
        assert isinstance(use, LatentRewardModel)
        use.save_pretrained(out / "model", tokenizer, vae.config, "scenes")
        found = {} if test is None else held_out(use, test)
        (out / "progress.json").write_text(json.dumps({"recipe": recipe, **progress.__dict__, **found}, indent=1))
        print(f"step {progress.step}  {progress.seconds:.0f} s  loss {progress.loss:.4f}  {found}", flush=True)

    train(
        model,
        reward_loss(vae, tokenizer, drafts, config.train_batch_size),
        config,
        out,
        recipe,
        on_checkpoint,
        devices=devices,
    )


def main() -> None:
    """Run the recipe from the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vae", type=Path, required=True, help="folder of the autoencoder")
    p.add_argument("--teacher", type=Path, required=True, help="folder with the teacher's unet/ and text_encoder/")
    p.add_argument("--drafts", type=Path, nargs="*", default=[], help="files of `drafts.py`; default: rendered scenes alone")
    p.add_argument("--start", type=Path, help="folder of an oracle to go on from; default: the teacher's network")
    p.add_argument("--out", type=Path, required=True, help="run folder; run again to resume")
    p.add_argument("--steps", type=int, default=LOOP.max_train_steps)
    p.add_argument("--lr", type=float, default=LOOP.learning_rate)
    p.add_argument("--processes", type=int, default=1, help="processes of one thread that average their weights")
    args = p.parse_args()
    config = replace(LOOP, max_train_steps=args.steps, learning_rate=args.lr)
    run_locally(train_oracle, (args.vae, args.teacher, args.drafts, args.out, args.start, config), args.processes)


if __name__ == "__main__":
    main()
