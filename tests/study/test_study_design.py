"""Pairs, sides, order and known answers of a study: all from one seed."""

from collections import Counter

import pytest
from PIL import Image
from study_pictures import run_folder

from allaprima.core.errors import SettingError
from allaprima.data.pictures import open_pictures
from allaprima.study.design import ImagePair, Rules, alike, matched, slots_of, with_bands
from allaprima.study.known_pairs import Counts, known_pairs
from allaprima.study.questions import DIVERSITY, PREFERENCE, question_set


@pytest.fixture
def sets(tmp_path):
    return {m: open_pictures(run_folder(tmp_path / m, m)) for m in ("student", "teacher", "third")}


def test_pairs_are_of_one_prompt_and_seed_and_every_two_methods_have_as_many(sets):
    pairs = matched(sets, None, 0)
    assert len(pairs) == 3 * 8
    assert Counter(p.methods for p in pairs) == {
        ("student", "teacher"): 8, ("student", "third"): 8, ("teacher", "third"): 8
    }  # fmt: skip
    for p in pairs:
        assert p.pictures[0].name == p.pictures[1].name
        assert tuple(x.parent.parent.name for x in p.pictures) == p.methods
    # Any beginning is balanced, too.
    assert set(Counter(p.methods for p in matched(sets, 9, 0)).values()) == {3}


def test_the_seed_draws_the_order(sets):
    assert matched(sets, None, 0) == matched(sets, None, 0)
    assert matched(sets, None, 0) != matched(sets, None, 1)


def test_only_pictures_with_a_partner_are_paired(tmp_path):
    sets = {
        "student": open_pictures(run_folder(tmp_path / "s", "student", prompts=5)),
        "teacher": open_pictures(run_folder(tmp_path / "t", "teacher", prompts=3)),
    }
    assert sorted(p.prompt for p in matched(sets, None, 0)) == ["thing 0, noto", "thing 1, noto", "thing 2, noto"]
    other = open_pictures(run_folder(tmp_path / "o", "third", first_seed=99))
    with pytest.raises(SettingError, match="no prompt and seed in common"):
        matched({"student": sets["student"], "third": other}, None, 0)
    with pytest.raises(SettingError, match="two or more"):
        matched({"student": sets["student"]}, None, 0)


@pytest.mark.parametrize(("n", "votes"), [(60, 3), (7, 2), (1, 1), (9, 3)])
def test_slots_have_balanced_overlap_and_sides(n, votes):
    pairs = [ImagePair("study", "p", 0, ("x", "y"), (None, None))] * n
    slots = slots_of(pairs, votes, 4)
    assert Counter(s.pair for s in slots) == dict.fromkeys(range(n), votes)
    assert [s.pair for s in slots] == sorted(s.pair for s in slots)
    left = Counter(s.left for s in slots)
    assert abs(left["a"] - left["b"]) <= 1
    for i in range(n):
        own = Counter(s.left for s in slots if s.pair == i)
        assert abs(own["a"] - own["b"]) <= 1
    if n > 8:
        # The first one is drawn: not always the same side, and not in turns.
        firsts = [s.left for s in slots[::votes]]
        assert firsts != firsts[:2] * (n // 2) and len({*firsts}) == 2


def test_pairs_of_one_method_for_diversity(tmp_path):
    sets = {m: open_pictures(run_folder(tmp_path / m, m, prompts=4, seeds=4)) for m in ("student", "teacher")}
    pairs = alike(sets, None, 0)
    assert Counter(p.methods for p in pairs) == {("student", "student"): 8, ("teacher", "teacher"): 8}
    used = [x for p in pairs for x in p.pictures]
    assert len(used) == len({*used})
    with pytest.raises(SettingError, match="images-per-prompt"):
        alike({"one": open_pictures(run_folder(tmp_path / "one", "third"))}, None, 0)


def test_known_pairs_have_the_answers_they_claim(sets, tmp_path):
    kept = []

    def save(image):
        kept.append(tmp_path / f"made{len(kept)}.png")
        image.save(kept[-1])
        return kept[-1]

    pairs = matched(sets, None, 0)
    made = known_pairs(pairs, PREFERENCE, Counts(3, 4, 8), save, 0)
    assert Counter(p.kind for p in made) == {"training": 3, "qualification": 4, "gold": 8}
    for p in made:
        best = p.expected["overall"]
        if best == "tie":
            assert p.pictures[0] == p.pictures[1] and p.kind != "gold"
            continue
        good, bad = p.pictures if best == "a" else p.pictures[::-1]
        shows = {q.pictures[i] for q in pairs if q.prompt == p.prompt for i in (0, 1)}
        assert good in shows
        assert bad in kept if "quality" in p.expected else bad not in shows
        if bad in kept:
            # Blurred: what the pictures had of edges is gone.
            assert _edge(bad) < 0.6 * _edge(good)
    answers = Counter(p.expected["overall"] for p in made if p.kind == "gold")
    assert answers["a"] == answers["b"] == 4
    other = known_pairs(pairs, DIVERSITY, Counts(2, 2, 2), save, 0)
    assert all(p.expected for p in other)


def _edge(path):
    from PIL import ImageChops

    with Image.open(path) as image:
        grey = image.convert("L")
    moved = ImageChops.offset(grey, 1, 0)
    return ImageChops.difference(grey, moved).crop((1, 0, *grey.size)).getextrema()[1]


def test_bands_are_fifths_of_the_distances():
    pairs = [ImagePair("study", "p", i, ("x", "y"), (None, None)) for i in range(11)]
    made = with_bands(pairs, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, None])
    assert [p.band for p in made] == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0, None]
    assert with_bands(pairs, [None] * 11) == pairs


def test_answers_are_checked():
    right = {"alignment": "a", "quality": "tie", "aesthetics": "b", "overall": "a"}
    assert list(PREFERENCE.check(right)) == ["alignment", "quality", "aesthetics", "overall"]
    for wrong in ({**right, "more": "a"}, {**right, "overall": "left"}, {"overall": "a"}, {**right, "quality": ["a"]}):
        with pytest.raises(SettingError):
            PREFERENCE.check(wrong)
    with pytest.raises(SettingError, match="preference"):
        question_set("colour")


@pytest.mark.parametrize(
    "wrong", [{"votes": 0}, {"pass_share": 2}, {"lease_minutes": 0}, {"stop_alpha": 1}, {"gold_every": -1}]
)
def test_rules_out_of_range_are_refused(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        Rules(**wrong)
