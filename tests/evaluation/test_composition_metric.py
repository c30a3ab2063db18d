"""The composition metric: shares by kind of pictures that are right, and who judges."""

import pytest
import torch

from allaprima.bundled.judges import load_composition_judge
from allaprima.bundled.scenes.grammar import KINDS
from allaprima.bundled.scenes.renderer import training_pair
from allaprima.core.errors import PromptError, SettingError
from allaprima.evaluation.composition import Composition, DetectorJudge
from allaprima.oracles.composition import CompositionPrompt, Detection


@pytest.fixture(scope="module")
def drawn():
    pairs = [training_pair(5, i) for i in range(120)]
    return [s for s, _ in pairs], torch.stack([torch.from_numpy(x).permute(2, 0, 1) for _, x in pairs])


def test_scenes_are_judged_exactly_and_told_by_kind(drawn):
    scenes, images = drawn
    metric = Composition(load_composition_judge("scenes"))
    captions = [s.caption() for s in scenes]
    metric.update(images[:60], captions[:60])
    # The other half shows other scenes.
    metric.update(images[60:], captions[61:] + captions[60:61])
    made = metric.compute()
    assert set(made.kinds) <= set(KINDS)
    assert made.per_picture[:60].all()
    assert made.per_picture[60:].mean() < 0.2
    assert made.value == made.per_picture.mean()
    by_kind = [made.per_picture[[k == kind for k in made.kinds]].mean() for kind in set(made.kinds)]
    assert made.more["mean over kinds"] == pytest.approx(sum(by_kind) / len(by_kind))


def test_a_detector_judges_by_the_prompts_requirements():
    class Played:
        name, fingerprint, min_confidence = "played", "p", 0.3

        def detect(self, images, names):
            return [[Detection("dog", (0, 0, 4, 4), float(x.max()))] for x in images]

    line = {"tag": "single_object", "prompt": "a photo of a dog", "include": [{"class": "dog", "count": 1}]}
    judge = DetectorJudge(Played(), {"a photo of a dog": CompositionPrompt.model_validate(line)})
    metric = Composition(judge)
    metric.update(torch.stack([torch.full((3, 8, 8), c) for c in (0.2, 0.8)]), ["a photo of a dog"] * 2)
    made = metric.compute()
    assert made.per_picture.tolist() == [0, 1]
    assert made.protocol["min_confidence"] == 0.3
    with pytest.raises(PromptError, match="is not among"):
        metric.update(torch.zeros(1, 3, 8, 8), ["a photo of a cat"])
    assert metric.protocol()["pictures"] == 2, "what can't be judged adds nothing"


def test_who_can_judge_nothing_says_what_is_missing(tmp_path):
    with pytest.raises(SettingError, match="--detector"):
        load_composition_judge("emoji")
    with pytest.raises(SettingError, match="--composition-prompts"):
        load_composition_judge("scenes", detector=tmp_path)
