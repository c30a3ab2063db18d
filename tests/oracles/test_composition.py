"""Composition: GenEval's requirements on boxes, on drawn scenes whose content is known, and OWLv2's published layout."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_published import clip_tokenizer

from allaprima.bundled.scenes.grammar import validation_scenes
from allaprima.bundled.scenes.judge import judge
from allaprima.bundled.scenes.renderer import training_pair
from allaprima.bundled.scenes.score import SceneDetector, composition_prompt
from allaprima.core.errors import ModelError, PromptError, SettingError
from allaprima.oracles.composition import (
    CompositionOracle,
    CompositionPrompt,
    Detection,
    composition_fault,
    read_composition_prompts,
    relations_between,
)
from allaprima.oracles.load import load_oracle

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "tie", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a tie",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "car", "count": 1, "color": "green"}, {"class": "cow", "count": 1, "color": "pink"}],
        "prompt": "a photo of a green car and a pink cow",
    },
]  # fmt: skip


def wanted(i):
    return CompositionPrompt.model_validate_json(json.dumps(LINES[i]))


def at(name, x, y, confidence=0.9, colour=None, half=10):
    return Detection(name, (x - half, y - half, x + half, y + half), confidence, colour)


@pytest.mark.parametrize(
    ("line", "found", "fault"),
    [
        (0, [at("bench", 0, 0)], None),
        (0, [at("bench", 0, 0, 0.3)], "expected 1 x bench, found 0"),
        (1, [at("clock", 0, 0), at("clock", 50, 0)], None),
        (1, [at("clock", 0, 0)], "expected 2 x clock, found 1"),
        (1, [at("clock", x, 0) for x in (0, 50, 90)], "expected fewer than 3 x clock, found 3"),
        (2, [at("tie", 0, 0), at("dog", 60, 0)], None),
        (2, [at("tie", 60, 0), at("dog", 0, 0)], "expected dog right of tie"),
        (2, [at("tie", 0, 0), at("dog", 0, 60)], "expected dog right of tie"),
        (2, [at("dog", 60, 0)], "expected 1 x tie, found 0"),
        (3, [at("car", 0, 0, colour="green"), at("cow", 0, 0, colour="pink")], None),
        (3, [at("car", 0, 0, colour="pink"), at("cow", 0, 0, colour="green")], "expected 1 x green car, found pink"),
        # The surest car is pink, whatever another is.
        (
            3,
            [at("car", 0, 0, 0.5, "green"), at("car", 90, 0, 0.8, "pink"), at("cow", 0, 0, colour="pink")],
            "expected 1 x green car, found pink",
        ),
    ],
)
def test_a_requirement_that_fails_is_named(line, found, fault):
    assert composition_fault(found, wanted(line), 0.3) == fault


def by_the_paper(box, other):
    """The rule of position as GenEval's code states it (djghosh13/geneval, evaluate_images.py), in numpy's words."""
    a, b = np.reshape(box, (2, 2)), np.reshape(other, (2, 2))
    offset = a.mean(0) - b.mean(0)
    shrunk = np.sign(offset) * np.clip(np.abs(offset) - 0.1 * (np.ptp(a, axis=0) + np.ptp(b, axis=0)), 0, None)
    if np.abs(shrunk).max() < 1e-3:
        return set()
    x, y = shrunk / math.hypot(*offset)
    return {w for w, so in (("left of", x < -0.5), ("right of", x > 0.5), ("above", y < -0.5), ("below", y > 0.5)) if so}


boxes = st.tuples(*[st.floats(0, 100)] * 2, *[st.floats(0.5, 60)] * 2).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(boxes, boxes)
def test_relations_are_genevals(box, other):
    assert relations_between(box, other) == by_the_paper(box, other)


@pytest.fixture(scope="module")
def drawn():
    """300 scenes of groups of different shapes and a picture of each, `(N, 3, 64, 64)`."""
    pairs = [training_pair(3, i) for i in range(500)]
    pairs = [(s, x) for s, x in pairs if len({g.shape for g in s.groups}) == len(s.groups)][:300]
    return [s for s, _ in pairs], torch.stack([torch.from_numpy(x).permute(2, 0, 1) for _, x in pairs])


def test_requirements_of_drawn_scenes_hold_and_of_others_do_not(drawn):
    scenes, images = drawn
    every = [[*{g.shape for s in scenes for g in s.groups}]] * len(scenes)
    found = SceneDetector().detect(images, every)
    faults = [composition_fault(d, composition_prompt(s), 0.5) for d, s in zip(found, scenes, strict=True)]
    # GenEval's relations are stricter than the scenes': a knight's move away is neither beside nor above.
    assert all(s.relation is not None for s, fault in zip(scenes, faults, strict=True) if fault is not None)
    assert sum(fault is None for fault in faults) > 0.9 * len(faults)
    others = scenes[1:] + scenes[:1]
    for image, d, other in zip(images, found, others, strict=True):
        if len({g.shape for g in other.groups}) == len(other.groups) and not judge(image.permute(1, 2, 0), other).right:
            assert composition_fault(d, composition_prompt(other), 0.5) is not None


def test_a_detector_scores_drafts_by_the_range_of_thresholds():
    class Played:
        name, fingerprint, min_confidence = "played", "p", 0.3

        def __init__(self, found):
            self.found = found

        def detect(self, images, names):
            assert names == [("clock",)] * len(images)
            return self.found

    prompts = {"a photo of two clocks": wanted(1)}
    found = [
        [at("clock", 0, 0, 0.9), at("clock", 50, 0, 0.8)],
        [at("clock", 0, 0, 0.9), at("clock", 50, 0, 0.8), at("clock", 90, 0, 0.3)],
        [at("clock", 0, 0, 0.9)],
    ]
    oracle = CompositionOracle(Played(found), prompts)
    scores = oracle.score(torch.zeros(3, 3, 8, 8), ["a photo of two clocks"] * 3)
    assert scores.tolist() == pytest.approx([0.8, 0.5, 0.0])
    with pytest.raises(PromptError, match="'a photo of a fox' is not among the 1 composition prompts"):
        oracle.score(torch.zeros(1, 3, 8, 8), ["a photo of a fox"])


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_genevals_file_is_read(tmp_path):
    prompts = read_composition_prompts(write(tmp_path / "evaluation_metadata.jsonl", LINES))
    assert [p.tag for p in prompts.values()] == ["single_object", "counting", "position", "color_attr"]
    assert prompts["a photo of two clocks"].names == ("clock",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: line: Invalid JSON"),
        ("[1]", "line 2: line: Input should be"),
        ('{"tag": "x", "prompt": "a"}', "line 2: include: Field required"),
        ('{"tag": "x", "prompt": "a", "include": []}', "line 2: include: Tuple should have at least 1"),
        ('{"tag": "x", "prompt": "a", "include": [{"class": "b", "count": 0}]}', "line 2: include.0.count"),
        ('{"tag": "x", "prompt": "a", "include": [{"class": "b", "count": 1, "color": "mauve"}]}', "color='mauve' is not"),
        ('{"tag": "x", "prompt": "a", "include": [{"class": "b", "count": 1, "position": ["near", 0]}]}', "position='near'"),
        (
            '{"tag": "x", "prompt": "a", "include": [{"class": "b", "count": 1, "position": ["above", 0]}]}',
            "refers to group 0 from group 0",
        ),
        ('{"tag": "x", "prompt": "a", "include": [{"class": "b", "count": 1, "size": 2}]}', "line 2: include.0.size"),
        ('{"tag": "x", "prompt": "a photo of a bench", "include": [{"class": "b", "count": 1}]}', "stands there twice"),
    ],
)
def test_a_line_that_means_nothing_is_named(tmp_path, line, message):
    file = write(tmp_path / "lines.jsonl", LINES[:1])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(PromptError, match=message.replace("[", r"\[")):
        read_composition_prompts(file)


def test_files_without_prompts_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PromptError, match="holds no prompts"):
        read_composition_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(PromptError, match="can't be read"):
        read_composition_prompts(tmp_path / "none.jsonl")


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory):
    """Tiny random weights in the published layout: 36 patches, a tokenizer of letters."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil

    folder = tmp_path_factory.mktemp("owlv2")
    clip_tokenizer(folder, length=16)
    text = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 59}
    config = Owlv2Config(
        text_config={**text, **marks, "max_position_embeddings": 16},
        vision_config={**vision, "image_size": 48, "patch_size": 8},
        projection_dim=32,
    )
    torch.manual_seed(0)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    write(folder / "evaluation_metadata.jsonl", LINES)
    return folder


