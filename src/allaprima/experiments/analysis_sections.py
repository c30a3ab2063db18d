"""From painted pairs to the report's sections: which measure is taken by what, and why one isn't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from allaprima.analysis import complexity, curvature, decisions, distance, diversity, prompts
from allaprima.analysis.geometry import Trajectories
from allaprima.analysis.influence import prompt_influence
from allaprima.analysis.pairs import AnalyzedPairs, Observation
from allaprima.analysis.plots import PANELS, diversity_panels
from allaprima.analysis.report import Section, scales_of
from allaprima.cascade.request import GenerationRequest
from allaprima.core.errors import AllaprimaError, ModelError
from allaprima.evaluation.dreamsim import DreamSimType
from allaprima.evaluation.lpips import LPIPSType
from allaprima.experiments.scorers import scorers_for
from allaprima.features.load import load_features
from allaprima.features.module import Features
from allaprima.models.components.attention import content_tokens
from allaprima.pipeline import AdaptivePipeline

Column = Callable[[str, str, Callable[[slice], Tensor]], np.ndarray]
"""Name, identity and measure of a slice of the pairs -> `(N,)`."""
SIDES = ("student", "teacher")
OBSERVERS: dict[str, Callable[[AnalyzedPairs], Observation]] = {
    "distance": distance.observe, "complexity": complexity.observe, "length": prompts.observe_length,
    "influence": prompts.observe_influence, "curvature": curvature.observe, "decisions": decisions.observe,
    "simulated": decisions.observe_simulated,
}  # fmt: skip
TITLES = {
    "complexity": "Image complexity", "length": "Prompt length", "influence": "Prompt influence",
    "curvature": "Trajectory curvature", "diversity": "Diversity over seeds",
}  # fmt: skip


@dataclass
class AnalysisMeasures:
    """What there is to measure, and with what."""

    pipe: AdaptivePipeline
    wanted: Sequence[str]
    prompts: Sequence[str]
    requests: Sequence[GenerationRequest]
    painted: dict[str, Tensor]
    missing: dict[str, str]
    """Why a measure can't be taken; grows."""
    features: str
    icnet: Path | None
    tie: float

    def texts(self, here: slice) -> list[str]:
        """Prompts of a slice."""
        return [r.prompt for r in self.requests[here]]


def sections_of(m: AnalysisMeasures, column: Column) -> tuple[AnalyzedPairs, list[Section]]:
    """Every measure that was asked for, with its figures."""
    columns: dict[str, np.ndarray] = {}
    labels: dict[str, str] = {}
    net = load_features(m.features)
    _distances(m, column, columns, labels, net)
    truth = _scores(m, column, columns, labels)
    _complexity(m, column, columns, labels)
    trajectories = _trajectories(m, columns, labels)
    _prompts(m, columns, labels)
    places = {p: i for i, p in enumerate(m.prompts)}
    gap = columns[f"{truth}_student"] - columns[f"{truth}_teacher"]
    pairs = AnalyzedPairs(
        m.prompts, np.array([places[r.prompt] for r in m.requests]), np.array([r.seed for r in m.requests]), columns, labels,
        m.painted["student"], m.painted["teacher"], truth, m.tie * float(gap.std()), trajectories,
    )  # fmt: skip
    return pairs, [_section(key, m, pairs, net) for key in _keys(m)]


def _keys(m: AnalysisMeasures) -> list[str]:
    keys = [k for k in m.wanted if k != "lpips"]
    if "decisions" in keys:
        keys.insert(keys.index("decisions") + 1, "simulated")
    return keys


def _section(key: str, m: AnalysisMeasures, pairs: AnalyzedPairs, net: Features) -> Section:
    if key in m.missing:
        return Section(Observation(key, TITLES.get(key, key), "", missing=m.missing[key]))
    if key == "diversity":
        if len(m.requests) < 2 * len(m.prompts):
            why = "there is one seed a prompt: give --seeds 2 or more."
            return Section(Observation(key, TITLES[key], "", missing=why))
        values = diversity.diversities(pairs, net)
        return Section(diversity.observe(values, f"cosine distance of {net.name} features"), diversity_panels(values))
    seen = OBSERVERS[key](pairs)
    return Section(seen) if seen.missing else Section(seen, PANELS[key](pairs, seen), scales_of(pairs, key))


