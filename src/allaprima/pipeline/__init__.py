"""`AdaptivePipeline`: the cascade as one object with a diffusers-like call."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from allaprima.calibration.artifact import Calibration
from allaprima.cascade.generator_adapter import GeneratorAdapter
from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.pixel_cascade import PixelCascade
from allaprima.cascade.policy import Policy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.result import Result
from allaprima.cascade.runner import run
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.control import controls_of
from allaprima.conditioning.edit import Edit, ImageInput
from allaprima.conditioning.image_inputs import Images, edits_of
from allaprima.conditioning.task import OWN_NET, check_task, prepared
from allaprima.core.errors import SettingError
from allaprima.data.control_maps import GIVEN
from allaprima.models.cards.card import Card, TextSettings, load_card
from allaprima.models.diffusion_model import DiffusionModel
from allaprima.models.external.image_generator import ImageGenerator
from allaprima.models.loading.flops import step_flops
from allaprima.models.loading.from_pipelines import family_of
from allaprima.models.placement.device_config import DEFAULT, DeviceConfig
from allaprima.models.placement.placer import LazyModule, ModelPlacer
from allaprima.oracles.conditional import ConditionalOracle
from allaprima.oracles.load import load_oracle
from allaprima.oracles.oracle import Oracle
from allaprima.pipeline import saving
from allaprima.pipeline.call import AdaptiveOutput, CallbackOnStepEnd, StepCallback, check_output, output_of, seeds_of
from allaprima.pipeline.from_cards import card_settings, load_models
from allaprima.pipeline.from_diffusers import Level, generator_parts, latent_parts
from allaprima.pipeline.policies import AttemptLimits, action_settings, make_policy, student_settings
from allaprima.pipeline.requests import compose_requests, settings_changes

if TYPE_CHECKING:
    from allaprima.models.adapters.controlnet import ControlNet


class AdaptivePipeline:
    """A student paints, an oracle looks, a teacher retouches what falls short (arXiv 2312.10835).

    `AdaptivePipeline.from_card("emoji")`, or your own `student`, `teacher` (`models.diffusion_model`) and `oracle`.
    """

    def __init__(
        self,
        student: DiffusionModel | ImageGenerator,
        teacher: DiffusionModel | ImageGenerator,
        oracle: Oracle | None = None,
        settings: CascadeSettings | None = None,
        calibration: Calibration | None = None,
        card: Card | None = None,
        task: str = "text-to-image",
    ) -> None:
        """`task`: `text-to-image` (pictures may be given all the same), or one of `conditioning.task` whose pictures must
        be."""
        check_task(task)
        self.task, self._own_net = task, False
        self.student, self.teacher, self.oracle, self.card = student, teacher, oracle, card
        self.settings = settings or CascadeSettings()
        self.calibration = calibration
        self._placer = ModelPlacer(DeviceConfig())
        self.pipes: tuple[Any, Any] | None = None
        """Diffusers' pipelines that student and teacher were made from, if they were."""

    @property
    def device_config(self) -> DeviceConfig:
        """Where and how the networks run."""
        return self._placer.device_config

    @classmethod
    def from_card(
        cls, card: str | Path | Card = "emoji", calibration: str | Path | None = None, task: str = "text-to-image",
        device_config: DeviceConfig | None = None, **device_options: Any,
    ) -> AdaptivePipeline:  # fmt: skip
        """Load everything a card names; `allaprima.models.cards.card.load_card` says how it is found.

        `task`: `edit`, `inpaint`, `control` or `super-resolution`. The last takes the card's net for it, inpainting too if
        there is one, and `control` the card's first; `with_controlnets` chooses others. Raises `SettingError` when a card
        has no net for its task.

        `calibration`: an artifact of `allaprima calibrate` in place of the card's own; its settings (steps, solver,
        strategy, ...) become the pipeline's. Raises `CalibrationError` when it belongs to other models.

        `placement`, or its fields by name (`backend="openvino"`, `device="cuda"`): where and how networks run
        (`models.placement.device_config`). What changes bits changes fingerprints: the card's calibration is refused then.
        """
        if device_config is not None and device_options:
            raise SettingError(f"placement and {sorted(device_options)[0]} contradict each other: give one.")
        placer = ModelPlacer(DeviceConfig.of(**device_options) if device_config is None else device_config)
        card = card if isinstance(card, Card) else load_card(card)
        student, teacher, encode = load_models(card, placer)
        said, oracle = card.oracle, None
        if said.kind != "none":
            scale = card.teacher.guidance_scale
            step = functools.cache(lambda: step_flops(teacher, card.height, card.width, scale))
            # Of a teacher that is called whole nothing says what a step takes.
            known = None if isinstance(teacher, ImageGenerator) else step
            device = placer.device_config.device
            oracle = load_oracle(said.kind, card.path(said.source), encode, said.settings, known, device)
            if placer.elsewhere and hasattr(oracle, "through"):
                oracle = cast(Any, oracle).through(placer.method, encode, placer.signature)
        path = None if card.calibration is None else card.path(card.calibration)
        own = Calibration.load(path) if path is not None and path.exists() and calibration is None else None
        pipe = cls(student, teacher, oracle, card_settings(card), own, card)
        pipe._placer = placer
        if calibration is not None:
            pipe.use(Calibration.load(Path(calibration)))
        return pipe if task == "text-to-image" else pipe.for_task(task)

    @classmethod
    def from_pipelines(
        cls,
        student: Any,
        teacher: Any,
        oracle: Oracle | tuple[str, str | Path] | None = None,
        settings: CascadeSettings | None = None,
        calibration: Calibration | None = None,
        text: TextSettings | None = None,
        level: Level = "auto",
        **changes: Any,
    ) -> AdaptivePipeline:
        """From two pipelines of diffusers', whose parts are used as they are: no weight is copied.

        `level`: `steps` takes them apart, which needs one family, `sd`, `sdxl`, `sd3` or `flux`, float32, and one reading of
        prompts; `images` calls them whole (`cascade.pixel_cascade`), whatever they are; `auto` is `steps` where both are of
        one known family. Settings, where not given, are what schedulers and calls suggest; `changes` are fields of them.

        `oracle`: one that is loaded, or its kind and folder. Fingerprints are by content
        (`models.components.fingerprints`), not by files. Raises `ModelError` for pipelines that can't be used so.
        """
        if level not in ("auto", "steps", "images"):
            raise SettingError(f"level={level!r} is not known: auto, steps and images are.")
        family = family_of(student)
        if level == "steps" or (level == "auto" and family is not None and family == family_of(teacher)):
            made = latent_parts(student, teacher, oracle, settings, text, changes)
        else:
            made = generator_parts(student, teacher, oracle, settings, changes)
        pipe = cls(made.student, made.teacher, made.oracle, made.settings)
        pipe.pipes = made.pipes
        if calibration is not None:
            pipe.use(calibration)
        return pipe

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        calibration: str | Path | None = None,
        task: str = "text-to-image",
        revision: str | None = None,
        token: str | None = None,
    ) -> AdaptivePipeline:
        """Load what `save_pretrained` or `allaprima distill` wrote: a folder with a card.yaml, or a hub's repository of one.

        Of a repository only safetensors, configs and texts are fetched. Raises `ModelError`.
        """
        return cls.from_card(load_card(saving.fetched(folder_or_id, revision, token)), calibration, task)

    def save_pretrained(self, folder: str | Path, name: str | None = None, license: str | None = None) -> Path:
        """Write student, teacher, oracle, calibration and settings as a folder; returns its card.

        What both models share is written once; a LoRA student as its LoRA. Fingerprints stay, so that a calibration holds.
        Files of the same names are replaced. `license`: of models that come from pipelines, which don't say. Raises
        `SettingError`, `ModelError`.
        """
        return saving.save(self, folder, name, license)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload an adaptive pipeline",
        token: str | None = None,
        license: str | None = None,
        api: Any = None,
    ) -> Any:
        """`save_pretrained` into a repository of the hub, made if it isn't there; returns what the hub says of the commit.

        `api`: a `huggingface_hub.HfApi`, for another endpoint.
        """
        return saving.push(self, repo_id, api, private, revision, commit_message, token, license)

    def for_task(self, task: str) -> AdaptivePipeline:
        """Return the same models for another task, with the card's net for it (see `from_card`)."""
        check_task(task)
        controls = {} if self.card is None else self.card.controls
        wanted = OWN_NET.get(task)
        net = next((n for n, c in controls.items() if wanted is None or c.map == wanted), None)
        needs = task in ("control", "super-resolution")
        if needs and net is None:
            name = "these models" if self.card is None else f"card {self.card.name!r}"
            kind = "ControlNet" if wanted is None else f"net for the map {wanted!r}"
            raise SettingError(
                f"task={task!r}: {name} has no {kind}. Train one (allaprima distill conditional), or put one on with"
                " with_controlnets."
            )
        own = net is not None and (needs or task in OWN_NET)
        pipe = self.with_controlnets([net]) if own and net is not None else copy.copy(self)
        pipe.task, pipe._own_net = task, own and wanted is not None
        return pipe

    def with_controlnets(
        self, nets: Sequence[str | Path], maps: Sequence[str] | None = None, condition_weight: float = 0.0
    ) -> AdaptivePipeline:
        """Return the same models with ControlNets on both: folders in diffusers' format, or names of the card's.

        With a `condition_weight` the oracle counts how well a picture heeds its `maps` (`oracles.conditional`), which are
        the card's if it knows the nets.

        Where the card has a net of the student's own (CoDi), the student is the teacher's network with it, in its few steps.
        Raises `ModelError` for nets that don't fit, `SettingError` for a name that the card doesn't have.
        """
        from allaprima.models.adapters.controlnet import ControlNet, controlled

        known = {} if self.card is None else self.card.controls
        odd = next((net for net in nets if str(net) not in known and not Path(net).is_dir()), None)
        if odd is not None:
            raise SettingError(f"no ControlNet {str(odd)!r}: a folder is due, or one of the card's: {', '.join(known)}.")

        def loaded(own: bool) -> list[ControlNet]:
            sources = [known[str(n)].student if own and str(n) in known else None for n in nets]
            named = [known[str(n)].source if str(n) in known else None for n in nets]
            folders = [s or m for s, m in zip(sources, named, strict=True)]
            found = [
                ControlNet.load(Path(n) if f is None or self.card is None else self.card.path(f))
                for n, f in zip(nets, folders, strict=True)
            ]
            return found if self.device_config.plain else [self._placed(net) for net in found]

        teacher, settings = controlled(self.teacher, loaded(False)), self.settings
        few = next((known[str(n)] for n in nets if str(n) in known and known[str(n)].student is not None), None)
        student = controlled(self.student if few is None else self.teacher, loaded(few is not None))
        if few is not None:
            settings = settings.changed(
                student_steps=few.student_steps, student_solver=few.student_solver, student_guidance=few.student_guidance
            )
        oracle = self.oracle
        if condition_weight and oracle is not None:
            named = [known[str(n)].map if str(n) in known else GIVEN for n in nets] if maps is None else maps
            oracle = ConditionalOracle(oracle, named, condition_weight)
        pipe = AdaptivePipeline(student, teacher, oracle, settings, None, self.card)
        pipe._placer = self._placer
        return pipe

    def _placed(self, net: ControlNet) -> ControlNet:
        if net.whole:
            raise SettingError(
                "a net of the student's own (conditional UNet) runs in torch on the CPU alone: leave the placement out."
            )
        made = self._placer.network(LazyModule.of(net.network), net.fingerprint, False, "control")
        return dataclasses.replace(net, network=made)

    @property
    def controls(self) -> int:
        """How many ControlNets there are."""
        return len(getattr(self.student, "controls", ()))

    def use(self, calibration: Calibration) -> None:
        """Take a calibration with the settings it was made for; `CalibrationError` when it belongs to other models."""
        calibration.check(calibration.settings, self.fingerprints())
        self.settings = calibration.applied(self.settings)
        self.calibration = calibration

    def fingerprints(self) -> dict[str, str]:
        """Return what a calibration is tied to."""
        # Of models of other makes nothing is known.
        prints: list[Any] = [getattr(model, "fingerprints", {}) for model in (self.student, self.teacher)]
        return {
            "student": str(getattr(self.student, "fingerprint", "unknown")),
            "teacher": str(getattr(self.teacher, "fingerprint", "unknown")),
            "oracle": self.oracle.fingerprint if self.oracle is not None else "none",
            "backend": " + ".join(dict.fromkeys(str(p.get("backend", DEFAULT)) for p in prints)),
        }

    student_settings = staticmethod(student_settings)
    action_settings = staticmethod(action_settings)

    def policy(
        self,
        settings: CascadeSettings,
        threshold: float | None = None,
        budget: float | None = None,
        mode: str = "adaptive",
        steer: bool = False,
        max_drafts: int | None = None,
        max_teacher_tries: int | None = None,
        noise: Literal["same", "fresh"] | None = None,
    ) -> Policy:
        """Return a policy from a threshold, a budget in the calibration's unit (steps unless it says otherwise), or a mode.

        `mode`: `adaptive`, `student-only`, `teacher-only`, `refine-all`. `steer` corrects the calibrated threshold picture
        by picture so that the mean cost of a run is the budget (`calibration.steering`): such a policy serves one run.
        `max_drafts`, `max_teacher_tries` and `noise` allow several attempts (`pipeline.policies.AttemptLimits`).
        """
        attempts = AttemptLimits(max_drafts, max_teacher_tries, noise)
        return make_policy(self.calibration, self.fingerprints, settings, threshold, budget, mode, steer, attempts)

    @property
    def level(self) -> str:
        """`steps`, or `images` where a model is called whole (`cascade.pixel_cascade`)."""
        whole = isinstance(self.student, ImageGenerator) or isinstance(self.teacher, ImageGenerator)
        return "images" if whole else "steps"

    def cascade(self, settings: CascadeSettings, policy: Policy) -> LatentCascade | PixelCascade:
        """Return the machine of a run. Raises `SettingError` for settings that these models' schedules can't meet."""
        student, teacher = self.student, self.teacher
        if not isinstance(student, ImageGenerator) and not isinstance(teacher, ImageGenerator):
            return LatentCascade(student, teacher, self.oracle, policy, settings)
        last_time, interval = settings.teacher_last_time, settings.teacher_guidance_interval
        if isinstance(teacher, ImageGenerator):
            if last_time is not None or interval is not None:
                raise SettingError(
                    "a teacher that is called whole has no last_time and no guidance interval: leave them out."
                )
        else:
            teacher = GeneratorAdapter(teacher, False, last_time, interval)
        student = student if isinstance(student, ImageGenerator) else GeneratorAdapter(student, True)
        return PixelCascade(student, teacher, self.oracle, policy, settings)

    @staticmethod
    def requests(
        prompts: Sequence[str], seeds: Sequence[int], edits: Sequence[Edit] | None = None,
        controls: Sequence[tuple[ImageInput, ...]] | None = None, control_scales: tuple[float, ...] = (),
        first_index: int = 0, **texts: str | Sequence[str] | None,
    ) -> list[GenerationRequest]:  # fmt: skip
        """Compose the requests of a call (`pipeline.requests.compose_requests`)."""
        return compose_requests(prompts, seeds, edits, controls, control_scales, first_index, texts=texts)

    def stream(
        self, requests: Iterable[GenerationRequest], settings: CascadeSettings | None = None, policy: Policy | None = None
    ) -> Iterator[Result]:
        """Paint requests as they come; results in the order they are finished."""
        settings = settings or self.settings
        policy = policy or self.policy(settings)
        return run(self.cascade(settings, policy), requests)

    # Long: a line for each of diffusers' arguments, which are then read in the order in which they depend on each other.
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        budget: float | None = None,
        threshold: float | None = None,
        mode: str = "adaptive",
        steer: bool = False,
        max_drafts: int | None = None,
        max_teacher_tries: int | None = None,
        noise: Literal["same", "fresh"] | None = None,
        image: Images | None = None,
        strength: float | Sequence[float] | None = None,
        mask_image: Images | None = None,
        control_image: Images | Sequence[Images] | None = None,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        prompt_3: str | Sequence[str] | None = None,
        negative_prompt_3: str | Sequence[str] | None = None,
        clip_skip: int | None = None,
        guidance_rescale: float | None = None,
        **changes: Any,
    ) -> AdaptiveOutput | Any:
        """Paint; arguments are named as diffusers names them, the rest are fields of `CascadeSettings`.

        `num_inference_steps` is the teacher's. A picture's seed is `seed + its place`, or the given list's entry, or
        drawn from its generator. With `image` (one for all prompts, or one each) pictures are edited (`conditioning.edit`):
        `strength` in (0, 1) says how much, 0.8 as diffusers has it, or 1 with a mask; `mask_image` where (white is painted
        anew). The teacher regenerates then unless `strategy` says otherwise: refining an edit is noise on noise.
        `max_drafts` and `max_teacher_tries` allow several attempts: below the threshold another is made, the teacher's first
        with the `same` noise as the draft (or a `fresh` one), and the best image by the oracle is kept.

        With ControlNets (`with_controlnets`) `control_image` is one picture for all prompts or one each; with several nets
        a list of these, one a net; `controlnet_conditioning_scale` says how much they are heeded.

        `prompt_2`, `negative_prompt_2` (sdxl, sd3, flux), `prompt_3`, `negative_prompt_3` (sd3 with T5), one for all prompts
        or one each, are for the second and third text encoder, which read `prompt` and `negative_prompt` otherwise;
        `clip_skip` (sd, sdxl, sd3) and `guidance_rescale` (sd, sdxl; of both models, as `guidance_scale`) as in diffusers.

        `output_type`: `pil`, `np` `(N, H, W, 3)` or `pt` `(N, 3, H, W)`, in [0, 1]. With `return_dict=False` a tuple comes
        back whose first entry is the pictures. `callback_on_step_end(pipe, step, timestep, {"latents": (B, C, h, w)})` is
        called after every step of a batch, student's first, `step` counting on; latents in the mapping it returns replace
        those, and an exception ends the call.

        Raises `PromptError` or `SettingError` before anything is painted; `PaintingError`, which holds all results, after,
        when a picture failed.
        """
        check_output(output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if num_images_per_prompt < 1:
            raise SettingError(f"num_images_per_prompt={num_images_per_prompt!r} must be at least 1.")
        changes |= settings_changes(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, guidance_rescale=guidance_rescale,
            clip_skip=clip_skip,
        )  # fmt: skip
        known = {f.name for f in dataclasses.fields(CascadeSettings)}
        if not changes.keys() <= known:
            bad = sorted(changes.keys() - known)[0]
            raise SettingError(f"{bad!r} is not a setting: {', '.join(sorted(known))} are.")
        sized = self.settings.changed(**{k: v for k, v in changes.items() if k in ("height", "width")})
        if self.task != "text-to-image":
            image, mask_image, control_image = prepared(
                self.task, (sized.width, sized.height), self._own_net, image, mask_image, control_image
            )
            if isinstance(control_image, list) and len(control_image) == 1:
                control_image = control_image[0]
        edits = edits_of(len(prompts), image, strength, mask_image)
        if edits is not None:
            changes.setdefault("strategy", "regenerate")
        settings = self.settings.changed(**changes)
        seeds = seeds_of(len(prompts) * num_images_per_prompt, seed, generator)
        controls, scales = controls_of(len(prompts), self.controls, control_image, controlnet_conditioning_scale)
        requests = self.requests(
            prompts, seeds, edits, controls, scales, negative_prompt=negative_prompt, prompt_2=prompt_2,
            negative_prompt_2=negative_prompt_2, prompt_3=prompt_3, negative_prompt_3=negative_prompt_3,
        )  # fmt: skip
        policy = self.policy(settings, threshold, budget, mode, steer, max_drafts, max_teacher_tries, noise)
        cascade = self.cascade(settings, policy)
        for r in requests:
            cascade.check(r)
        if callback_on_step_end is not None:
            if isinstance(cascade, PixelCascade):
                raise SettingError("callback_on_step_end: models that are called whole show no steps. Leave it out.")
            cascade.on_step = CallbackOnStepEnd(self, callback_on_step_end, bool(callback_on_step_end_tensor_inputs))
        results = list(run(cascade, requests, isolate=callback_on_step_end is None))
        return output_of(results, output_type, return_dict)
