"""Scenes: grammar, renderer and exact judge against each other, and what plain English becomes."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from allaprima.bundled.scenes import geometry, grammar, renderer
from allaprima.bundled.scenes import judge as judging
from allaprima.bundled.scenes.grammar import (
    KINDS,
    MOST_OBJECTS,
    PAIRS,
    RELATIONS,
    UNSEEN_PAIRS,
    Group,
    Scene,
    altered,
    benchmark_scenes,
    draw_scene,
    draw_training_scene,
    validation_scenes,
)
from allaprima.bundled.scenes.judge import FAULTS, detect, judge
from allaprima.bundled.scenes.reading import nearest, read
from allaprima.bundled.scenes.renderer import draw_layout, render, render_scene, training_pair, training_stream
from allaprima.core.errors import PromptError
from allaprima.data.grammars import canonical_prompt
from benchmarks.scenes_judge import shows

SEEDS = st.integers(0, 2**32)


def scene_of(seed, kind=None):
    return draw_scene(random.Random(seed), kind, PAIRS)


def right_share(pairs, change=lambda image: image):
    return np.mean([judge(change(image), scene).right for scene, image in pairs])


@pytest.fixture(scope="module")
def pairs():
    return [training_pair(7, i) for i in range(300)]


@given(SEEDS)
def test_a_caption_reads_as_the_scene_that_wrote_it(seed):
    scene = scene_of(seed)
    assert scene.is_well_formed()
    assert read(scene.caption()) == scene
    assert nearest(scene.caption()) == scene.caption()
    assert scene.kind in KINDS


@given(SEEDS)
@settings(max_examples=60)
def test_a_rendering_is_right_and_what_is_detected_is_what_was_drawn(seed):
    rng = random.Random(seed)
    scene = draw_scene(rng, pairs=PAIRS)
    layout = draw_layout(scene, rng)
    verdict = judge(render(layout, rng.uniform(-0.03, 0.03)), scene)
    assert verdict.right
    assert verdict.fault is None
    assert len(verdict.objects) == len(layout)
    for drawn in layout:
        seen = min(verdict.objects, key=lambda o: abs(o.y - drawn.y) + abs(o.x - drawn.x))
        assert (seen.shape, seen.colour) == (drawn.shape, drawn.colour)
        # A triangle's centre of mass lies below the middle of its circle.
        assert abs(seen.y - drawn.y) < 2
        assert abs(seen.x - drawn.x) < 0.6


@given(SEEDS)
@settings(max_examples=80)
def test_a_caption_altered_in_one_thing_is_wrong_unless_its_relation_holds_too(seed):
    rng = random.Random(seed)
    scene = draw_training_scene(rng)
    other = altered(scene, rng)
    assert other is not None
    layout = draw_layout(scene, rng)
    verdict = judge(render(layout), other)
    if verdict.right:
        assert shows(layout, other), f"{other.caption()!r} was called right for {layout}"
    else:
        assert verdict.fault in FAULTS


def test_the_judge_bears_bytes_noise_and_a_little_blur(pairs):
    noise = np.random.default_rng(0)
    assert right_share(pairs) == 1
    assert right_share(pairs, lambda x: np.round(x * 255) / 255) == 1
    assert right_share(pairs, lambda x: np.clip(x + noise.normal(0, 0.05, x.shape), 0, 1)) >= 0.99
    assert right_share(pairs, lambda x: ndimage.gaussian_filter(x, (0.4, 0.4, 0))) >= 0.99
    assert right_share(pairs, lambda x: ndimage.gaussian_filter(x, (1.5, 1.5, 0))) < 0.5


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("two red circles", "count"),
        ("a blue circle", "colour"),
        ("a red square", "shape"),
        ("a red circle", None),
    ],
)
def test_the_judge_says_what_is_wrong(prompt, fault):
    image = render_scene(read("a red circle"), random.Random(0))
    assert judge(image, read(prompt)).fault == fault


def test_the_judge_sees_relations_malformed_objects_and_specks():
    image = render_scene(read("a red circle left of a blue star"), random.Random(1))
    assert judge(image, read("a red circle left of a blue star")).right
    assert judge(image, read("a red circle right of a blue star")).fault == "relation"
    assert judge(image, read("a red star and a blue circle")).fault == "colour"
    broken = render_scene(read("a red circle"), random.Random(2))
    box = detect(broken)[0][0].box
    broken[box[1] : (box[1] + box[3]) // 2] = broken[0, 0]  # the upper half is erased
    assert judge(broken, read("a red circle")).fault == "malformed"
    grey = np.full((64, 64, 3), 0.5, np.float32)
    assert judge(grey, read("a red circle")).fault == "malformed"
    with pytest.raises(ValueError, match="64, 64, 3"):
        judge(np.zeros((32, 32, 3)), read("a red circle"))


@pytest.mark.parametrize("shape", geometry.SHAPES)
def test_a_broken_template_is_noticed(shape, monkeypatch, pairs):
    """The judge's own templates are what it reads by: one that draws another shape makes renderings wrong."""
    other = geometry.SHAPES[geometry.SHAPES.index(shape) - 1]
    window_at = judging.window_at
    monkeypatch.setattr(judging, "window_at", lambda s, *rest: window_at(other if s == shape else s, *rest))
    shown = [(scene, image) for scene, image in pairs if any(g.shape == shape for g in scene.groups)]
    assert right_share(shown) < 0.2


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_of_the_wrong_sign_is_noticed(relation, monkeypatch, pairs):
    shown = [(scene, image) for scene, image in pairs if scene.relation == relation]
    assert right_share(shown) == 1
    dx, dy = RELATIONS[relation]
    monkeypatch.setitem(judging.RELATIONS, relation, (-dx, -dy))
    assert right_share(shown) == 0


