"""A card from two models' own files: what they say is read, what they don't is the usual, and each guess says why."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from allaprima.core.errors import ModelError, SettingError, UnsafeWeightsError
from allaprima.core.files import PICKLES, read_json, refuse_unreadable
from allaprima.diffusion import solvers
from allaprima.models.cards.hub import HubSource, fetched, fetched_configs
from allaprima.models.cards.licences import licence
from allaprima.models.components.schedulers import SOLVERS
from allaprima.models.families.registry import FAMILIES

PIPELINES: Mapping[str, str] = {
    "StableDiffusionPipeline": "sd", "LatentConsistencyModelPipeline": "sd", "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux", "SanaPipeline": "sana", "SanaSprintPipeline": "sana",
}  # fmt: skip
"""Family by the class that `model_index.json` names."""
NETWORKS: Mapping[str, str] = {
    "SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux", "SanaTransformer2DModel": "sana"
}  # fmt: skip
"""Family by a network's class; UNets are told apart by what they read."""
TEACHERS: Mapping[str, tuple[str, int, float]] = {
    "sd": ("dpm_solver", 20, 8.0), "sdxl": ("unipc", 12, 5.0), "sd3": ("euler", 28, 3.5), "flux": ("euler", 28, 3.5),
    "sana": ("euler", 20, 4.5),
}  # fmt: skip
"""A teacher's usual solver, steps and guidance scale by family, as the bundled cards have them."""
COSMETIC = ("transformers_version", "torch_dtype", "dtype")
"""What configs of the same component may differ in, beside names that begin with an underscore."""


@dataclass(frozen=True)
class InspectedModel:
    """One side as it is found."""

    text: str
    """As a card names it: a hub id, or an absolute path."""
    folder: Path
    kind: str
    """`pipeline`, `network` (a folder with a network's config), `weights` or `lora` (files)."""

    def config(self, name: str) -> Mapping[str, Any]:
        """Return a component's config (`scheduler` too); an empty one where there is none."""
        folder = self.folder if self.kind == "network" and name in ("unet", "transformer") else self.folder / name
        for file in ("config.json", "scheduler_config.json"):
            if (folder / file).is_file():
                return read_json(folder / file)
        return {}

    @property
    def network(self) -> str:
        """Which component the trained network is."""
        return "transformer" if (self.folder / "transformer").is_dir() else "unet"


@dataclass
class Guesses:
    """What was guessed, and why: rows for people."""

    rows: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])

    def say(self, what: str, value: Any, why: str) -> Any:
        """Note a guess; returns the value."""
        self.rows.append((what, str(value), why))
        return value


def inspect_model(text: str, cwd: Path) -> InspectedModel:
    """Return a model by its folder or file, or by hub id.

    Raises `ModelError` for neither, `UnsafeWeightsError` for pickles.
    """
    if text.endswith(PICKLES):
        raise UnsafeWeightsError(f"{text} is a pickle, which can run code when it is read: safetensors are due. Convert it.")
    path = (cwd / Path(text).expanduser()).resolve()
    hub = None if path.exists() else HubSource.parse(text)
    if hub is not None:
        path = fetched(hub) if hub.is_file else fetched_configs(hub)
    if not path.exists():
        raise ModelError(f"{text} is no folder here and no hub id (owner/name): give one of both.")
    said = str(path) if hub is None else str(hub)
    if path.is_file():
        refuse_unreadable(path)
        with safe_open(path, "pt") as f:
            kind = "lora" if any("lora" in k for k in f.keys()) else "weights"  # noqa: SIM118
        return InspectedModel(said, path, kind)
    if (path / "model_index.json").is_file() or (path / "unet").is_dir() or (path / "transformer").is_dir():
        return InspectedModel(said, path, "pipeline")
    if (path / "config.json").is_file():
        return InspectedModel(said, path, "network")
    if (path / "pytorch_lora_weights.safetensors").is_file():
        return inspect_model(
            f"{text}/pytorch_lora_weights.safetensors" if hub is None else f"{hub}:pytorch_lora_weights.safetensors", cwd
        )
    raise ModelError(
        f"{path} is no model in diffusers' format: model_index.json, or a network's config.json, or a LoRA file is due. A"
        " single checkpoint of another tool's must be converted first."
    )


