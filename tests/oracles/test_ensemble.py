"""Ensembles: scales against scipy, batch independence to the bit, and what the fingerprint covers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from allaprima.core.errors import CalibrationError, SettingError
from allaprima.oracles.ensemble import EnsembleOracle, Member, Rank, Raw, Standard


class Brightness:
    """Scores a picture by a power of its brightness, and a prompt by its length."""

    def __init__(self, power=1.0, cost=0.1):
        self.power, self.name, self.fingerprint, self.cost = power, "brightness", f"brightness-{power}", cost

    def score(self, images, prompts):
        return images.mean((1, 2, 3)) ** self.power + torch.tensor([len(p) / 10 for p in prompts])


A, B = Brightness(), Brightness(3.0, 0.3)
G = torch.Generator().manual_seed(0)
IMAGES, PROMPTS = torch.rand(17, 3, 4, 4, generator=G), ["a" * (i % 5) for i in range(17)]
HELD_OUT = np.random.default_rng(0).uniform(0, 1.5, 200).round(2).tolist()


def test_the_mean_is_weighted_and_scaled():
    ensemble = EnsembleOracle([Member(A, 1.0), Member(B, 3.0, Standard(0.5, 0.25))])
    a, b = A.score(IMAGES, PROMPTS).double(), B.score(IMAGES, PROMPTS).double()
    assert torch.allclose(ensemble.score(IMAGES, PROMPTS), 0.25 * a + 0.75 * (b - 0.5) / 0.25)
    assert ensemble.cost == pytest.approx(0.4)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=30))
def test_a_rank_is_scipys_at_the_references(values):
    rank = Rank.of([float(v) for v in values])
    mine = rank(np.asarray(values, dtype=float))
    assert mine == pytest.approx(np.array([stats.percentileofscore(values, v, "mean") / 100 for v in values]))
    assert rank(np.array([-6.0, 6.0])).tolist() == [0.0, 1.0]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20), st.floats(-12, 12), st.floats(-12, 12))
def test_ranks_keep_the_order(values, a, b):
    low, high = Rank.of(values)(np.array(sorted((a, b))))
    assert low <= high


def test_standard_scores_are_scipys():
    assert Standard.of(HELD_OUT)(np.asarray(HELD_OUT)) == pytest.approx(stats.zscore(HELD_OUT))


@pytest.mark.parametrize("scale", [Raw(), Standard.of(HELD_OUT), Rank.of(HELD_OUT)])
def test_a_score_does_not_depend_on_its_batch(scale):
    ensemble = EnsembleOracle([Member(A, 2.0, scale), Member(B, 1.0, scale)])
    together = ensemble.score(IMAGES, PROMPTS)
    alone = torch.cat([ensemble.score(x[None], [p]) for x, p in zip(IMAGES, PROMPTS, strict=True)])
    # The member itself is allowed its last bits: torch's mean of one picture may add in another order than of many.
    assert torch.allclose(together, alone, rtol=0, atol=1e-6)
    stretched = ensemble.score(torch.cat([IMAGES, IMAGES * 0]), PROMPTS * 2)[: len(IMAGES)]
    assert torch.allclose(together, stretched, rtol=0, atol=1e-6)


def test_the_fingerprint_covers_members_weights_and_scales():
    prints = [
        EnsembleOracle(members).fingerprint
        for members in (
            [Member(A), Member(B)],
            [Member(A), Member(Brightness(2.0))],
            [Member(A, 2.0), Member(B)],
            [Member(A, 1.0, Standard(0, 1)), Member(B)],
            [Member(A, 1.0, Standard(0, 2)), Member(B)],
            [Member(A, 1.0, Rank((0.0, 1.0))), Member(B)],
            [Member(A, 1.0, Rank((0.0, 2.0))), Member(B)],
        )
    ]
    assert len(set(prints)) == len(prints)
    # Only the weights' ratio means anything.
    assert EnsembleOracle([Member(A, 5.0), Member(B, 5.0)]).fingerprint == prints[0]


def test_saved_and_loaded_with_the_same_members(tmp_path):
    ensemble = EnsembleOracle([Member(A, 2.0, Rank.of(HELD_OUT)), Member(B, 1.0, Standard(0.1, 2)), Member(A)], "three")
    ensemble.save(tmp_path / "e.json")
    again = EnsembleOracle.load(tmp_path / "e.json", [B, A])
    assert (again.fingerprint, again.name, again.cost) == (ensemble.fingerprint, "three", ensemble.cost)
    assert torch.equal(again.score(IMAGES, PROMPTS), ensemble.score(IMAGES, PROMPTS))
    with pytest.raises(CalibrationError, match=r"brightness-3\.0"):
        EnsembleOracle.load(tmp_path / "e.json", [A, Brightness(2.0)])
    (tmp_path / "broken.json").write_text('{"members": [{"scale": "log", "weight": 1, "fingerprint": "x"}]}')
    for name in ("broken.json", "absent.json"):
        with pytest.raises(CalibrationError, match="cannot be read"):
            EnsembleOracle.load(tmp_path / name, [A])


def test_bad_members_are_named():
    for members in ([], [Member(A, 0.0)], [Member(A, float("nan"))]):
        with pytest.raises(SettingError, match="weight"):
            EnsembleOracle(members)
    with pytest.raises(SettingError, match="deviation"):
        Standard.of([1.0, 1.0])
    with pytest.raises(SettingError, match="at least 2"):
        Rank.of([1.0, float("nan")])
