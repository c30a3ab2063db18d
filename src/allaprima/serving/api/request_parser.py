"""From a checked body to what the engine is asked: caps first, then settings, policy, words and seeds."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from allaprima.cascade.policy import Policy
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.edit import DEFAULT_STRENGTH, Edit, ImageInput
from allaprima.conditioning.vocabulary import ResolvedPrompt, Vocabulary
from allaprima.core.errors import AllaprimaError, CalibrationError, PromptError, SettingError
from allaprima.pipeline import AdaptivePipeline
from allaprima.pipeline.requests import CALL_SETTINGS, PROMPT_TEXTS, compose_requests, settings_changes
from allaprima.serving.api.errors import ApiError
from allaprima.serving.api.limits import ALIAS, MAX_SEED, MAX_SIDE, Limits
from allaprima.serving.api.schemas import Adaptive, ImageRequestBody
from allaprima.serving.handle import EngineRequest


@dataclass(frozen=True)
class UploadedImages:
    """Pictures of an edit: `(3, H, W)`, and the mask `(1, H, W)`, 1 where it is painted anew."""

    image: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class ModelRecord:
    """Who paints, as pictures tell it (`cascade.metadata`)."""

    card: str
    fingerprints: Mapping[str, str]
    extras: Mapping[str, Any]


@dataclass(frozen=True)
class ParsedRequest:
    """What one HTTP request asks of the engine."""

    requests: tuple[EngineRequest, ...]
    model_record: ModelRecord
    asked: str
    """The prompt as it came."""
    revised: str | None
    """The prompt in the card's words, where those are others."""
    mode: str
    """The pipeline's."""
    calibrated: bool
    kind: str
    compression: int | None
    stream: bool
    partial_images: int

    @property
    def size(self) -> str:
        """`WIDTHxHEIGHT`."""
        return f"{self.requests[0].settings.width}x{self.requests[0].settings.height}"