def family_of(model: InspectedModel) -> tuple[str, str]:
    """Family and why. Raises `ModelError` for one that isn't known."""
    found, why = None, ""
    index = model.folder / "model_index.json"
    if index.is_file():
        name = str(read_json(index).get("_class_name"))
        found, why = PIPELINES.get(name), f"model_index.json names {name}"
    config = model.config(model.network)
    name = str(config.get("_class_name"))
    if found is None and name == "UNet2DConditionModel":
        added = config.get("addition_embed_type")
        found, why = ("sdxl" if added == "text_time" else "sd"), f"the UNet's addition_embed_type is {added}"
    elif found is None and name in NETWORKS:
        found, why = NETWORKS[name], f"the network is a {name}"
    if found is None or found not in FAMILIES:
        raise ModelError(
            f"{model.text} is of no known family ({why or f'its network is a {name}'}): {', '.join(FAMILIES)} are. A"
            " pipeline of diffusers of any other kind is called whole: a card of family: any (docs/any-model.md)."
        )
    return found, why


def infer_card(student: str, teacher: str, oracle: str | None, name: str, cwd: Path) -> tuple[dict[str, Any], Guesses]:
    """Return a card's fields, ready to be written, and what was guessed.

    Raises `ModelError` for sides that can't be a pair.
    """
    said, painter, maker = Guesses(), inspect_model(student, cwd), inspect_model(teacher, cwd)
    if maker.kind != "pipeline":
        raise ModelError(f"{teacher} is a {maker.kind} alone: a teacher is a whole model in diffusers' format.")
    family, why = family_of(maker)
    said.say("family", family, why)
    if painter.kind in ("pipeline", "network") and (other := family_of(painter))[0] != family:
        raise ModelError(
            f"{student} is of the family {other[0]} ({other[1]}), {teacher} of {family}: a pair has one family."
        )
    size = _size(maker, family, said)
    solver, steps, scale = TEACHERS[family]
    said.say("teacher", f"{solver}, {steps} steps, guidance {scale:g}", f"usual for {family}; the bundled cards have it")
    prediction = maker.config("scheduler").get("prediction_type", "epsilon" if family in ("sd", "sdxl") else "flow")
    said.say("prediction", prediction, "the teacher's scheduler_config.json; read from there whenever it is loaded")
    kind, source = (oracle or "pickscore=yuvalkirstain/PickScore_v1").partition("=")[::2]
    if not source:
        raise SettingError(f"oracle={oracle!r}: KIND=SOURCE is due, pickscore=yuvalkirstain/PickScore_v1 for example.")
    said.say("oracle", kind, "as you said" if oracle else "published as safetensors; --oracle chooses another")
    place = (cwd / Path(source).expanduser()).resolve()
    raw: dict[str, Any] = {
        "name": name, "family": family, "description": f"{painter.text} with {maker.text}, written by allaprima card new.",
        "height": size, "width": size,
        "student": {**_student(painter, maker, family, said), "license": _license(painter, "student", said)},
        "teacher": {
            "source": maker.text, "steps": steps, "guidance_scale": scale, "solver": solver,
            "license": _license(maker, "teacher", said),
        },
        "oracle": {"kind": kind, "source": str(place) if place.exists() else source, "license": "unstated"},
        "cascade": {"strategy": "refine", "sigma": 0.7, "sigma_is": "strength"},
    }  # fmt: skip
    said.say("cascade", "refine, strength 0.7", "the paper's human study; allaprima calibrate --search looks for better")
    return raw, said


def _size(model: InspectedModel, family: str, said: Guesses) -> int:
    network, vae = model.config(model.network), model.config("vae")
    latents, stages = network.get("sample_size"), vae.get("block_out_channels")
    if family == "flux" or not isinstance(latents, int) or not stages:
        return said.say("size", 1024, "the configs don't say; usual for the family")
    factor = 2 ** (len(stages) - 1)
    return said.say("size", latents * factor, f"the network's sample_size {latents} times the autoencoder's {factor}")


def _student(model: InspectedModel, teacher: InspectedModel, family: str, said: Guesses) -> dict[str, Any]:
    """Source, solver, steps, guidance and what is shared."""
    key = {"pipeline": "source", "network": "network", "weights": "network", "lora": "lora"}[model.kind]
    said.say(
        "student is",
        key,
        {"source": "a whole model", "network": "a network alone", "lora": "its tensors are named lora"}[key],
    )
    solver, steps, scale, why = _few(model, family)
    said.say("student", f"{solver}, {steps} steps, guidance {scale:g}", why)
    shared = _shared(model, teacher, family, said)
    return {key: model.text, "steps": steps, "guidance_scale": scale, "solver": solver, "share": shared}


