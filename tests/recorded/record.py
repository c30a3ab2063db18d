"""Bytes that stay when code is only moved or renamed: pictures, a calibration and fingerprints of the bundled pair.

`python tests/recorded/record.py` writes `recorded.json` beside this file; `test_recorded.py` makes everything again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from allaprima import AdaptivePipeline
from allaprima.cli import main

RECORDED = Path(__file__).with_name("recorded.json")
PROMPTS = ["red apple, noto", "dog, twemoji", "rocket, fluent 3d"]
UNSTABLE = ("seconds_per_draft", "version")
"""Keys of JSON files that differ between equal runs or between releases."""


def machine() -> dict[str, str]:
    """Return what the bytes of a picture depend on beside the code."""
    name = next(
        (line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    capability = torch.backends.cpu.get_cpu_capability()
    return {"cpu": name, "capability": capability, "torch": torch.__version__, "python": platform.python_version()}


def _cpu_lines() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8").splitlines() if info.exists() else []


def sha256(data: bytes) -> str:
    """Return the digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


def tensor_sha256(images: torch.Tensor) -> str:
    """Return the digest of a tensor's values, to the bit."""
    return sha256(images.detach().contiguous().numpy().tobytes())


def disc() -> Image.Image:
    """Return a picture to edit: a red disc on white."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((12, 12, 52, 52), fill=(200, 30, 30))
    return image


def half() -> Image.Image:
    """Return a mask: the upper half is painted anew."""
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((0, 0, 63, 30), fill=255)
    return mask


def paintings(pipe: AdaptivePipeline) -> dict[str, str]:
    """Return digests of what `AdaptivePipeline` paints, by what is asked of it."""
    few: dict[str, Any] = {"seed": 7, "output_type": "pt", "num_inference_steps": 4, "batch_size": 4}
    calls: dict[str, dict[str, Any]] = {
        "accept": {"mode": "student-only"},
        "refine": {"threshold": 2.0, "strategy": "refine"},
        "regenerate": {"threshold": 2.0, "strategy": "regenerate"},
        "mixed": {"threshold": 0.7},
        "calibrated": {"num_inference_steps": 14},
        "teacher only": {"mode": "teacher-only"},
        "negative prompt": {"mode": "refine-all", "negative_prompt": "cat, noto"},
        "guidance rescale and small batches": {"mode": "refine-all", "guidance_rescale": 0.5, "batch_size": 2},
        "edit": {"image": disc(), "strength": 0.5, "threshold": 2.0},
        "edit with a mask, restart": {
            "image": disc(), "mask_image": half(), "strength": 0.6, "threshold": 2.0, "teacher_solver": "restart",
        },
        "student tcd": {"mode": "student-only", "student_solver": "tcd"},
    }  # fmt: skip
    solvers = ("ddim", "euler", "euler_ancestral", "heun", "unipc", "dpm_solver@trailing", "ddim@trailing", "restart")
    calls |= {f"teacher {s}": {"mode": "teacher-only", "teacher_solver": s} for s in solvers}
    calls |= {f"refine {s}": {"mode": "refine-all", "teacher_solver": s} for s in ("dpm_solver", "heun", "euler_ancestral")}
    made: dict[str, str] = {}
    for name, call in calls.items():
        output = pipe(PROMPTS, **{**few, **call})
        rows = json.dumps([r.row() if hasattr(r, "row") else r.record() for r in output.results], sort_keys=True)
        made[name] = tensor_sha256(output.images)
        made[f"{name}: account"] = sha256(rows.encode())
    return made


def command_line(*args: object) -> None:
    """Run `allaprima`; raises `RuntimeError` unless it ends with 0."""
    old, sys.argv = sys.argv, ["allaprima", *map(str, args)]
    try:
        main()
    except SystemExit as e:
        if e.code:
            raise RuntimeError(f"allaprima {args[0]} ended with {e.code}") from e
    finally:
        sys.argv = old


def commands(folder: Path) -> dict[str, str]:
    """Return digests of what the command line writes into run folders, and of a small calibration."""
    small = ("--batch-size", 4, "--steps", 4)
    disc().save(folder / "disc.png")
    command_line("generate", *PROMPTS, *small, "--threshold", 0.7, "--out", folder / "generate", "--seed", 3)
    command_line("edit", folder / "disc.png", PROMPTS[0], *small, "--strengths", "0.25,0.5", "--threshold", 2, "--out",
                 folder / "edit")  # fmt: skip
    command_line("calibrate", "--samples", 16, "--budget", 6, *small, "--out", folder / "calibration.json")
    made: dict[str, str] = {}
    for run in ("generate", "edit"):
        for file in sorted((folder / run).rglob("*")):
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                made[name] = sha256(file.read_bytes().replace(str(folder).encode(), b"FOLDER"))
    calibration = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    kept = {k: v for k, v in calibration.items() if k not in UNSTABLE}
    made["calibration.json"] = sha256(json.dumps(kept, sort_keys=True).encode())
    return made


def make() -> dict[str, Any]:
    """Make everything that is recorded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pipe = AdaptivePipeline.from_card("emoji")
        with tempfile.TemporaryDirectory() as folder:
            return {
                "machine": machine(),
                "fingerprints": pipe.fingerprints(),
                "pictures": paintings(pipe),
                "files": commands(Path(folder)),
            }
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(make(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {RECORDED.name}")