def test_the_stream_is_the_same_from_any_start_and_has_nothing_that_is_held_out():
    first = [training_pair(3, i) for i in range(5, 9)]
    for (scene, image), (again, same) in zip(first, training_stream(3, 5), strict=False):
        assert scene == again
        assert np.array_equal(image, same)
    assert not np.array_equal(first[0][1], training_pair(4, 5)[1])
    drawn = [training_pair(3, i)[0] for i in range(400)]
    assert not any(scene.has_unseen_pair or scene.is_held_out for scene in drawn)
    assert {scene.kind for scene in drawn} == set(KINDS)


def test_a_mixture_has_its_shares_and_nothing_that_is_held_out():
    drawn = [training_pair(3, i, "relations")[0] for i in range(400)]
    assert 0.6 < np.mean([scene.relation is not None for scene in drawn]) < 0.9
    assert not any(scene.has_unseen_pair or scene.is_held_out for scene in drawn)
    for shares, relations in grammar.MIXTURES.values():
        assert sum(shares) == pytest.approx(1)
        assert len(relations) == len(RELATIONS)


def test_renderings_never_show_an_unseen_pair():
    for i in range(300):
        rng = random.Random(i)
        layout = draw_layout(draw_training_scene(rng), rng)
        assert not {(o.colour, o.shape) for o in layout} & UNSEEN_PAIRS


def test_benchmark_and_validation_scenes_are_held_out_and_apart():
    test, validation = benchmark_scenes(), validation_scenes(200)
    assert Counter(scene.kind for scene in test) == dict.fromkeys(KINDS, 100)
    many = ("bind", "position", "three", "combo")
    for scene in (*test, *validation):
        assert scene.kind not in many or scene.is_held_out or scene.has_unseen_pair
    assert 0.15 < np.mean([scene.has_unseen_pair for scene in test]) < 0.35
    assert not {s.caption() for s in test if s.kind in many} & {s.caption() for s in validation if s.kind in many}


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("two red circles left of a blue star", "two red circles left of a blue star"),
        ("2 red circles to the left of one blue star", "two red circles left of a blue star"),
        ("There are two red circles on the left of a blue star.", "two red circles left of a blue star"),
        ("a star and 2 green squares", "a star and two green squares"),
        ("A photo of a red circle", "a red circle"),
        ("please draw three hearts", "three hearts"),
        ("Orange circle", "an orange circle"),
        ("a red circle, a blue star, and a heart", "a red circle, a blue star and a heart"),
        ("a red circle and a red circle", "two red circles"),
        ("a pair of stars over a pink heart", "two stars above a pink heart"),
        ("the red square is on top of the green star", "a red square above a green star"),
        ("two circle", "two circles"),
    ],
)
def test_plain_english_is_read(prompt, caption):
    assert read(prompt).caption() == caption
    assert canonical_prompt("scenes", prompt) == caption


