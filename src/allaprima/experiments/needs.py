"""What `evaluate` may be asked for, and what each metric can't do without."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from allaprima.core.errors import ModelError, SettingError
from allaprima.data.pictures import PictureSet
from allaprima.evaluation import METRICS

KNOWN = (*METRICS, "judge", "composition")
SETWISE = ("frechet", "kernel", "precision_recall")
PAIRWISE = ("preservation", "dreamsim", "lpips")
PROMPTED = ("clip_score", "oracle_score", "retrieval", "diversity", "judge", "composition")
KEPT = (*SETWISE, "preservation", "diversity")
"""Metrics of one vector a picture, as it is on disk: made once, cached, and shared."""
CARD = ("oracle_score", "retrieval", "judge")


def metric_names(text: str | None) -> list[str]:
    """Return a comma list; raises `SettingError` for none, an unknown one (with the nearest) or one given twice."""
    names = [n.strip() for n in (text or "").split(",") if n.strip()]
    if not names:
        raise SettingError(f"no metrics: give --metrics with some of {', '.join(KNOWN)}, for example judge,frechet.")
    for n in names:
        if n not in KNOWN:
            near = difflib.get_close_matches(n, KNOWN, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise SettingError(f"metric={n!r} is not known: {', '.join(KNOWN)} are.{hint}")
        if names.count(n) > 1:
            raise SettingError(f"metric={n!r} is given twice: once is due.")
    return names


@dataclass(frozen=True)
class Reference:
    """What pictures are compared with: pictures, or for set metrics features `(M, D)` made earlier."""

    source: str
    pictures: PictureSet | None
    features: Tensor | None = None
    network: str | None = None
    """Fingerprint of the network that made the features, if their file says it."""

    def __len__(self) -> int:
        return len(self.pictures if self.pictures is not None else self.features if self.features is not None else ())


def read_features(path: Path) -> Reference:
    """Return a safetensors file with a tensor `features: (M, D)`; raises `ModelError` for any other."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            meta: dict[str, str] = f.metadata() or {}
            features: Tensor = f.get_tensor("features").double()
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{path} holds no features: {e}. A .safetensors file with a tensor 'features' is due.") from e
    if features.ndim != 2 or len(features) < 2:
        raise ModelError(f"{path}: features of shape {tuple(features.shape)}: (M, D) with M >= 2 is due. Make them again.")
    return Reference(str(path), None, features, meta.get("network") or meta.get("fingerprint"))


@dataclass(frozen=True)
class Needs:
    """Options that some metrics can't do without."""

    reference: Reference | None
    card: str | None
    clip: Path | None
    detector: Path | None = None
    """Folder of the model that finds objects, for composition."""
    composition_prompts: Path | None = None
    """What prompts ask for, in GenEval's file format."""

    @property
    def card_name(self) -> str | None:
        """Name of the card, where there is one."""
        from allaprima.models.cards.card import load_card

        return None if self.card is None else load_card(self.card).name

    def check_options(self, names: Sequence[str]) -> None:
        """Raise `SettingError` for an option that is missing, before anything is painted or loaded."""
        for n in names:
            if n in (*SETWISE, *PAIRWISE) and self.reference is None:
                raise SettingError(f"{n} compares with a reference: give --reference with a folder of pictures.")
            if n in PAIRWISE and self.reference is not None and self.reference.pictures is None:
                raise SettingError(f"{n} compares picture with picture: --reference must be a folder, not features.")
            if n in CARD and self.card is None:
                raise SettingError(f"{n} needs a card: give --card, for example emoji; these pictures don't say theirs.")
            if n == "composition":
                from allaprima.bundled.judges import check_composition

                check_composition(self.card_name, self.detector, self.composition_prompts)
            if n == "clip_score" and self.clip is None:
                raise SettingError("clip_score needs a CLIP model: give --clip with its folder.")
        if self.card is not None and {"judge", "retrieval"} & {*names}:
            from allaprima.bundled.judges import JUDGED
            from allaprima.models.cards.card import load_card

            name = load_card(self.card).name
            if name not in JUDGED or ("retrieval" in names and name != "emoji"):
                raise SettingError(
                    f"no bundled judge knows the pictures of card {name!r} (judge: {', '.join(JUDGED)}; retrieval: emoji):"
                    " use clip_score."
                )

    def check(self, names: Sequence[str], pictures: PictureSet) -> None:
        """Raise `SettingError` for a set that lacks prompts, or too few pictures of one, before any network runs."""
        prompts = pictures.prompts
        for n in names:
            if n in PROMPTED and prompts is None:
                raise SettingError(f"{n} needs prompts and {pictures.name} has none: give --prompts-file, one a picture.")
        if self.reference is not None and self.reference.pictures is not None and {*PAIRWISE} & {*names}:
            partners_of(pictures, self.reference.pictures)
        if "diversity" in names and prompts is not None:
            once = next((p for p, n in Counter(prompts).items() if n < 2), None)
            if once is not None:
                raise SettingError(
                    f"diversity needs 2 pictures of each prompt, {once!r} has 1: paint more, or leave it out."
                )


def features_sha256(features: Tensor) -> str:
    """Hash of features that came as a file."""
    return hashlib.sha256(features.contiguous().numpy().tobytes()).hexdigest()


def partners_of(pictures: PictureSet, others: PictureSet) -> PictureSet:
    """Return a partner for every picture, by prompt and seed if both sets have them, else by name; else `SettingError`."""
    by_seed = pictures.seeded and others.seeded
    found = dict(zip(others.keys(by_seed), others.entries, strict=True))
    for key, e in zip(pictures.keys(by_seed), pictures.entries, strict=True):
        if key not in found:
            what = f"prompt {e.prompt!r} and seed {e.seed}" if by_seed else f"the name {e.path.stem!r}"
            raise SettingError(
                f"{e.path} has no partner in {others.name}: a picture of {what} is due there, for every picture."
            )
    return replace(others, entries=tuple(found[k] for k in pictures.keys(by_seed)))
