"""`allaprima convert-oracle`: from a published checkpoint to an oracle that scores; what is missing is said."""

import pytest
import torch
from tiny_published import TINY_CLIP, clip_shapes, clip_tokenizer, random_weights

from allaprima.core.errors import SettingError
from allaprima.experiments.convert_oracle import convert_oracle_command
from allaprima.oracles.load import load_oracle


def test_a_checkpoint_becomes_an_oracle(tmp_path):
    clip_tokenizer(tmp_path / "words")
    torch.save({"state_dict": random_weights(clip_shapes(TINY_CLIP))}, tmp_path / "HPS.pt")
    convert_oracle_command("hpsv2", tmp_path / "HPS.pt", tmp_path / "out", tmp_path / "words", None, "gelu")
    assert load_oracle("hpsv2", tmp_path / "out").score(torch.rand(2, 3, 32, 32), ["owl", "cat"]).shape == (2,)
    assert not list((tmp_path / "out").glob("*.pt")) and not list((tmp_path / "out").glob("*.bin"))


@pytest.mark.parametrize(
    ("kind", "tokenizer", "clip", "activation", "said"),
    [
        ("mps", None, None, "gelu", "kind='mps' can't be converted: imagereward, hpsv2, clip, aesthetic"),
        ("pickscore", None, None, "gelu", "PickScore needs none"),
        ("imagereward", None, None, "gelu", "imagereward needs --tokenizer"),
        ("aesthetic", "t", "c", "gelu", "--tokenizer means nothing to aesthetic"),
        ("hpsv2", "t", None, "quick_gelu", "--activation means nothing to hpsv2"),
        ("clip", "t", None, "relu", "activation='relu'"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path, kind, tokenizer, clip, activation, said):
    given = [None if p is None else tmp_path / p for p in (tokenizer, clip)]
    with pytest.raises(SettingError, match=said):
        convert_oracle_command(kind, tmp_path / "w.pt", tmp_path / "out", *given, activation)
