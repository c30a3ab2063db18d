"""Oracles by the card's `kind`."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from allaprima.core.errors import ModelError, SettingError
from allaprima.oracles.encoder import Step
from allaprima.oracles.oracle import Oracle
from allaprima.oracles.settings import (
    EncoderSettings,
    EnsembleSettings,
    ImageRewardSettings,
    RankScale,
    StandardScale,
    VQASettings,
    parse,
)

E = TypeVar("E", bound=EncoderSettings)
Encode = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class OracleRequest:
    """What a loader is given: where, what settings, and what of the pair it may use."""

    kind: str
    folder: Path
    settings: Mapping[str, Any]
    encode: Encode | None
    """The pair's text encoder."""
    step: Step | None
    """Operations of the teacher's guided step."""
    device: str = "cpu"
    """Where a network of its own is, unless the settings say."""

    def encoder_settings(self, cls: type[E]) -> E:
        """Return the settings of an oracle with a network of its own."""
        return parse(cls, self.kind, {"device": self.device, **self.settings})

    def no_settings(self) -> None:
        """Raise `SettingError` for settings of a kind that has none."""
        if self.settings:
            raise SettingError(
                f"oracle.settings.{next(iter(self.settings))} means nothing to the kind {self.kind!r}: it has none."
            )

    def encoder(self) -> Encode:
        """Raise `SettingError` where no text encoder is at hand."""
        if self.encode is None:
            raise SettingError(f"the oracle {self.kind!r} reads prompts through a pair's text encoder: give `encode`.")
        return self.encode


def folder_digest(folder: Path) -> str:
    """Config and weights: either can change a score."""
    parts = [(folder / name).read_bytes() for name in ("config.json", "model.safetensors")]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _image_text(request: OracleRequest) -> Oracle:
    from allaprima.oracles.image_text import ImageTextOracle, ImageTextScorer

    request.no_settings()
    scorer = ImageTextScorer.from_pretrained(request.folder)
    return ImageTextOracle(scorer, request.encoder(), "image_text", folder_digest(request.folder))


def _dual_encoder(request: OracleRequest) -> Oracle:
    from allaprima.oracles.dual_encoder import DualEncoder, DualEncoderOracle

    request.no_settings()
    encoder = DualEncoder.from_pretrained(request.folder)
    return DualEncoderOracle(encoder, request.encoder(), "dual_encoder", folder_digest(request.folder))


def _clip(request: OracleRequest) -> Oracle:
    from allaprima.oracles.clip import CLIPOracle

    return CLIPOracle.from_folder(request.kind, request.folder, request.encoder_settings(EncoderSettings), request.step)


def _aesthetic(request: OracleRequest) -> Oracle:
    from allaprima.oracles.aesthetic import AestheticOracle

    return AestheticOracle.from_folder(request.folder, request.encoder_settings(EncoderSettings), request.step)


def _image_reward(request: OracleRequest) -> Oracle:
    from allaprima.oracles.image_reward import ImageRewardOracle

    return ImageRewardOracle.from_folder(request.folder, request.encoder_settings(ImageRewardSettings), request.step)


def _vqa(request: OracleRequest) -> Oracle:
    from allaprima.oracles.vqa import VQAOracle

    return VQAOracle(parse(VQASettings, request.kind, request.settings))


def _ensemble(request: OracleRequest) -> Oracle:
    from allaprima.oracles.ensemble import EnsembleOracle, Member, Rank, Raw, Standard

    said = parse(EnsembleSettings, request.kind, request.settings)
    members: list[Member] = []
    for m in said.members:
        folder = request.folder / Path(m.source).expanduser()
        oracle = load_oracle(m.kind, folder, request.encode, m.settings, request.step, request.device)
        if isinstance(m.scale, StandardScale):
            scale = Standard(m.scale.mean, m.scale.deviation)
        else:
            scale = Rank.of(m.scale.references) if isinstance(m.scale, RankScale) else Raw()
        members.append(Member(oracle, m.weight, scale))
    return EnsembleOracle(members, said.name)


ORACLES: dict[str, Callable[[OracleRequest], Oracle] | str] = {
    "image_text": _image_text, "dual_encoder": _dual_encoder, "clip": _clip, "pickscore": _clip, "hpsv2": _clip,
    "imagereward": _image_reward, "aesthetic": _aesthetic, "vqa": _vqa, "ensemble": _ensemble,
    "composition": "owlv2:load",
    "latent_reward": "latent_reward:load",
}  # fmt: skip
"""`kind` -> its loader, or `module:function` in this package, imported when it is asked for.

docs/oracles.md says what each measures and where its weights come from.
"""


def load_oracle(
    kind: str,
    folder: Path | str,
    encode: Encode | None = None,
    settings: Mapping[str, Any] | None = None,
    step: Step | None = None,
    device: str = "cpu",
) -> Oracle:
    """Return an oracle by its kind.

    `encode`: the pair's text encoder, for the kinds that share it. `settings`: the card's, by kind (`oracles.settings`).
    `step`: says what a teacher's guided step takes (`models.loading.flops`), to give a cost as its share.
    `device`: where networks of an oracle's own are that have no `device` among their settings.
    Raises `ModelError` for an unknown kind or a broken folder, `SettingError` for settings that break a rule.
    """
    if kind not in ORACLES:
        raise ModelError(f"oracle kind {kind!r} is not known: {', '.join(ORACLES)} are. Mend `oracle.kind` in the card.")
    loader = ORACLES[kind]
    if isinstance(loader, str):
        module, _, function = loader.partition(":")
        loader = getattr(importlib.import_module(f"allaprima.oracles.{module}"), function)
    made: Any = loader(OracleRequest(kind, Path(folder), settings or {}, encode, step, device))
    # So that it can be saved with the models it goes with, to the byte.
    made.folder, made.kind, made.said = Path(folder), kind, dict(settings or {})
    return made
