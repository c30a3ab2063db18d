"""In and out of the diffusers world: pipelines in memory, folders of one's own, the hub. Longer methods of the pipeline.

```
FOLDER/
  card.yaml          what AdaptivePipeline.from_pretrained and allaprima generate --card FOLDER read
  teacher/           a folder that diffusers loads too
  student/           network and scheduler, or a LoRA's file; what it shares with the teacher isn't here again
  oracle/  calibration.json  README.md
```
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from allaprima.calibration.artifact import Calibration
from allaprima.cascade.settings import OMITTED_DEFAULTS, CascadeSettings
from allaprima.core.constants import NATIVE_SOLVER
from allaprima.core.errors import ModelError, SettingError
from allaprima.core.files import fingerprint
from allaprima.diffusion.noising import Strength, Variance
from allaprima.models.cards.card import Card, ModelSource, TextSettings, load_card
from allaprima.models.cards.hub import complete
from allaprima.models.external.diffusers_generator import DiffusersGenerator
from allaprima.models.external.image_generator import ImageGenerator
from allaprima.models.external.openai_generator import OpenAIGenerator
from allaprima.models.families.registry import FAMILIES
from allaprima.models.loading.from_pipelines import as_model, check_alike, family_of, settings_of, usual
from allaprima.models.loading.pair import load_pair, predicting
from allaprima.models.loading.save import card_text, copy_beside, copy_pair, copy_tree, put_in_place, write_pair
from allaprima.models.placement.placer import ModelPlacer
from allaprima.oracles.ensemble import EnsembleOracle
from allaprima.oracles.load import Encode, load_oracle
from allaprima.oracles.oracle import Oracle

ANY = "any"
"""Family of a card whose models are pipelines that are called whole."""
WITHOUT_FILES = ("vqa",)
"""Kinds of oracles that are settings alone."""
Level = Literal["auto", "steps", "images"]
DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.yaml", "*.md"]
"""What is fetched from a hub: nothing that could run code (transformers reads chat templates in a sandbox)."""


@dataclass(frozen=True)
class PipelineParts:
    """What an adaptive pipeline is made of."""

    student: Any
    teacher: Any
    oracle: Oracle | None
    settings: CascadeSettings
    pipes: tuple[Any, Any] | None
    """Diffusers' pipelines that were taken apart for it."""


class Saved(Protocol):
    """What saving needs to know of an adaptive pipeline."""

    student: Any
    teacher: Any
    oracle: Oracle | None
    settings: CascadeSettings
    calibration: Calibration | None
    card: Card | None
    task: str
    pipes: tuple[Any, Any] | None

    @property
    def controls(self) -> int:
        """How many ControlNets are on."""
        ...


def steps_of(
    student: Any, teacher: Any, oracle: Oracle | tuple[str, str | Path] | None, settings: CascadeSettings | None,
    text: TextSettings | None, changes: dict[str, Any],
) -> PipelineParts:  # fmt: skip
    """Two pipelines of one family, step by step (`AdaptivePipeline.from_pipelines`)."""
    families = family_of(student), family_of(teacher)
    if families[0] != families[1]:
        raise ModelError(
            f"a student of the family {families[0]} and a teacher of {families[1]} share no latents: use them whole, with"
            ' level="images".'
        )
    model = as_model(teacher, text)
    if getattr(model.network, "peft_config", None):
        raise ModelError("the teacher has LoRA adapters on it: call fuse_lora() and unload_lora_weights() first.")
    draft = as_model(student, text, getattr(model.fingerprints, "cache", None))
    check_alike(draft, model)
    made = CascadeSettings(**settings_of(student, teacher, draft, model, changes)) if settings is None else settings
    scorer = load_oracle(oracle[0], Path(oracle[1]), draft.encode) if isinstance(oracle, tuple) else oracle
    return PipelineParts(draft, model, scorer, made.changed(**changes), (student, teacher))