def _distances(
    m: AnalysisMeasures, column: Column, columns: dict[str, np.ndarray], labels: dict[str, str], net: Features
) -> None:
    student, teacher = m.painted["student"], m.painted["teacher"]

    def between(metric: Any) -> Callable[[slice], Tensor]:
        return lambda here: metric.score(student[here].float() / 255, [], teacher[here].float() / 255)

    main = DreamSimType(net)
    columns["distance"] = column("distance", main.name + net.fingerprint, between(main))
    stand = "" if main.name == "dreamsim" else " (a stand-in for DreamSim, with other weights)"
    labels["distance"] = f"{main.name}, cosine distance at 224 pixels{stand}"
    if "lpips" in m.wanted:
        second = LPIPSType(None)
        columns["lpips"] = column("lpips", second.name + second.features.fingerprint, between(second))
        labels["lpips"] = f"{second.name}, uniform weights: not LPIPS's own"


def _scores(m: AnalysisMeasures, column: Column, columns: dict[str, np.ndarray], labels: dict[str, str]) -> str:
    """Oracle's and judge's scores of both sides; returns who tells what is preferred."""
    scorers = scorers_for(m.pipe, m.prompts, None)
    names = [measure.name for measure in scorers.measures]
    for side in SIDES:
        for name in names:
            images = m.painted[side]

            def measure(here: slice, images: Tensor = images, name: str = name) -> Tensor:
                return scorers.score_images(images[here], m.texts(here))[name]

            columns[f"{name}_{side}"] = column(f"{name}-{side}", scorers.signature, measure)
    oracle = getattr(m.pipe.oracle, "name", "oracle")
    labels["oracle"] = f"the card's oracle ({oracle})"
    if "judge" in names:
        labels["judge"] = "the card's judge, a network that decides nothing"
        return "judge"
    return "oracle"


def _complexity(m: AnalysisMeasures, column: Column, columns: dict[str, np.ndarray], labels: dict[str, str]) -> None:
    if "complexity" not in m.wanted:
        return
    kinds: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
        "edges": ("edges", complexity.EDGES, complexity.edge_density),
        "complexity": ("bits", complexity.BITS, complexity.compressed_bits),
    }
    if m.icnet is not None:
        kinds["complexity"] = (str(m.icnet), f"ICNet, by {m.icnet.name}", complexity.from_onnx(m.icnet))
    for name, (identity, label, measure) in kinds.items():
        labels[name] = label
        for side in SIDES:
            images = m.painted[side]
            columns[f"{name}_{side}"] = column(
                f"{name}-{side}", identity, lambda here, images=images, measure=measure: measure(images[here])
            )


def _trajectories(m: AnalysisMeasures, columns: dict[str, np.ndarray], labels: dict[str, str]) -> Trajectories | None:
    if "curvature" not in m.wanted or "curvature" in m.missing:
        return None
    p = m.painted
    paths = Trajectories(p["gram"].numpy(), p["student_times"].numpy(), p["teacher_times"].numpy())
    if len(paths.teacher_times) < 3:
        m.missing["curvature"] = f"the teacher takes {len(paths.teacher_times)} steps: 3 or more make a bend."
        return None
    columns["curvature_student"], columns["curvature_teacher"] = paths.student(), paths.teacher()
    chord = paths.chord()
    columns["bend_teacher"] = np.divide(paths.teacher(), chord, out=np.zeros_like(chord), where=chord > 0)
    labels["curvature"] = "largest distance of a denoised prediction to the chord, in the latents' units"
    return paths


def _prompts(m: AnalysisMeasures, columns: dict[str, np.ndarray], labels: dict[str, str]) -> None:
    texts = [r.prompt for r in m.requests]
    if "length" in m.wanted:
        count: Any = getattr(m.pipe.student, "token_count", None)
        by_tokens = None if count is None else {t: max(count(t) - 2, 0) for t in m.prompts}
        columns["length"] = np.array([len(t.split()) if by_tokens is None else by_tokens[t] for t in texts], dtype=float)
        labels["length"] = "words (the models show no tokenizer)" if by_tokens is None else "tokens without begin and end"
    if "influence" not in m.wanted or "influence" in m.missing:
        return
    for side in SIDES:
        attention = m.painted.get(f"{side}_attention")
        if attention is None:
            continue
        try:
            words = content_tokens(getattr(m.pipe, side), texts)
            if words.shape != attention.shape:
                raise ModelError(f"the network reads {attention.shape[1]} tokens, the tokenizer makes {words.shape[1]}.")
            columns[f"influence_{side}"] = prompt_influence(attention, words).numpy()
        except AllaprimaError as e:
            m.missing["influence"] = str(e)
            return
    labels["influence"] = (
        "cross-attention of the conditional half, mean over layers, steps, heads and places, largest over the prompt's"
        " tokens"
    )
