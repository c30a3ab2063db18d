"""Fine-tuning an oracle: a tiny scorer reaches the best any scorer can; held-out prompts stay out; resume is exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from allaprima.core.errors import SettingError, TrainingError
from allaprima.distill.labels import Gains, PreferencePairs
from allaprima.distill.loop import LoopConfig
from allaprima.distill.oracle_finetune import FinetuneConfig, finetune, split_prompts

TRUTH = torch.diag(torch.tensor([6.0, -4.0, 2.0]))
CONFIG = FinetuneConfig(
    LoopConfig(200, 64, 0.1, warmup_steps=1, weight_decay=0.0, emas={"use": 0.9}),
    held_out=0.25,
    evaluate_every=20,
    patience=9,
)
PROMPTS = 120


@pytest.fixture(autouse=True)
def one_thread():
    """These tensors are tiny: on a busy machine a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Bilinear(nn.Module):
    """`colour^T M text`: what is good depends on the prompt."""

    def __init__(self, m=None):
        super().__init__()
        self.m = nn.Parameter(torch.zeros(3, 3) if m is None else m.clone())

    def forward(self, images, hidden):
        return (images.mean((2, 3)) @ self.m * hidden[:, 0]).sum(1)


def encode(prompts):
    return torch.tensor([[float(v) for v in p.split()] for p in prompts])[:, None]


def prompts(n, g):
    some = [" ".join(f"{v:.4f}" for v in torch.randn(3, generator=g)) for _ in range(PROMPTS)]
    return [some[i % PROMPTS] for i in range(n)]


def pairs(n=2400, flip=False, shuffle=False):
    g = torch.Generator().manual_seed(1)
    a, b, text = torch.rand(n, 3, 2, 2, generator=g), torch.rand(n, 3, 2, 2, generator=g), prompts(n, g)
    truth, hidden = Bilinear(TRUTH), encode(text)
    p = torch.sigmoid(truth(a, hidden) - truth(b, hidden)).detach()
    preference = (torch.rand(n, generator=g) < p).float()
    preference[::10] = 0.5
    if shuffle:
        preference = preference[torch.randperm(n, generator=g)]
    return PreferencePairs.of(a, b, 1 - preference if flip else preference, text, encode), torch.maximum(p, 1 - p)


def gains(n=1200):
    g = torch.Generator().manual_seed(2)
    x, text = torch.rand(n, 3, 2, 2, generator=g), prompts(n, g)
    gain = -Bilinear(TRUTH)(x, encode(text)).detach() + torch.randn(n, generator=g)
    return Gains.of(x, gain, text, encode)


def test_pairs_teach_the_scorer_as_much_as_can_be_known(tmp_path):
    labels, best = pairs()
    model = Bilinear()
    report = finetune(model, labels, CONFIG, tmp_path, {})
    held_out = split_prompts(labels.prompt, 0.25, 0).report
    bayes = labels.agreement(Bilinear(TRUTH), held_out)
    assert report.before.accuracy == 0.5  # zero weights: every pair is tied
    assert report.after.accuracy > bayes.accuracy - 0.02
    assert report.after.accuracy == pytest.approx(float(best[held_out].mean()), abs=0.04)
    assert report.after.low > 0.6
    assert report.prompts == {"train": 60, "stop": 30, "report": 30}
    assert report.after == labels.agreement(model, held_out)
    assert (tmp_path / "report.json").exists()


@pytest.mark.parametrize("quantile", [None, 0.5])
def test_gains_teach_the_order_of_drafts_across_prompts(quantile, tmp_path):
    labels = replace(gains(), quantile=quantile)
    model = Bilinear()
    report = finetune(model, labels, CONFIG, tmp_path, {})
    bayes = labels.agreement(Bilinear(TRUTH), split_prompts(labels.prompt, 0.25, 0).report)
    assert bayes.accuracy > 0.7
    assert report.after.accuracy > bayes.accuracy - 0.01
    images, text = labels.drafts, labels.hidden[labels.prompt]
    found, truth = (m(images, text).detach() for m in (model, Bilinear(TRUTH)))
    # The gain itself, not only its order.
    assert float((found - truth).square().mean() / truth.square().mean()) < 0.1


def test_flipped_labels_teach_the_opposite_and_shuffled_ones_nothing(tmp_path):
    true, _ = pairs()
    rows = split_prompts(true.prompt, 0.25, 0).report
    bayes = true.agreement(Bilinear(TRUTH), rows).accuracy
    model = Bilinear()
    finetune(model, pairs(flip=True)[0], CONFIG, tmp_path / "flipped", {})
    assert true.agreement(model, rows).accuracy < 1 - bayes + 0.03
    report = finetune(Bilinear(), pairs(shuffle=True)[0], CONFIG, tmp_path / "shuffled", {})
    assert report.after.low < 0.5 < report.after.high