def images_of(
    student: Any, teacher: Any, oracle: Oracle | tuple[str, str | Path] | None, settings: CascadeSettings | None,
    changes: dict[str, Any],
) -> PipelineParts:  # fmt: skip
    """Two pipelines, or other painters of whole pictures, called as they are (`AdaptivePipeline.from_pipelines`)."""
    draft = student if isinstance(student, ImageGenerator) else DiffusersGenerator.of(student)
    model = teacher if isinstance(teacher, ImageGenerator) else DiffusersGenerator.of(teacher)
    scorer = load_oracle(oracle[0], Path(oracle[1]), draft.encode) if isinstance(oracle, tuple) else oracle
    made = settings
    if made is None:
        size = _size(draft) or _size(model) or (None, None)
        made = CascadeSettings(
            student_steps=4, student_guidance=1.0, student_solver=NATIVE_SOLVER, teacher_solver=NATIVE_SOLVER,
            sigma=Strength(0.5), batch_size=1, teacher_steps=int(_usual(model, "num_inference_steps", 30)),
            teacher_guidance=float(_usual(model, "guidance_scale", 1.0)),
            strategy="refine" if model.paints_over else "regenerate", height=size[0] or 512, width=size[1] or 512,
        )  # fmt: skip
    return PipelineParts(draft, model, scorer, made.changed(**changes), None)


def _usual(model: Any, name: str, default: Any) -> Any:
    return usual(model.text or model.image, name, default) if isinstance(model, DiffusersGenerator) else default


def _size(model: Any) -> tuple[int, int] | None:
    """Height and width that a pipeline paints unless told otherwise, where its parts say so."""
    pipe = (model.text or model.image) if isinstance(model, DiffusersGenerator) else None
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    side, factor = getattr(getattr(network, "config", None), "sample_size", None), getattr(pipe, "vae_scale_factor", None)
    if not isinstance(side, int) or not isinstance(factor, int):
        return None
    return side * factor, side * factor


def painters_of(card: Card, placer: ModelPlacer | None = None) -> tuple[Any, Any, Encode]:
    """Student and teacher of a card, and what reads prompts for its oracle.

    Raises `ModelError`, and `SettingError` for a placement of models that are called whole.
    """
    if card.family != ANY and card.student.remote is None and card.teacher.remote is None:
        pair = load_pair(card, placer)
        return pair.student, pair.teacher, pair.student.encode
    if placer is not None and not placer.device_config.plain:
        raise SettingError(
            f"card {card.name!r} has models that are called whole, of the family {ANY!r} or on a server: where they run is"
            " theirs to say. Leave device, backend and the like out."
        )
    pair = None
    if card.family != ANY and card.teacher.source is not None and card.student.remote is None:
        pair = load_pair(card)
    student = pair.student if pair is not None and card.student.remote is None else _painter(card, card.student)
    teacher = pair.teacher if pair is not None and card.teacher.remote is None else _painter(card, card.teacher)
    encode: Encode = teacher.encode if card.student.remote is not None else student.encode
    if card.oracle.encoder is not None:
        other = card.beside(card.oracle.encoder)
        encode = load_pair(load_card(other if other.exists() else card.oracle.encoder)).student.encode
    return student, teacher, encode


def _painter(card: Card, source: ModelSource) -> Any:
    """One model of a card by itself."""
    if source.remote is not None:
        return OpenAIGenerator(source.remote)
    more = next((n for n in ("lora", "network", "refiner") if getattr(source, n) is not None), None)
    if source.source is None or more is not None:
        given = "no source" if more is None else f"a {more}"
        raise ModelError(
            f"card {card.name!r}: a model beside a remote one, or of the family {ANY!r}, is one folder, its source; this one"
            f" has {given}. Give source alone."
        )
    if card.family == ANY:
        hub = card.hub(source.source)
        # Of a whole repository diffusers itself knows best what to fetch; but it would ask the hub for what is here, too.
        whole = hub is not None and str(hub) == hub.id and complete(hub) is None
        return DiffusersGenerator.from_pretrained(source.source if whole else card.path(source.source))
    if card.family not in FAMILIES:
        raise ModelError(
            f"card {card.name!r} is of the family {card.family!r}: {', '.join((*FAMILIES, ANY))} can be loaded."
        )
    entry = FAMILIES[card.family]
    return predicting(entry.load(card.path(source.source, entry.needed()), card.text), source.prediction)


