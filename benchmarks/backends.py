"""Eager torch against OpenVINO and ONNX Runtime on the bundled pair, and what shared weights cost in memory.

    python -m benchmarks.backends [--json] [--backends openvino,onnxruntime] [--bfloat16] [--prompts 32] [--repeats 5]
    python -m benchmarks.backends --memory [--json]

Each part (a guided student step, a guided teacher step, a decoding, an oracle's look, the text encoder) and the whole
cascade are run by all sides in turn, in one process, on the same inputs; a ratio is eager's seconds over the other's of the
same repeat, and median and spread of these are printed. Compiling happens before anything is timed, and its seconds are
said. What a backend changes is said beside: the largest difference of a part's outputs, of pictures, and how many
decisions flipped.

`--memory`: growth of the resident set, a fresh process each, while a teacher alone is loaded and paints one step, and while
a pair does whose student is a LoRA beside the teacher's own weights, and one whose LoRA is fused into a second copy, its
source. The network is a random UNet of `--channels` whose weights outweigh everything else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.bundled.emoji.dataset import STYLES, known_concepts
from allaprima.core.types import Condition
from allaprima.pipeline import AdaptiveOutput, AdaptivePipeline
from benchmarks.overhead import spread

Part = Callable[[], Tensor]


def parts_of(pipe: AdaptivePipeline, prompts: Sequence[str]) -> dict[str, Part]:
    """Return what a cascade is made of, on one full batch, each with the same inputs whatever the backend."""
    p: Any = pipe
    n = pipe.settings.batch_size
    g = torch.Generator().manual_seed(0)
    texts = [prompts[i % len(prompts)] for i in range(n)]
    shape = pipe.student.latent_shape(pipe.settings.height, pipe.settings.width)
    x, z = torch.randn(n, *shape, generator=g), torch.randn(n, *shape, generator=g)
    images = torch.rand(n, 3, pipe.settings.height, pipe.settings.width, generator=g)
    t = torch.linspace(50, 950, n, dtype=torch.float64)
    cond = pipe.student.condition(texts).tensors
    known = Condition({
        **cond, **{f"negative_{k}": v for k, v in pipe.student.condition([""] * n).tensors.items()},
        "guidance_scale": torch.full((n,), 3.0),
    })  # fmt: skip
    return {
        "text encoder": lambda: pipe.student.encode(texts),
        "student step": lambda: pipe.student.denoiser(x, t, known),
        "teacher step": lambda: pipe.teacher.denoiser(x, t, known),
        "decode": lambda: pipe.student.decode(z),
        "oracle": lambda: p.oracle.score(images, texts),
    }


@torch.inference_mode()
def timed(part: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it gave."""
    begun = time.perf_counter()
    said = part()
    return time.perf_counter() - begun, said