def test_held_out_prompts_never_teach(tmp_path):
    labels, _ = pairs(600)
    split = split_prompts(labels.prompt, 0.25, 0)
    groups = [set(labels.prompt[rows].tolist()) for rows in vars(split).values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == PROMPTS
    assert sorted(torch.cat(list(vars(split).values())).tolist()) == list(range(600))
    seen = set()

    class Recorded(PreferencePairs):
        def loss(self, model, rows):
            seen.update(self.prompt[rows].tolist())
            return super().loss(model, rows)

    short = replace(CONFIG, loop=replace(CONFIG.loop, max_train_steps=60))
    finetune(Bilinear(), Recorded(**vars(labels)), short, tmp_path, {})
    assert seen == groups[0]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    labels, _ = pairs(600)
    often = replace(CONFIG, loop=replace(CONFIG.loop, checkpoint_seconds=0.0, max_train_steps=20), evaluate_every=4)
    whole, resumed = Bilinear(), Bilinear()
    report = finetune(whole, labels, often, tmp_path / "a", {})

    class Killed(Exception):
        pass

    class Mortal(PreferencePairs):
        calls = 0

        def loss(self, model, rows):
            Mortal.calls += 1
            if Mortal.calls == 15:
                raise Killed
            return super().loss(model, rows)

    with pytest.raises(Killed):
        finetune(Bilinear(), Mortal(**vars(labels)), often, tmp_path / "b", {})
    assert report.steps == 20, "the last step is looked at"
    # A look past the checkpoint, as a run killed between the two leaves it, is forgotten.
    with (tmp_path / "b" / "looks.csv").open("a") as f:
        f.write("17,0.99\n")
    assert finetune(resumed, labels, often, tmp_path / "b", {}) == report
    assert torch.equal(whole.m, resumed.m)
    assert (tmp_path / "a" / "looks.csv").read_text() == (tmp_path / "b" / "looks.csv").read_text()
    with pytest.raises(TrainingError, match=r"recipe\.start"):
        finetune(Bilinear(TRUTH), labels, often, tmp_path / "b", {})


def test_it_stops_when_nothing_improves_and_keeps_the_start(tmp_path):
    labels, _ = pairs(600)
    # What is taught is wrong; what is held out is right without noise, and so is the start: nothing can be better.
    text, truth = labels.hidden[labels.prompt], Bilinear(TRUTH)
    labels.preference.copy_((truth(labels.a, text) > truth(labels.b, text)).float())
    taught = split_prompts(labels.prompt, 0.25, 0).train
    labels.preference[taught] = 1 - labels.preference[taught]
    impatient = replace(CONFIG, evaluate_every=5, patience=3)
    model = Bilinear(TRUTH)
    report = finetune(model, labels, impatient, tmp_path, {})
    assert (report.best_step, report.steps) == (0, 15)
    assert torch.equal(model.m.detach(), TRUTH)
    assert report.before == report.after
    assert report.after.accuracy == report.stop_after == 1.0
    looks = (tmp_path / "looks.csv").read_text()
    assert finetune(Bilinear(TRUTH), labels, impatient, tmp_path, {}) == report, "a finished run takes no further step"
    assert (tmp_path / "looks.csv").read_text() == looks


def test_agreement_counts_pairs_by_hand():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 1, 1) / 4

    class First(nn.Module):
        def forward(self, images, hidden):
            return images[:, 0, 0, 0]

    hidden = torch.zeros(2, 1, 1)
    two = PreferencePairs(
        images, images[[1, 1, 0, 3]], torch.tensor([0.0, 0.5, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]), hidden
    )
    # Pair 0 right, pair 1 has no preference, pair 2 wrong, pair 3 scored equal.
    found = two.agreement(First(), torch.arange(4))
    assert (found.accuracy, found.pairs) == (0.5, 3)
    # Scores rise: pairs of drafts are right where the gain falls; (0, 1) is tied in gain.
    four = Gains(images, torch.tensor([2.0, 2.0, 3.0, 0.0]), torch.tensor([0, 0, 1, 1]), hidden)
    found = four.agreement(First(), torch.arange(4))
    assert (found.accuracy, found.pairs) == (3 / 5, 5)
    with pytest.raises(SettingError, match="no pair"):
        two.agreement(First(), torch.tensor([1]))


@pytest.mark.parametrize("kind", ["pairs", "gains"])
def test_the_interval_covers_when_prompts_differ(kind):
    class First(nn.Module):
        def forward(self, images, hidden):
            return images[:, 0, 0, 0].float()

    truth, covered, rounds = {"pairs": 0.65, "gains": 0.75}[kind], 0, 60
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        prompt = torch.arange(30).repeat_interleave(4)
        score = torch.tensor(rng.normal(size=120), dtype=torch.float64)[:, None, None, None].expand(-1, 3, 1, 1)
        hidden = torch.zeros(30, 1, 1)
        if kind == "pairs":
            right = np.repeat(rng.random(30) < truth, 4)  # a prompt is right or wrong as a whole
            a, b = score.abs() + 1, -score.abs()
            labels = PreferencePairs(a, b, torch.tensor(right).float(), prompt, hidden)
        else:
            # Correlated with the score by r: P(concordant) = 1/2 + asin(r) / pi, so .75 at r = sqrt(1/2).
            gain = -(score[:, 0, 0, 0] + torch.tensor(rng.normal(size=120)))
            labels = Gains(score, gain, prompt, hidden)
        found = labels.agreement(First(), torch.arange(120))
        covered += found.low <= truth <= found.high
    assert 0.85 <= covered / rounds <= 1.0


def test_bad_labels_are_named():
    x = torch.zeros(2, 3, 1, 1)
    with pytest.raises(SettingError, match="preferences from"):
        PreferencePairs.of(x, x, torch.tensor([0.0, 2.0]), ["1 1 1"] * 2, encode)
    with pytest.raises(SettingError, match="2 prompts for"):
        Gains.of(x, torch.zeros(3), ["1 1 1"] * 2, encode)
    with pytest.raises(SettingError, match="1 gains are no finite"):
        Gains.of(x, torch.tensor([0.0, torch.nan]), ["1 1 1"] * 2, encode)
    with pytest.raises(SettingError, match="quantile=1"):
        Gains.of(x, torch.zeros(2), ["1 1 1"] * 2, encode, 1)
    with pytest.raises(SettingError, match="leaves a part empty"):
        split_prompts(torch.tensor([0, 1, 2]), 0.5, 0)