def save(pipe: Saved, folder: str | Path, name: str | None = None, license: str | None = None) -> Path:
    """Write a pipeline as a folder; returns its card (`AdaptivePipeline.save_pretrained`)."""
    folder = Path(folder).expanduser()
    if pipe.controls or pipe.task != "text-to-image":
        raise SettingError(
            "a pipeline with ControlNets on can't be saved: save the one beneath; its card's nets go with it."
        )
    if isinstance(pipe.student, ImageGenerator) or isinstance(pipe.teacher, ImageGenerator):
        raise SettingError(
            "models that are called whole aren't saved: keep their card, or save the pipelines themselves. A card that names"
            f" their family ({', '.join(FAMILIES)}), and a LoRA as student.lora, is painted step by step and can be saved."
        )
    unsaid = next((name for name, usual in OMITTED_DEFAULTS.items() if getattr(pipe.settings, name) != usual), None)
    if unsaid is not None:
        raise SettingError(
            f"{unsaid}={getattr(pipe.settings, unsaid)!r}: a card has no place for it, it would be lost. Leave it out"
            " of the pipeline's settings, and give it in each call."
        )
    if folder.is_file():
        raise SettingError(f"{folder} is a file: give a folder.")
    if pipe.card is not None and folder.exists() and folder.resolve() == pipe.card.folder.resolve():
        raise SettingError(f"{folder} is where these models were read from: save them elsewhere.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        raw = _written(pipe, made, name or folder.name, license)
        (made / "card.yaml").write_text(card_text(raw), encoding="utf-8")
        (made / "README.md").write_text(page(raw), encoding="utf-8")
        put_in_place(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder / "card.yaml"


def _written(pipe: Saved, to: Path, name: str, license: str | None) -> dict[str, Any]:
    """Models and all that goes with them into a folder; returns its card."""
    card, more = pipe.card, dict[str, Any]()
    if card is not None:
        _unchanged(pipe, card)
        student, teacher = copy_pair(card, to)
        more |= copy_beside(card, to)
        licenses, family = (license or card.student.license, license or card.teacher.license), card.family
        text, content = card.text, card.fingerprints == "content"
    elif pipe.pipes is not None:
        student, teacher = write_pair(*pipe.pipes, to)
        # Licences are not in a pipeline: whoever saves it knows them.
        licenses, family = (license or "unknown",) * 2, family_of(pipe.pipes[1]) or ""
        text, content = getattr(pipe.teacher, "text", TextSettings()), True
    else:
        raise ModelError(
            "these models were read neither from a card nor from pipelines, so their files aren't known: make the pipeline"
            " with from_card, from_pretrained or from_pipelines."
        )
    about = f"{name}, saved from diffusers' pipelines." if card is None else " ".join(card.description.split())
    s = pipe.settings
    raw: dict[str, Any] = {"name": name, "family": family, "description": about, "height": s.height, "width": s.width}
    share = {"share": student.pop("share")} if student.get("share") else {}
    raw["student"] = {
        **{k: v for k, v in student.items() if k != "share"}, "steps": s.student_steps, "guidance_scale": s.student_guidance,
        "solver": s.student_solver, "license": licenses[0], **share,
    }  # fmt: skip
    raw["teacher"] = {
        **teacher, "steps": s.teacher_steps, "guidance_scale": s.teacher_guidance, "solver": s.teacher_solver,
        "license": licenses[1], **_teacher_settings(s),
    }  # fmt: skip
    raw["oracle"] = _oracle(pipe.oracle, card, to)
    if text != TextSettings():
        raw["text"] = text.model_dump(exclude_defaults=True)
    kind = "variance" if isinstance(s.sigma, Variance) else "strength"
    raw["cascade"] = {"strategy": s.strategy, "sigma": s.sigma.value, "sigma_is": kind}
    if pipe.calibration is not None:
        pipe.calibration.save(to / "calibration.json")
        raw["calibration"] = "calibration.json"
    if content:
        raw["fingerprints"] = "content"
    return {**raw, **more}


def _teacher_settings(s: CascadeSettings) -> dict[str, Any]:
    found: dict[str, Any] = {} if s.teacher_last_time is None else {"last_time": s.teacher_last_time}
    between = s.teacher_guidance_interval
    if between is not None:
        found |= {"guidance_interval": [between.low, between.high], "guidance_outside": between.outside}
    return found


def _unchanged(pipe: Saved, card: Card) -> None:
    """Raise `ModelError` where a network's files aren't what it was read from."""
    if card.fingerprints == "content":
        return
    entry = FAMILIES[card.family]
    component = entry.component
    for name, source in (("student", card.student), ("teacher", card.teacher)):
        if source.students or source.lora is not None or source.network is not None:
            continue
        prints = getattr(getattr(pipe, name), "fingerprints", {})
        folder = card.path(source.source or "", entry.needed(source.share)) / component
        if not folder.is_dir() or prints.get(component) != fingerprint(folder):
            raise ModelError(
                f"the {name} isn't what card {card.name!r} names, {folder}: its files changed since, or it is another's."
                " Load the card again."
            )


def _oracle(oracle: Oracle | None, card: Card | None, to: Path) -> dict[str, Any]:
    if oracle is None:
        return {"kind": "none", "source": "none", "license": "none"}
    made = _copy_oracle(oracle, to / "oracle")
    known = card is not None and card.oracle.kind == made["kind"] and card.path(card.oracle.source) == _folder(oracle)
    if made.get("source") is not None:
        made["source"] = "oracle"
    made["license"] = card.oracle.license if card is not None and known else "unknown"
    return made


def _folder(oracle: Oracle) -> Path | None:
    """Where `load_oracle` read it."""
    return getattr(oracle, "folder", None)


def _copy_oracle(oracle: Oracle, to: Path) -> dict[str, Any]:
    """An oracle's files, and those of its members; returns kind, source (here) and settings. Raises `ModelError`."""
    folder, kind, said = _folder(oracle), getattr(oracle, "kind", None), dict(getattr(oracle, "said", {}))
    if folder is None or kind is None:
        raise ModelError(f"oracle {oracle.name!r} was read from no folder, so it can't be saved: make it with load_oracle.")
    made: dict[str, Any] = {"kind": kind}
    if isinstance(oracle, EnsembleOracle):
        found = [_copy_oracle(m.oracle, to / "members" / str(k)) for k, m in enumerate(oracle.members)]
        for k, member in enumerate(found):
            if "source" in member:
                member["source"] = f"members/{k}"
        # Weights and scales as they were said, places and settings as they are now.
        said["members"] = [{**old, **new} for old, new in zip(said["members"], found, strict=True)]
        made["source"] = "."
    elif kind not in WITHOUT_FILES:
        copy_tree(folder, to)
        made["source"] = "."
    return made if not said else {**made, "settings": said}


def page(raw: dict[str, Any]) -> str:
    """The model page, with the head that model hubs read."""
    student, teacher, oracle = raw["student"], raw["teacher"], raw["oracle"]
    name = raw["name"]
    student_line, teacher_line = (
        f"{m['steps']} steps, guidance scale {m['guidance_scale']:g}, solver {m['solver']}; {m['license']}"
        for m in (student, teacher)
    )
    calibrated = "calibration.json" if "calibration" in raw else "none: give a threshold, or run `allaprima calibrate`"
    return f"""---
library_name: allaprima
pipeline_tag: text-to-image
tags: [allaprima, text-to-image]
---

# {name}

{raw["description"]}

A student paints first, an oracle looks, and a teacher retouches what falls short. Family `{raw["family"]}`,
{raw["width"]}x{raw["height"]}.

| | |
|---|---|
| student | {student_line} |
| teacher | {teacher_line} |
| oracle | {oracle["kind"]}; {oracle["license"]} |
| calibration | {calibrated} |

```
from allaprima import AdaptivePipeline

pipe = AdaptivePipeline.from_pretrained("path or id of this folder")
pipe("a prompt", seed=1).images[0]
```
"""


def fetched(folder_or_id: str | Path, revision: str | None, token: str | None) -> Path:
    """A folder as it is, or a copy of the hub's repository of this id. Raises `ModelError`."""
    folder = Path(folder_or_id).expanduser()
    if folder.exists():
        return folder
    if str(folder_or_id).count("/") != 1 or str(folder_or_id).startswith((".", "/", "~")):
        raise ModelError(
            f"{folder_or_id} is not there: give a folder with a card.yaml, or the id of a repository, NAME/MODEL."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder_or_id), revision=revision, token=token, allow_patterns=DOWNLOADED))
    except Exception as e:
        why = " ".join(str(e).split())[:200]
        raise ModelError(
            f"{folder_or_id} is no folder here, and the hub gave nothing: {type(e).__name__}: {why}. Mind the name, the"
            " connection, and whether it needs a token."
        ) from e


def push(
    pipe: Saved, repo_id: str, api: Any, private: bool | None, revision: str | None, message: str,
    token: str | None, license: str | None,
) -> Any:  # fmt: skip
    """Save into a passing folder and upload it (`AdaptivePipeline.push_to_hub`)."""
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where) / repo_id.rsplit("/", 1)[-1]
        save(pipe, folder, license=license)
        # Made after saving: what can't be saved leaves no empty repository behind.
        made = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        full = getattr(made, "repo_id", repo_id)
        if revision is not None:
            api.create_branch(full, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=full, folder_path=folder, commit_message=message, revision=revision, repo_type="model"
        )