def _few(model: InspectedModel, family: str) -> tuple[str, int, float, str]:
    """Solver, steps and guidance scale of a few-step student, and why."""
    network, scheduler = model.config(model.network), model.config("scheduler")
    kind, spacing = str(scheduler.get("_class_name", "")), scheduler.get("timestep_spacing")
    if network.get("time_cond_proj_dim"):
        return "lcm", 4, 8.0, "time_cond_proj_dim: it reads its guidance scale, as latent consistency models do"
    if kind == "SCMScheduler":
        return (
            "consistency",
            2,
            4.5,
            "its scheduler is SCM's: SANA-Sprint, in the steps and at the scale of its pipeline's call",
        )
    if family not in ("sd", "sdxl"):
        embeds = bool(network.get("guidance_embeds"))
        return (
            "euler",
            4,
            3.5 if embeds else 1.0,
            "few steps of a flow" + ("; guidance_embeds" if embeds else ", no guidance"),
        )
    if kind in ("LCMScheduler", "TCDScheduler"):
        return SOLVERS[kind], 4, 1.0, f"its scheduler is {kind}, and guidance stays outside"
    if spacing == "trailing":
        base = SOLVERS[kind] if kind in ("DDIMScheduler", "EulerAncestralDiscreteScheduler") else "euler"
        return (
            _with_trailing_times(base),
            4,
            1.0,
            f"its scheduler is {kind} with trailing times, as adversarial students have",
        )
    what = "a file doesn't say how it is sampled" if model.kind in ("lora", "weights") else "nothing says how it is sampled"
    return "lcm", 4, 1.0, f"{what}: LCM's way is the commonest; its page knows (Lightning: {_with_trailing_times('euler')})"


def _with_trailing_times(solver: str) -> str:
    """With trailing times where solvers can be told to."""
    return f"{solver}@trailing" if hasattr(solvers, "check_solver") else solver


def _shared(model: InspectedModel, teacher: InspectedModel, family: str, said: Guesses) -> list[str]:
    """Components that are the teacher's: those the student has none of, and those with the same weights."""
    found: list[str] = []
    for name in FAMILIES[family].shared:
        mine, theirs = model.folder / name, teacher.folder / name
        if model.kind != "pipeline" or not mine.is_dir():
            found.append(said.say(f"share {name}", "yes", "the student has none of its own") and name)
            continue
        same = alike(mine, theirs) if theirs.is_dir() else False
        if same is None:
            said.say(f"share {name}", "no", "weights aren't here, so can't be compared: fetch both and write the card again")
        elif same:
            found.append(said.say(f"share {name}", "yes", "both are equal: same config, same bytes of weights") and name)
        else:
            said.say(f"share {name}", "no", "they differ: it is loaded twice, and prompts are read by the student's")
    return found


def alike(a: Path, b: Path) -> bool | None:
    """Whether two components are the same; None where weights aren't here. Names of files and makers don't count."""
    tokenizer = a.name.startswith("tokenizer")
    weights = [_hashes(f, "*.safetensors" if not tokenizer else "*") for f in (a, b)]
    if tokenizer:
        return weights[0] == weights[1]
    if not all(weights):
        return None
    configs = [_plain(read_json(f / "config.json")) for f in (a, b)]
    return weights[0] == weights[1] and configs[0] == configs[1]


def _hashes(folder: Path, pattern: str) -> set[str]:
    found = set[str]()
    for p in sorted(folder.glob(pattern)):
        with p.open("rb") as f:
            found.add(hashlib.file_digest(f, "sha256").hexdigest())
    return found


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in COSMETIC}


def _license(model: InspectedModel, whose: str, said: Guesses) -> str:
    """From the head of the page in its folder, as hubs have it."""
    page = (model.folder if model.folder.is_dir() else model.folder.parent) / "README.md"
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    names = dict(re.findall(r"^(license|license_name): *(\S.*)$", head[1], re.MULTILINE)) if head else {}
    name = names.get("license_name") or names.get("license")
    if not name:
        return said.say(
            f"{whose}'s licence", "unstated", "no page with a licence is in its folder: write in what its authors say"
        )
    return said.say(f"{whose}'s licence", name, f"README.md: {licence(name).says}")