def compared(sides: Mapping[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds of each side and their ratios to the first's, medians with spread; and what each gave, last."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    said: dict[str, Any] = {}
    order = list(sides)
    for k in range(repeats):
        # Who goes first gets whatever the machine just did: they take turns.
        for name in order if k % 2 == 0 else order[::-1]:
            took, said[name] = timed(sides[name])
            seconds[name].append(took)
    first = seconds[order[0]]
    ratios = {n: spread([a / b for a, b in zip(first, seconds[n], strict=True)]) for n in order[1:]}
    return {"seconds": {n: spread(v) for n, v in seconds.items()}, "times_eager": ratios}, said


def pictures(out: AdaptiveOutput) -> Tensor:
    """`(N, 3, H, W)`."""
    return torch.stack([r.image for r in out.results if r.image is not None])


def psnr(made: AdaptiveOutput, due: AdaptiveOutput) -> dict[str, Any] | None:
    """In dB, of pictures whose decisions are the same; None where all are equal."""
    same = torch.tensor([a == b for a, b in zip(made.decisions, due.decisions, strict=True)])
    error = (pictures(made) - pictures(due))[same].square().flatten(1).mean(1)
    return spread((-10 * error.clamp_min(1e-12).log10()).tolist()) if bool(error.any()) else None


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Parts and whole pictures."""
    options = {n: {"backend": n} for n in args.backends.split(",") if n}
    if args.bfloat16:
        options["openvino, bfloat16"] = {"backend": "openvino", "dtype": "bfloat16"}
    names = list(options)
    concepts = known_concepts()
    prompts = [f"{concepts[(i * 37) % len(concepts)]}, {STYLES[i % 4]}" for i in range(args.prompts)]
    options = {"eager": {"backend": "eager"}} | options
    pipes = {n: AdaptivePipeline.from_card("emoji", **o) for n, o in options.items()}
    eager = pipes["eager"]
    threshold = eager.policy(eager.settings, budget=args.budget).threshold
    for pipe in pipes.values():
        pipe.settings = pipe.settings.changed(batch_size=args.batch_size or eager.settings.batch_size)

    def whole(pipe: AdaptivePipeline) -> AdaptiveOutput:
        return pipe(prompts, seed=0, threshold=threshold)

    parts = {n: parts_of(pipe, prompts) for n, pipe in pipes.items()}
    ready: dict[str, float] = {}
    for n, pipe in pipes.items():
        begun = time.perf_counter()
        for part in parts[n].values():
            timed(part)
        whole(pipe)
        ready[n] = time.perf_counter() - begun
    result: dict[str, Any] = {
        "prompts": args.prompts, "repeats": args.repeats, "threads": torch.get_num_threads(), "threshold": threshold,
        "batch_size": eager.settings.batch_size, "seconds_of_first_calls": ready, "parts": {},
        "backends": {n: pipe.fingerprints()["backend"] for n, pipe in pipes.items()},
    }  # fmt: skip
    for part in parts["eager"]:
        found, said = compared({n: parts[n][part] for n in pipes}, args.repeats)
        found["largest_difference"] = {n: float((said[n] - said["eager"]).abs().max()) for n in names}
        found["largest_value"] = float(said["eager"].abs().max())
        result["parts"][part] = found
    found, said = compared({n: lambda pipe=pipe: whole(pipe) for n, pipe in pipes.items()}, args.repeats)
    due = said["eager"]
    result["cascade"] = found | {
        "accepted": sum(d == "accept" for d in due.decisions),
        "decisions_flipped": {n: sum(a != b for a, b in zip(said[n].decisions, due.decisions, strict=True)) for n in names},
        "largest_score_difference": {
            n: max(abs(a - b) for a, b in zip(said[n].scores, due.scores, strict=True)) for n in names
        },
        "largest_picture_difference": {n: float((pictures(said[n]) - pictures(due)).abs().max()) for n in names},
        "psnr": {n: psnr(said[n], due) for n in names},
    }
    return result


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def peak() -> int:
    """Return the most that it ever was."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


CARD = """
name: memory
family: sd
description: random
height: 64
width: 64
student: {lora: pytorch_lora_weights.safetensors, steps: 1, guidance_scale: 1, solver: consistency, license: none,
          share: [text_encoder, tokenizer, vae]}
teacher: {source: teacher, steps: 1, guidance_scale: 1, solver: ddim, license: none}
oracle: {kind: dual_encoder, source: none, license: none}
text: {max_length: 16, attention_mask: true, zero_padding: true}
"""


def write_pair(folder: Path, channels: int, rank: int) -> None:
    """Return the bundled teacher's folder with a larger random UNet, and a random LoRA on it."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from allaprima.models.cards.card import load_card
    from allaprima.models.components.loading import load_component
    from allaprima.models.components.lora import add_adapters, save_lora

    emoji = load_card("emoji")
    old = emoji.path(emoji.teacher.source or "")
    (folder / "teacher").mkdir()
    for part in ("scheduler", "text_encoder", "tokenizer", "vae"):
        (folder / "teacher" / part).symlink_to(old / part)
    config = dict(load_component(old / "unet").config)
    blocks = len(config["block_out_channels"])
    wide = UNet2DConditionModel.from_config({**config, "block_out_channels": [channels * (k + 1) for k in range(blocks)]})
    wide.save_pretrained(folder / "teacher" / "unet")
    add_adapters(wide, rank, rank)
    save_lora(wide, folder)
    (folder / "shared.yaml").write_text(CARD)
    (folder / "fused.yaml").write_text(CARD.replace("{lora:", "{source: teacher, lora:"))


def grown(card: Path, who: str) -> dict[str, int]:
    """In this process: growth of the resident set from before loading to after a step of each model, and its peak."""
    from allaprima.models.cards.card import load_card
    from allaprima.models.families.registry import FAMILIES
    from allaprima.models.loading.pair import load_pair

    import peft  # noqa: F401 (what is imported belongs to both sides)  # isort: skip

    made = load_card(card)
    load_pair(load_card("emoji")).teacher.encode(["a"])
    before = resident()
    if who == "teacher":
        models: list[Any] = [FAMILIES[made.family].load(made.path("teacher"), made.text)]
    else:
        pair = load_pair(made)
        models = [pair.student, pair.teacher]
    x, t = torch.randn(1, *models[0].latent_shape(64, 64)), torch.tensor([500.0])
    with torch.inference_mode():
        for model in models:
            model.output(model.network, x, t, model.condition(["a"]))
    return {"growth": resident() - before, "peak": peak() - before}


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Each side in a process of its own."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_pair(Path(folder), args.channels, args.rank)
        weights = (Path(folder) / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
        for who in ("teacher", "shared", "fused"):
            name = "fused" if who == "fused" else "shared"
            command = [sys.executable, "-m", "benchmarks.backends", "--grown", who, "--card", f"{folder}/{name}.yaml"]
            runs = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
            found[who] = {k: spread([float(r[k]) for r in runs]) for k in ("growth", "peak")}
    ratios = {
        who: {k: found[who][k]["median"] / found["teacher"][k]["median"] for k in ("growth", "peak")}
        for who in ("shared", "fused")
    }
    return {"weights_of_the_network": weights, "rank": args.rank, "bytes": found, "times_the_teacher": ratios}


def say(result: Mapping[str, Any]) -> None:
    """For people."""
    for name, found in [*result["parts"].items(), ("cascade", result["cascade"])]:
        for backend, r in found["times_eager"].items():
            print(f"{name}, {backend}: {r['median']:.2f} times eager ({r['min']:.2f}..{r['max']:.2f})")
    c = result["cascade"]
    print(f"decisions flipped: {c['decisions_flipped']}; pictures differ by at most {c['largest_picture_difference']}")
    for backend, r in c["psnr"].items():
        if r is not None:
            print(f"pictures of the same decision, {backend}: PSNR {r['median']:.1f} dB ({r['min']:.1f}..{r['max']:.1f})")


def main() -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", action="store_true")
    p.add_argument("--memory", action="store_true")
    p.add_argument("--backends", default="openvino,onnxruntime")
    p.add_argument("--bfloat16", action="store_true", help="openvino computing in bfloat16 too, where the CPU does")
    p.add_argument("--prompts", type=int, default=32)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--threads", type=int, default=0, help="of every side; default: torch's own number")
    p.add_argument("--batch-size", type=int, default=0, help="default: the card's")
    p.add_argument("--budget", type=float, default=15.0)
    p.add_argument("--channels", type=int, default=320, help="of the random UNet's first level, with --memory")
    p.add_argument("--rank", type=int, default=16, help="of the LoRA, with --memory")
    p.add_argument("--grown", choices=("teacher", "shared", "fused"), help=argparse.SUPPRESS)
    p.add_argument("--card", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.grown:
        print(json.dumps(grown(args.card, args.grown)))
    elif args.memory:
        print(json.dumps(memory(args), indent=1))
    else:
        result = speed(args)
        print(json.dumps(result, indent=1)) if args.json else say(result)


if __name__ == "__main__":
    main()