@pytest.mark.parametrize(
    ("prompt", "reason", "near"),
    [
        ("", "empty", "a red circle"),
        ("ten thousand red circles", "'ten' is no number", "four red circles"),
        ("10000 circles", "'10000' is no number", "four circles"),
        ("five stars and a circle", "'five' is no number", "three stars and a circle"),
        ("a grey circle", "'grey' is no colour", "a black circle"),
        ("a redd cirlce", "'redd' is no colour", "a red circle"),
        ("a red circle next to a blue star", "'next' is no relation", "a red circle and a blue star"),
        ("a circle and a red circle", "can't be told apart", "a circle"),
        ("red circles", "how many circles", "two red circles"),
        ("two red", "says no shape", "two red circles"),
        ("a circle above", "nothing follows 'above'", "a circle"),
        ("a red circle left of a blue star and a heart", "there are more", "a red circle left of a blue star"),
        ("a red blue circle", "one colour", "a blue circle"),
        ("a red box", "'box'", "a red square"),
        ("x" * 2000, "2000 characters", "a red circle"),
    ],
)
def test_what_is_no_scene_is_refused_with_the_nearest(prompt, reason, near):
    with pytest.raises(PromptError) as e:
        read(prompt)
    assert reason in str(e.value)
    assert repr(near) in str(e.value)
    assert len(str(e.value)) < 600


@given(st.text(max_size=80))
@settings(max_examples=300)
def test_any_text_is_read_or_refused_with_a_sentence_that_is_read(text):
    found = nearest(text)
    assert read(found).caption() == found
    try:
        assert read(text).is_well_formed()
    except PromptError as e:
        assert repr(found) in str(e)


VOCABULARY = [*grammar.words(), "2", "5", "and", "over", "next", "grey", "box", "the", "is", "to", "pair", "of"]


@given(st.lists(st.sampled_from(VOCABULARY), max_size=14))
@settings(max_examples=400)
def test_any_words_of_the_field_are_read_or_refused_with_a_sentence_that_is_read(words):
    text = " ".join(words)
    found = nearest(text)
    assert read(found).caption() == found
    try:
        scene = read(text)
    except PromptError as e:
        assert repr(found) in str(e)
    else:
        assert scene.is_well_formed()
        assert scene.objects <= MOST_OBJECTS


def test_groups_that_one_object_could_belong_to_make_no_scene():
    assert not Scene((Group(1, None, "circle"), Group(1, "red", "circle"))).is_well_formed()
    assert Scene((Group(1, "blue", "circle"), Group(1, "red", "circle"))).is_well_formed()
    assert not Scene((Group(3, "blue", "circle"), Group(2, "red", "circle"))).is_well_formed()


def test_an_object_stays_in_its_cell():
    for shape in geometry.SHAPES:
        for radius in geometry.RADII[shape]:
            for y in (-renderer.JITTER[0], renderer.JITTER[-1]):
                window, rows, columns = geometry.window_at(shape, radius, 24 + y, 24 + y)
                drawn = np.argwhere(window > 0.02)
                assert (drawn[:, 0] + rows.start).min() >= 16
                assert (drawn[:, 0] + rows.start).max() < 32
                assert (drawn[:, 1] + columns.start).min() >= 16
                assert (drawn[:, 1] + columns.start).max() < 32
