"""Model cards: a small YAML that names student, teacher and oracle, their sources, licences and settings.

A card's sources are folders relative to the card, absolute folders, or hub ids (`models.cards.hub`). `extends:
NAME_OR_PATH` takes what isn't said from another card. Bundled cards are package data and are found without importing the
package that holds them: `bundled/NAME/card.yaml` beside weights of its own, and `cards/NAME.yaml` for models of the hub.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from allaprima.core.constants import NATIVE_SOLVER
from allaprima.core.errors import ModelError, UnsafeWeightsError
from allaprima.core.files import PICKLES
from allaprima.models.cards.hub import HubSource, fetched


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RemoteSource(_Strict):
    """A server with OpenAI's images endpoints (`models.external.openai_generator`)."""

    url: str
    """Up to and with `/v1`."""
    model: str
    key_env: str | None = None
    """Environment variable that holds the key; None: the server asks for none."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds for one picture, all of the answer."""
    retries: int = Field(default=4, ge=0, le=20)
    """Tries after the first, of what may pass: 429, 5xx, no connection."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Requests at once."""
    edits: bool = True
    """Whether it has `/images/edits`, to paint over a picture."""
    strength: bool = True
    """Whether `/images/edits` takes a strength; editors that follow instructions (vLLM-Omni's Qwen-Image-Edit) don't."""
    max_pixels: int = Field(default=2**24, ge=1)
    """No picture with more is decoded."""


class ModelSource(_Strict):
    """One diffusion model: where it is and how it is used by default."""

    source: str | None = None
    """Folder (relative to the card) or hub id `owner/name[@revision][:folder]`, in diffusers' format."""
    network: str | None = None
    """The network alone, in place of `source`'s: a folder with its config and weights, or a .safetensors file of weights for
    the config that is there. Without a source everything else, the scheduler too, is the teacher's."""
    lora: str | None = None
    """LoRA file (`.safetensors` beside the card, or `owner/name:file`), multiplied into `source` or `network`; without
    either, or where `source` holds a `scheduler` alone, it sits beside the teacher's own weights, in memory once."""
    lora_scale: float = 1.0
    """What the adapters are multiplied by."""
    prediction: Literal["epsilon", "v_prediction", "sample"] | None = None
    """What the network says, where that isn't what its scheduler's folder says (one-step SDXL-Lightning: `sample`)."""
    students: tuple[str, ...] = ()
    """In place of `source`: folders of several students, each with `unet` and `scheduler` (`models.multi_student.model`)."""
    partition: str | None = None
    """Safetensors file that says which of `students` paints a prompt (`models.multi_student.partition`)."""
    resident: int | None = Field(default=None, ge=1)
    """How many of `students` are in memory at once; None is all."""
    refiner: str | None = None
    """Folder of SDXL's refiner, which with the teacher's `source` is one teacher (`models.families.sdxl_refiner`)."""
    refiner_from: float = Field(default=0.8, gt=0, lt=1)
    """The share of the schedule after which the refiner takes over (diffusers' `denoising_end`)."""
    remote: RemoteSource | None = None
    """A server that paints, in place of a folder. A teacher may name a source too: a student of a known family takes shared
    components from there."""
    steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=0)
    solver: str = NATIVE_SOLVER
    """By name, `NAME[:ETA][@SPACING]` (`diffusion.solvers`): `dpm_solver`, `euler@trailing`, `lcm@800`; `own`: a pipeline's
    that is called whole, or a server's. Models of a known family need one by name."""
    license: str
    last_time: float | None = None
    """Where the teacher's last evaluation falls (`CascadeDefaults.teacher_last_time`)."""
    guidance_interval: tuple[float, float] | None = None
    """Times between which the teacher's guidance is full (`CascadeDefaults.teacher_guidance_interval`)."""
    guidance_outside: float = Field(default=1.0, ge=0)
    """Guidance scale outside that interval; 1 is none."""
    share: tuple[str, ...] = ()
    """Components taken from the other model instead of loaded again: `text_encoder`, `tokenizer`, `vae`; of the families
    `sdxl`, `sd3` and `flux` also `text_encoder_2`, `tokenizer_2`; of `sd3` also `text_encoder_3`, `tokenizer_3`."""

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        alone = (self.source, self.lora, self.network, self.remote)
        if all(value is None for value in alone) == (not self.students):
            raise ValueError(
                "either source, one folder, or students, several, is due (or network, or lora, a file that sits on one;"
                " or remote, a server)"
            )
        if bool(self.students) != (self.partition is not None):
            raise ValueError("students and partition belong together: give both or neither")
        if self.resident is not None and not self.students:
            raise ValueError("resident means something for several students only: give students, or leave it out")
        return self


