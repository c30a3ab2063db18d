"""Words nobody trained on are painted as what a person would expect, and known words stay what they are."""

from pathlib import Path

import pytest
import torch

from allaprima.bundled.emoji.keywords import MAX_SHARE, keywords_of, plain
from allaprima.conditioning.vocabulary import Vocabulary
from allaprima.core.errors import ModelError
from allaprima.models.cards.card import load_card

BAR, HELD_OUT_BAR = 0.85, 0.78
CARD = load_card("emoji")


def everyday() -> list[tuple[str, set[str]]]:
    lines = (Path(__file__).parent / "everyday_words.txt").read_text().splitlines()
    pairs = [line.split(": ") for line in lines if not line.startswith("#")]
    return [(word, set(concepts.split(" | "))) for word, concepts in pairs]


@pytest.fixture(scope="module")
def encode(pipe):
    """The bundled text encoder, remembering: each text is encoded once in this file, and the many in batches."""
    known: dict[str, torch.Tensor] = {}

    def remembering(texts):
        new = [t for t in dict.fromkeys(texts) if t not in known]
        for i in range(0, len(new), 64):
            known.update(zip(new[i : i + 64], pipe.student.encode(new[i : i + 64]), strict=True))
        return torch.stack([known[t] for t in texts])

    remembering([word for word, _ in everyday()])
    return remembering


@pytest.fixture(scope="module")
def vocabulary(encode):
    return Vocabulary(CARD.known_concepts(), CARD.styles, encode, CARD.known_keywords())


def hits(vocabulary: Vocabulary) -> list[bool]:
    return [vocabulary.word(f"{w}, noto").painted.removesuffix(", noto") in ok for w, ok in everyday()]


def test_the_list_is_fair():
    known, words = set(CARD.known_concepts()), everyday()
    assert len(words) == len({w for w, _ in words}) == 145
    for word, concepts in words:
        assert word not in known
        assert concepts <= known, word


def test_everyday_words_find_their_concept(vocabulary):
    found = hits(vocabulary)
    assert sum(found) / len(found) >= BAR
    assert sum(found[1::2]) / len(found[1::2]) >= HELD_OUT_BAR


def test_names_alone_do_not_reach_the_bar(encode):
    """The bar tells the methods apart: without keywords, and all the more by similarity of names alone, it is missed."""
    bare = Vocabulary(CARD.known_concepts(), CARD.styles, encode)
    found = hits(bare)
    assert sum(found) / len(found) < BAR - 0.15
    names = bare._mean(bare.concepts)
    old = [bare.concepts[int((names @ bare._mean([w])[0]).argmax())] in ok for w, ok in everyday()]
    assert sum(old) / len(old) < BAR - 0.2


@pytest.mark.parametrize(
    ("asked", "painted"),
    [
        ("a space ship, noto", "rocket, noto"),
        ("kitten, fluent 3d", "cat, fluent 3d"),
        ("UFO", "flying saucer, noto"),
        ("two puppies, twemoji", "dog face, twemoji"),
        ("a happy dog, noto", "dog, noto"),
        ("a fox in a tent, noto", "fox, noto"),
        ("a slice of pizza, noto", "pizza, noto"),
        ("dogs, noto", "dog, noto"),
        ("the honey, noto", "honey pot, noto"),
        ("a fire truck, noto", "fire engine, noto"),
    ],
)
def test_moved(vocabulary, asked, painted):
    word = vocabulary.word(asked)
    assert word.painted == painted
    assert word.asked == asked
    assert word.similarity < 1


@pytest.mark.parametrize(
    ("asked", "painted"),
    [("red apple, noto", "red apple, noto"), ("The Red Apple, Noto", "red apple, noto"), ("a T-shirt", "t shirt, noto")],
)
def test_known_concepts_stay_whatever_their_spelling(vocabulary, asked, painted):
    assert vocabulary.word(asked).painted == painted
    assert vocabulary.word(asked).similarity == 1


def test_every_concept_is_painted_as_itself_without_the_encoder():
    def never(texts):
        raise AssertionError(f"encoded {texts}")

    vocabulary = Vocabulary(CARD.known_concepts(), CARD.styles, never, CARD.known_keywords())
    for concept in CARD.known_concepts():
        assert vocabulary.word(f"{concept}, twemoji").painted == f"{concept}, twemoji"


def letters(texts):
    """A stand-in encoder: counts of letters, one token."""
    return torch.tensor([[[1.0 + t.count(c) for c in "abcdefghijklmnopqrstuvwxyz"]] for t in texts])


def test_of_several_holders_the_nearest_is_taken_and_ties_fall_the_same_way():
    vocabulary = Vocabulary(["zzzz", "pets", "qqqq"], [], letters, {"zzzz": ["step"], "pets": ["step"], "qqqq": ["other"]})
    assert vocabulary.word("step").painted == "pets"
    assert vocabulary.word("step") == vocabulary.word("step")
    assert vocabulary.word("others").painted == "qqqq"


def test_plurals_spellings_and_heads_need_no_meaning():
    concepts = ["Old-World Owl", "books", "cherries", "axe", "zzz", "yyy"]
    words = {"zzz": ["cherry", "space ship"]}
    vocabulary = Vocabulary(concepts, [], letters, words)
    for asked, painted in {
        "the old world owl": "Old-World Owl",
        "book": "books",
        "cherry": "cherries",
        "axes": "axe",
        "spaceships": "zzz",
        "a rusty axe in books": "axe",
        "a pile of books": "books",
    }.items():
        assert vocabulary.word(asked).painted == painted, asked
    assert vocabulary.word("the old world owl").similarity == 1
    assert vocabulary._candidates("book") == ["books"]


def test_a_card_that_knows_nothing_changes_nothing():
    assert Vocabulary([], [], letters).word("A castle, at night").painted == "A castle, at night"
    assert Vocabulary(["cat"], [], letters).word("???").painted == "cat"  # nothing to read: the nearest of all


def test_the_bundled_keywords_follow_their_rules():
    keywords = CARD.known_keywords()
    assert list(keywords) == CARD.known_concepts()
    shared = [k for words in keywords.values() for k in set(words)]
    assert max(shared.count(k) for k in set(shared)) <= MAX_SHARE
    assert all(k == plain(k) for k in shared)
    assert keywords_of(keywords) == keywords


def test_a_keyword_file_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "concepts.txt").write_text("cat\ndog\n")
    card = CARD.model_copy(update={"folder": tmp_path, "knows": "concepts.txt", "keywords": "k.txt"})
    with pytest.raises(ModelError, match=r"k\.txt.*cannot be read"):
        card.known_keywords()
    (tmp_path / "k.txt").write_text("# made\ncat: kitten, tom\ndog:\n")
    assert card.known_keywords() == {"cat": ["kitten", "tom"], "dog": []}
    for wrong in ("cow: bull\n", "cat kitten\n"):
        (tmp_path / "k.txt").write_text(wrong)
        with pytest.raises(ModelError, match=r"known concept and a colon.*concepts\.txt"):
            card.known_keywords()
    assert card.model_copy(update={"keywords": None}).known_keywords() == {}


def test_keywords_are_cleaned_and_the_shared_ones_dropped():
    words = {"cat": ["Cat", "KITTEN", "kitten", "cat2", "x", "pet", "vicuña"], "dog": ["pet", "hot-dog"], "cow": ["pet"]}
    assert keywords_of(words, max_share=2) == {"cat": ["kitten", "vicuna"], "dog": ["hot dog"], "cow": []}
    assert keywords_of(words, max_share=3)["cow"] == ["pet"]