class RequestParser:
    """Makes orders for one pipeline. Thread-safe: words are looked up one at a time."""

    def __init__(
        self,
        pipe: AdaptivePipeline,
        limits: Limits,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        budget: float | None = None,
    ) -> None:
        """`clock`: the engine's, which deadlines are told in. `budget`: where a request doesn't say how it is decided."""
        self.pipe, self.limits, self.name, self._clock, self._budget = pipe, limits, name, clock, budget
        self._mark: float | None = None
        """The usual threshold, for settings that it wasn't calibrated for."""
        if pipe.calibration is not None or budget is not None:
            self._mark = pipe.policy(pipe.settings, None, budget).threshold
        self._words = threading.Lock()
        placed = pipe.device_config.to_dict()
        # The card's name, not its path: strangers get these pictures.
        self._maker = ModelRecord(name, pipe.fingerprints(), {"placement": placed} if placed else {})
        card = pipe.card
        known = [] if card is None else card.known_concepts()
        self._vocabulary: Vocabulary | None = None
        # What a backend compiled may not be called by two threads: there, words are painted as they are asked for.
        if known and card is not None and pipe.device_config.plain:
            encode: Any = pipe.student
            self._vocabulary = Vocabulary(known, card.styles, encode.encode, card.known_keywords())

    def warm(self) -> None:
        """Read the card's concepts once, so that the first unknown word doesn't wait for it."""
        if self._vocabulary is not None:
            with self._words:
                self._vocabulary.word("something that no card knows")

    def size_of(self, body: ImageRequestBody) -> tuple[int, int]:
        """Width and height, within their caps. Raises `ApiError`."""
        own = self.pipe.settings
        if body.size is None or body.size == "auto":
            return own.width, own.height
        width, height = (int(part) for part in body.size.split("x"))
        if max(width, height) > MAX_SIDE or width % 8 or height % 8:
            raise ApiError(400, "invalid_value", f"size={body.size!r}: multiples of 8 are due, up to {MAX_SIDE}.", "size")
        if width * height > self.limits.pixels:
            raise _over("size", f"{body.size} is {width * height} pixels", self.limits.pixels, "pixels")
        return width, height

    def check(self, body: ImageRequestBody) -> CascadeSettings:
        """Return the settings of a request whose every number is within its cap. Raises `ApiError`; allocates nothing."""
        limits = self.limits
        if body.model is not None and body.model not in (self.name, ALIAS):
            raise ApiError(
                404, "model_not_found", f"model {body.model[:80]!r} is not served here: {self.name!r} is.", "model"
            )  # fmt: skip
        if body.response_format == "url":
            raise ApiError(
                400, "unsupported_value", "response_format='url': this server keeps no pictures. Ask for b64_json.",
                "response_format",
            )  # fmt: skip
        if body.partial_images and not body.stream:
            raise ApiError(400, "invalid_value", "partial_images means nothing without stream=true.", "partial_images")
        for name in ("prompt", *PROMPT_TEXTS):
            text = getattr(body, name) or ""
            if len(text) > limits.prompt_chars:
                raise _over(name, f"it has {len(text)} characters", limits.prompt_chars, "characters")
        n = body.n or 1
        if n > limits.n:
            raise _over("n", f"n={_digits(n)}", limits.n, "pictures a request")
        if (body.num_inference_steps or 1) > limits.steps:
            digits = _digits(body.num_inference_steps or 1)
            raise _over("num_inference_steps", f"num_inference_steps={digits}", limits.steps, "steps")
        width, height = self.size_of(body)
        settings = self._settings(body, width, height)
        adaptive = body.adaptive or Adaptive()
        drafts = 1 if adaptive.max_drafts is None else adaptive.max_drafts
        tries = 1 if adaptive.max_teacher_tries is None else adaptive.max_teacher_tries
        cost = n * width * height * (drafts * settings.student_steps + tries * settings.teacher_steps)
        if cost > limits.cost:
            raise _over("n", f"n x pixels x steps of all attempts is {cost}", limits.cost, "of it. Ask for less at a time")
        return settings

    def _settings(self, body: ImageRequestBody, width: int, height: int) -> CascadeSettings:
        strategy = None if body.adaptive is None else body.adaptive.strategy
        changes: dict[str, Any] = {
            "width": width, "height": height, "strategy": strategy,
            **settings_changes(**{name: getattr(body, name) for name in CALL_SETTINGS}),
        }  # fmt: skip
        try:
            return self.pipe.settings.changed(**{k: v for k, v in changes.items() if v is not None})
        except SettingError as e:
            raise ApiError(400, "invalid_value", str(e)) from e

    def parse(
        self, body: ImageRequestBody, settings: CascadeSettings, client: str, uploads: UploadedImages | None = None
    ) -> ParsedRequest:
        """Return what the engine is to be asked. Raises `ApiError`. May run the text encoder: call it off the event loop."""
        adaptive = body.adaptive or Adaptive()
        edit = None if uploads is None else self._edit(body, uploads)
        if edit is not None and adaptive.strategy is None:
            settings = settings.changed(strategy="regenerate")
        policy, calibrated = self._policy(adaptive, settings, edit is not None)
        word = self._word(body.prompt, adaptive.nearest)
        n = body.n or 1
        first = secrets.randbelow(2**31 - n) if body.seed is None else body.seed
        if first + n - 1 > MAX_SEED:
            raise ApiError(400, "invalid_value", f"seed={first} with n={n} counts beyond {MAX_SEED}: choose less.", "seed")
        deadline = None if adaptive.max_latency is None else self._clock() + adaptive.max_latency
        texts = {name: getattr(body, name) for name in PROMPT_TEXTS}
        requests = compose_requests([word.painted], range(first, first + n), None if edit is None else [edit], texts=texts)
        # Who says how it is decided expects just that; else a controller may lower the threshold under load.
        said = (adaptive.budget, adaptive.threshold, adaptive.mode, adaptive.max_drafts, adaptive.max_teacher_tries)
        left = all(value is None for value in said)
        return ParsedRequest(
            tuple(EngineRequest(r, settings, policy, 0, deadline, client, left) for r in requests),
            self._maker,
            body.prompt,
            None if word.painted == body.prompt else word.painted,
            adaptive.mode or "adaptive",
            calibrated,
            body.output_format or "png",
            body.output_compression,
            bool(body.stream),
            body.partial_images or 0,
        )

    @staticmethod
    def _edit(body: ImageRequestBody, uploads: UploadedImages) -> Edit:
        usual = DEFAULT_STRENGTH if uploads.mask is None else 1.0
        strength = getattr(body, "strength", None)
        try:
            mask = None if uploads.mask is None else ImageInput.of(uploads.mask)
            return Edit(ImageInput.of(uploads.image), usual if strength is None else strength, mask)
        except SettingError as e:
            raise ApiError(400, "invalid_value", str(e), "strength") from e

    def _policy(self, adaptive: Adaptive, settings: CascadeSettings, edits: bool) -> tuple[Policy, bool]:
        """Return the policy asked for, and whether its threshold was calibrated for these very settings.

        Where nothing is asked for and the calibration is of other settings (another size or guidance, an edit), its
        threshold stands as a mark to reach, and the answer says that it isn't calibrated.
        """
        mode, budget, threshold = adaptive.mode or "adaptive", adaptive.budget, adaptive.threshold
        try:
            if budget is not None and edits:
                raise SettingError(
                    "budgets were calibrated for pictures from a prompt alone, not for edits: give a threshold."
                )
            attempts = (adaptive.max_drafts, adaptive.max_teacher_tries, adaptive.noise)
            left = threshold is None and budget is None and mode == "adaptive"
            # The server's budget was calibrated for one attempt of each.
            budget = self._budget if left and attempts == (None, None, None) else budget
            try:
                policy = self.pipe.policy(settings, threshold, budget, mode, False, *attempts)
                return policy, threshold is None and mode == "adaptive" and not edits
            except CalibrationError:
                if self._mark is None or not left:
                    raise
                return self.pipe.policy(settings, self._mark, None, mode, False, *attempts), False
        except AllaprimaError as e:
            raise ApiError(400, "invalid_value", f"adaptive: {e}", "adaptive") from e

    def _word(self, prompt: str, nearest: bool) -> ResolvedPrompt:
        if self._vocabulary is None or not nearest:
            return ResolvedPrompt(prompt, prompt)
        check = getattr(self.pipe.student, "check_prompt", None)
        try:
            if check is not None:
                check(prompt)
            known = self._vocabulary.known(prompt)
            if known is not None:
                return known
            with self._words:
                return self._vocabulary.word(prompt)
        except (PromptError, SettingError) as e:
            raise ApiError(400, "invalid_prompt", str(e), "prompt") from e


def _over(param: str, what: str, most: int, of: str) -> ApiError:
    return ApiError(400, "limit_exceeded", f"{what}: this server paints up to {most} {of}.", param)


def _digits(number: int) -> str:
    """Return a whole number, short."""
    return str(number) if abs(number) < 10**12 else "a number of more than 12 digits"