class OracleSource(_Strict):
    """The reference-free scorer."""

    kind: str
    """One of `oracles.load.ORACLES`; `none`: no oracle, so that drafts are all accepted or all refined."""
    source: str = "."
    """Folder, relative to the card; kinds without weights of their own (`vqa`) need none."""
    license: str
    settings: dict[str, Any] = {}
    """By kind, checked when the oracle is loaded (`oracles.settings`)."""
    encoder: str | None = None
    """Card (name, or path relative to this one) whose text encoder reads prompts for it, where the card's own models have
    none to lend: pipelines used whole, and remote ones."""


class ControlSource(_Strict):
    """A ControlNet of the teacher's."""

    source: str
    """Folder (relative to the card) in diffusers' format."""
    map: str
    """What its pictures are: `canny`, `colours`, `depth`, or anything in words (`data.control_maps`)."""
    license: str
    student: str | None = None
    """Folder of the student's own net, that paints in few steps on the teacher's network (`distill conditional`); None: the
    same net on the card's student."""
    student_steps: int = Field(default=4, ge=1)
    student_solver: str = "ddim"
    student_guidance: float = Field(default=1.0, ge=0)


class TextSettings(_Strict):
    """How prompts become hidden states.

    The first three are the family `sd`'s; the tokenizers of `sdxl` and `sd3` know their own length.
    """

    max_length: int = Field(default=77, ge=3)
    attention_mask: bool = False
    zero_padding: bool = False
    max_sequence_length: int | None = Field(default=None, ge=1, le=1024)
    """How many tokens of a prompt are read by T5 (`sd3`, there also how many zeros stand in its place; `flux`), by Gemma
    (`sana`) and by Qwen (`qwen-image`, `z-image`); None is the family's own number, 256 to 512."""
    grammar: Literal["scenes"] | None = None
    """Of `sd`: prompts are read as sentences of this grammar (`data.grammars`); others are refused."""
    instruction: bool | None = None
    """Of `sana`: prompts are read behind diffusers' instruction to a writer of prompts, as it does; None is yes."""


class CascadeDefaults(_Strict):
    """What happens to a draft that falls short, unless the caller says otherwise."""

    strategy: Literal["refine", "regenerate"] = "refine"
    sigma: float = 0.7
    sigma_is: Literal["variance", "strength"] = "variance"