def test_owlv2_finds_what_the_library_finds(owlv2):
    """Boxes and scores of the plain names are transformers' own post-processing's, in pixels of a wide image."""
    from transformers import AutoTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessorPil

    from allaprima.oracles.owlv2 import Owlv2Detector

    torch.manual_seed(1)
    images = torch.rand(2, 3, 40, 64)
    found = Owlv2Detector(owlv2).detect(images, [("cat",), ("owl", "red cat")])
    assert {d.name for d in found[0]} == {"cat"}
    assert {d.name for d in found[1]} == {"owl", "red cat"}
    model = Owlv2ForObjectDetection.from_pretrained(owlv2).eval()
    query = ["a photo of a cat"]
    tokens = AutoTokenizer.from_pretrained(owlv2)(query, padding="max_length", max_length=16, return_tensors="pt")
    pixels = (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    processor = Owlv2ImageProcessorPil.from_pretrained(owlv2)
    with torch.no_grad():
        out = model(**tokens, **processor(images=[pixels], return_tensors="pt"))
    (theirs,) = processor.post_process_object_detection(out, threshold=0.0, target_sizes=[(40, 64)])
    for d in found[0]:
        gap = (theirs["boxes"] - torch.tensor(d.box)).abs().amax(1) + (theirs["scores"] - d.confidence).abs()
        assert float(gap.min()) < 1e-3


def test_boxes_that_overlap_are_one_object(owlv2):
    from allaprima.oracles.owlv2 import _distinct

    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 4.0]])
    assert _distinct(boxes, torch.tensor([0.5, 0.9, 0.3, 0.2])) == [1, 2, 3]
    assert _distinct(boxes, torch.tensor([0.5, 0.9, 0.01, 0.01])) == [1]


def test_a_detector_is_a_cards_oracle(owlv2):
    oracle = load_oracle("composition", owlv2)
    scores = oracle.score(torch.rand(2, 3, 48, 48), ["a photo of a bench", "a photo of two clocks"])
    assert scores.shape == (2,)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    with pytest.raises(SettingError, match="prompts"):
        load_oracle("composition", owlv2, settings={"prompts": "../secrets.jsonl"})
    with pytest.raises(ModelError, match="is not a folder"):
        load_oracle("composition", owlv2.parent / "none")


def test_the_exact_judge_reads_validation_captions():
    """Requirements of every caption whose groups differ in shape can be written."""
    scenes = [s for s in validation_scenes() if len({g.shape for g in s.groups}) == len(s.groups)]
    assert all(composition_prompt(s).tag == s.kind for s in scenes)
