"""Networks loaded once, and sets of pictures through all metrics, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from allaprima.core.errors import ModelError, SettingError
from allaprima.data.pictures import PictureSet, pixels_sha256
from allaprima.evaluation import make_metric
from allaprima.evaluation.cache import FeatureCache
from allaprima.evaluation.cached_features import CachedFeatures
from allaprima.evaluation.frechet import moments_of
from allaprima.evaluation.intervals import Interval, mean_interval
from allaprima.evaluation.metric import Metric, MetricResult, PerPicture
from allaprima.experiments.needs import KEPT, PAIRWISE, SETWISE, Needs, partners_of
from allaprima.experiments.progress import Bars

if TYPE_CHECKING:
    from allaprima.features.module import Features
    from allaprima.models.cards.card import Card
    from allaprima.oracles.load import Encode


@dataclass(frozen=True)
class MetricOutcome:
    """A metric of a set. `values`: one a picture (or a prompt), `prompts`: whose; empty if there are none."""

    measured: MetricResult
    higher_is_better: bool
    values: Sequence[float]
    prompts: Sequence[Any]
    interval: Interval | None

    @classmethod
    def of(cls, measured: MetricResult, higher_is_better: bool, prompts: Sequence[str] | None) -> MetricOutcome:
        """With the 95 % interval over prompts (over pictures if there are no prompts), from 2 of them on."""
        if measured.per_picture is not None:
            values = measured.per_picture.tolist()
            owners: list[Any] = list(range(len(values))) if prompts is None else list(prompts)
        else:
            values, owners = list((measured.per_prompt or {}).values()), list(measured.per_prompt or {})
        place = {p: i for i, p in enumerate(dict.fromkeys(owners))}
        interval = mean_interval(values, [place[p] for p in owners]) if len(place) > 1 else None
        return cls(measured, higher_is_better, values, owners, interval)

    def by_kind(self) -> dict[str, tuple[Interval, int]]:
        """Return the mean of each kind of prompt with its 95 % interval, prompts resampled, and its number of pictures."""
        found: dict[str, tuple[Interval, int]] = {}
        for kind in dict.fromkeys(self.measured.kinds or ()):
            rows = [i for i, k in enumerate(self.measured.kinds or ()) if k == kind]
            place = {p: i for i, p in enumerate(dict.fromkeys(self.prompts[i] for i in rows))}
            values, groups = [self.values[i] for i in rows], [place[self.prompts[i]] for i in rows]
            found[kind] = mean_interval(values, groups), len(rows)
        return found


@dataclass(frozen=True)
class MeasuredSet:
    """A set of pictures, hashed and measured."""

    pictures: PictureSet
    sha256: str
    size: tuple[int, int]
    """Height and width in pixels."""
    outcomes: Mapping[str, MetricOutcome]


class MetricSuite:
    """All that is loaded once for every set that is measured."""

    def __init__(
        self, names: Sequence[str], needs: Needs, features: str, batch: int, subset: int, cache: Path, bars: Bars
    ) -> None:
        self.names, self.needs, self.batch, self.subset, self.bars = names, needs, batch, subset, bars
        self._features, self._cache = features, FeatureCache(cache)

    def passes(self, pictures: PictureSet, what: str) -> Callable[[], Iterator[Tensor]]:
        """Batches as often as they are asked for."""
        return lambda: self.bars.over(pictures.batches(self.batch), len(pictures), f"{what} {pictures.name}")

    @cached_property
    def net(self) -> Features:
        """The feature network."""
        from allaprima.features.load import load_features

        net = load_features(self._features)
        ref = self.needs.reference
        if ref is not None and ref.features is not None:
            if ref.features.shape[1] != net.dim:
                raise SettingError(f"{ref.source} has {ref.features.shape[1]} features a picture, {net.name} {net.dim}.")
            if ref.network not in (None, net.fingerprint):
                raise ModelError(
                    f"{ref.source} was made with the feature network {ref.network}, {net.name} is {net.fingerprint}: give"
                    " that network with --features, or make the features again."
                )
        return net

    @cached_property
    def reference_features(self) -> Tensor:
        """`(M, D)` float64."""
        ref = self.needs.reference
        assert ref is not None
        net = self.net
        if ref.features is not None:
            return ref.features
        assert ref.pictures is not None
        return self._cache.features(self.passes(ref.pictures, "features of"), net)

    @cached_property
    def card(self) -> Card:
        """The card that metrics of a pair go by."""
        from allaprima.models.cards.card import load_card

        assert self.needs.card is not None
        return load_card(self.needs.card)

    @cached_property
    def encode(self) -> Encode:
        """The card's text encoder."""
        from allaprima.models.loading.pair import load_pair

        return load_pair(self.card).student.encode

    def metric(self, name: str, net: Features | None) -> Metric:
        """Return a fresh one; `net` for the metrics of one vector a picture."""
        if name == "judge":
            from allaprima.bundled.judges import load_judge_score

            return PerPicture(load_judge_score(self.card.name, self.encode))
        if name == "retrieval":
            from allaprima.bundled.emoji import load_judge
            from allaprima.evaluation.retrieval import JudgeEncoder

            return make_metric(name, judge=JudgeEncoder(load_judge(), self.encode), captions=self.card.usual_prompts())
        if name == "oracle_score":
            from allaprima.oracles.load import load_oracle

            said = self.card.oracle
            oracle = load_oracle(said.kind, self.card.path(said.source), self.encode, said.settings)
            return make_metric(name, oracle=oracle)
        if name == "composition":
            from allaprima.bundled.judges import load_composition_judge
            from allaprima.evaluation.composition import Composition

            return Composition(
                load_composition_judge(self.needs.card_name, self.needs.detector, self.needs.composition_prompts)
            )
        if name == "clip_score":
            return make_metric(name, folder=self.needs.clip)
        options: dict[str, Any] = {"features": net if name in KEPT else self.net}
        if name == "frechet":
            options["reference"] = moments_of(self.reference_features)
        elif name in SETWISE:
            options["reference"] = self.reference_features
        if name == "kernel":
            options["subset_size"] = self.subset
        return make_metric(name, **options)

    def measure(self, pictures: PictureSet, sha256: str, size: tuple[int, int]) -> MeasuredSet:
        """All metrics, fed batch by batch."""
        net: Features | None = None
        if any(n in KEPT for n in self.names):
            rows = self._cache.features(self.passes(pictures, "features of"), self.net)
            net = CachedFeatures(self.net, pictures.batches(self.batch), rows)
        metrics = {n: self.metric(n, net) for n in self.names}
        partners: Iterator[Tensor] | None = None
        if any(n in PAIRWISE for n in self.names):
            assert self.needs.reference is not None and self.needs.reference.pictures is not None
            partners = partners_of(pictures, self.needs.reference.pictures).batches(self.batch)
        prompts, start = pictures.prompts, 0
        with torch.inference_mode():
            for batch in self.passes(pictures, "measuring")():
                images = batch.float() / 255
                some = [] if prompts is None else prompts[start : start + len(batch)]
                beside = None if partners is None else next(partners).float() / 255
                for name, metric in metrics.items():
                    metric.update(images, some, beside if name in PAIRWISE else None)
                start += len(batch)
        outcomes = {n: MetricOutcome.of(m.compute(), m.higher_is_better, prompts) for n, m in metrics.items()}
        return MeasuredSet(pictures, sha256, size, outcomes)

    def hashed(self, pictures: PictureSet) -> tuple[str, tuple[int, int]]:
        """Hash and size; every picture is read, so that a broken one is named before any network runs."""
        return pixels_sha256(self.passes(pictures, "reading")())