class Card(_Strict):
    """A card as read from its YAML."""

    name: str
    family: str
    """`sd`, `sdxl`, `sd3`, `flux`, `sana`, `qwen-image` or `z-image` (`models.families.registry`), or `any`: pipelines
    that are called whole."""
    description: str
    height: int = Field(ge=8)
    width: int = Field(ge=8)
    student: ModelSource
    teacher: ModelSource
    oracle: OracleSource
    text: TextSettings = TextSettings()
    controls: dict[str, ControlSource] = {}
    """ControlNets by name."""
    cascade: CascadeDefaults = CascadeDefaults()
    draft_vae: str | None = None
    """Folder of a small autoencoder (AutoencoderTiny) of the same latents: drafts are decoded and scored by it."""
    calibration: str | None = None
    """JSON file of a calibration artifact, relative to the card."""
    knows: str | None = None
    """Text file of the concepts the models know, one a line, relative to the card."""
    keywords: str | None = None
    """Text file of other words for them, `concept: keyword, keyword, ...` a line, relative to the card."""
    styles: tuple[str, ...] = ()
    prompts: str | None = None
    """Text file of prompts, one a line, relative to the card: what calibrations and measurements take if none are given."""
    fingerprints: Literal["files", "content"] = "files"
    """What models are known by: the bytes of their files,
    or their tensors and configs (`models.components.fingerprints`)."""
    folder: Path = Path()

    def path(self, source: str, components: Sequence[str] | None = None) -> Path:
        """Return a source as a path: relative ones are beside the card, hub ids in the cache, fetched if they aren't there.

        `components`: the folders that are needed of a hub id; None is everything. What is beside the card comes first.
        Raises `UnsafeWeightsError` for a pickle by its name, and what `models.cards.hub.fetched` raises.
        """
        if source.endswith(PICKLES):
            raise UnsafeWeightsError(
                f"{source}, named by card {self.name!r}, is a pickle, which can run code when it is read: safetensors are"
                " due. Convert it, or name another file."
            )
        hub = self.hub(source)
        return self.beside(source) if hub is None else fetched(hub, components)

    def beside(self, source: str) -> Path:
        """Return a source as a path on this machine, whether there is something or not."""
        p = Path(source).expanduser()
        return p if p.is_absolute() else self.folder / p

    def hub(self, source: str) -> HubSource | None:
        """Return a source as a hub id; None where it is a path."""
        return None if self.beside(source).exists() else HubSource.parse(source)

    def placed(self, source: str) -> str:
        """Return a source as another card may name it: hub ids as they are, paths as they are found from anywhere."""
        return source if self.hub(source) is not None else str(self.beside(source))

    def known_concepts(self) -> list[str]:
        """Return the concepts named by `knows`; empty when the card doesn't say."""
        if self.knows is None:
            return []
        return self._lines(self.knows)

    def usual_prompts(self) -> list[str]:
        """Return the prompts that calibrations and measurements take if none are given: those of `prompts`, else every known
        concept in every style; empty when the card names neither."""
        if self.prompts is not None:
            return self._lines(self.prompts)
        return [f"{concept}, {style}" for concept in self.known_concepts() for style in self.styles]

    def known_keywords(self) -> dict[str, list[str]]:
        """Other words for the known concepts; empty when the card has none. Raises `ModelError` for an unknown concept."""
        if self.keywords is None:
            return {}
        known, found = set(self.known_concepts()), dict[str, list[str]]()
        for line in self._lines(self.keywords):
            concept, colon, words = line.partition(":")
            if not colon or concept.strip() not in known:
                raise ModelError(
                    f"{self.beside(self.keywords)}: {line[:60]!r} does not begin with a known concept and a colon."
                    f" Mend the line, or add the concept to {self.knows}."
                )
            found[concept.strip()] = [word.strip() for word in words.split(",") if word.strip()]
        return found

    def _lines(self, source: str) -> list[str]:
        """Lines of a text file that say something."""
        try:
            lines = self.beside(source).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise ModelError(
                f"{self.beside(source)}, named by card {self.name!r}, cannot be read: {e}. Mend the card."
            ) from e
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _short(value: Any) -> str:
    """Return a wrong value as it was given; of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _package() -> Path:
    return Path(str(resources.files("allaprima")))


def bundled_cards() -> list[str]:
    """Names of the cards that come with the package: those with weights first."""
    package = _package()
    with_weights = sorted(p.parent.name for p in package.glob("bundled/*/card.yaml"))
    return [*with_weights, *sorted(p.stem for p in package.glob("cards/*.yaml"))]


def is_bundled(card: Card) -> bool:
    """Whether `load_card(card.name)` finds this card."""
    return card.folder in (_package() / "bundled" / card.name, _package() / "cards")


def _extended(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """With the fields of the card that `extends` names under those given here; groups are merged field by field.

    A student of one's own needs its own source (or students, or lora) and steps only. The other card's folders are taken
    where that card is; its calibration is left out, for thresholds don't hold for other models.
    """
    if "extends" not in raw:
        return raw
    name = str(raw["extends"])
    beside = path.parent / name
    if beside.resolve() in (path.resolve(), path.parent.resolve()):
        raise ModelError(f"{path} extends itself: name another card.")
    other = load_card(beside if beside.exists() else name)
    base = other.model_dump(exclude={"folder", "calibration"}, exclude_none=True)
    for part in ("student", "teacher", "oracle"):
        for key in ("source", "network", "partition", "lora", "refiner"):
            if key in base[part]:
                base[part][key] = other.placed(base[part][key])
        if "students" in base[part]:
            base[part]["students"] = [other.placed(f) for f in base[part]["students"]]
    for control in base["controls"].values():
        control |= {key: other.placed(control[key]) for key in ("source", "student") if key in control}
    if "draft_vae" in base:
        base["draft_vae"] = other.placed(base["draft_vae"])
    base |= {key: str(other.beside(base[key])) for key in ("knows", "keywords", "prompts") if key in base}
    oracle = raw.get("oracle")
    if isinstance(oracle, dict) and oracle.get("kind", base["oracle"]["kind"]) != base["oracle"]["kind"]:
        # Settings belong to a kind.
        base["oracle"].pop("settings", None)
    encoder = base["oracle"].get("encoder")
    if encoder is not None and other.beside(encoder).exists():
        base["oracle"]["encoder"] = str(other.beside(encoder))
    for part in ("student", "teacher"):
        said = raw.get(part)
        if isinstance(said, dict) and "remote" in said:
            # A server has its own scheduler: of the folder's entries only where it is stays, for what is shared.
            kept = ("source", "license") if part == "teacher" else ("license",)
            base[part] = {k: v for k, v in base[part].items() if k in kept}
    student = raw.get("student")
    if isinstance(student, dict) and not student.keys().isdisjoint(("source", "network", "students", "lora")):
        replaced = (
            "source", "network", "students", "partition", "resident", "lora", "lora_scale", "prediction", "remote",
        )  # fmt: skip
        base["student"] = {k: v for k, v in base["student"].items() if k not in replaced}
    return _merged(base, {k: v for k, v in raw.items() if k != "extends"})


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    made = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(made.get(key), dict)
        made[key] = _merged(made[key], value) if both else value
    return made


def load_card(name_or_path: str | Path) -> Card:
    """Read a bundled card by name, or any card by the path of its YAML or of the folder that holds `card.yaml`.

    Raises `ModelError` for an unknown name, an unreadable file or a field that breaks a rule.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        path = path / "card.yaml"
    if not path.is_file():
        path = _package() / "bundled" / str(name_or_path) / "card.yaml"
    if not path.is_file() and Path(name_or_path).name == str(name_or_path):
        path = _package() / "cards" / f"{name_or_path}.yaml"
    if not path.is_file():
        known = bundled_cards()
        near = difflib.get_close_matches(str(name_or_path), known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ModelError(
            f"no card {str(name_or_path)!r}: give one of the bundled cards ({', '.join(known)})"
            f" or the path of a card.yaml.{hint}"
        )
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ModelError(f"{path} is not a card: a YAML mapping with name, student, teacher and oracle is due.")
        return Card.model_validate({**_extended(raw, path), "folder": path.parent})
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as e:
        raise ModelError(f"{path} cannot be read as YAML: {e}. Mend the file or choose another card.") from e
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"{path}: {where} = {_short(first.get('input'))}: {first['msg']}. Mend that field of the card."
        ) from e
