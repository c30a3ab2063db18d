"""Tokenizers that two threads call at once."""

import copy
import json
import pickle
import sys
import threading

import pytest

from allaprima.models.cards.card import load_card
from allaprima.models.components.loading import load_tokenizer


@pytest.fixture
def tokenizer():
    card = load_card("emoji")
    return load_tokenizer(card.path(card.teacher.source) / "tokenizer")


def padded(tokenizer):
    return tokenizer(["panda, noto"], padding="max_length", max_length=16, truncation=True).input_ids


def test_another_threads_padding_is_never_taken(tokenizer):
    due, counted, stop, odd = padded(tokenizer), len(tokenizer("a panda in the rain").input_ids), threading.Event(), []

    def count():
        while not stop.is_set():
            odd.extend(n for n in [len(tokenizer("a panda in the rain").input_ids)] if n != counted)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        thread = threading.Thread(target=count)
        thread.start()
        odd += [found for found in (padded(tokenizer) for _ in range(1500)) if found != due]
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join()
    assert odd == []


def through_pickle(tokenizer):
    return pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 (our own)


@pytest.mark.parametrize("again", [copy.deepcopy, through_pickle])
def test_a_copy_is_of_the_same_kind(tokenizer, again):
    other = again(tokenizer)
    assert type(other) is type(tokenizer)
    assert other is not tokenizer
    assert padded(other) == padded(tokenizer)


def test_its_folder_names_the_class_that_transformers_knows(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert said == type(tokenizer).__mro__[1].__name__
    assert padded(load_tokenizer(tmp_path)) == padded(tokenizer)
