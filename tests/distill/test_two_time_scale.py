"""The two time-scales: who steps when, exact resume, what a bad number does, and where a learned fake score leads."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from allaprima.core.errors import SettingError, TrainingError
from allaprima.core.types import Condition
from allaprima.diffusion.mixture import MixtureDenoiser
from allaprima.diffusion.schedules import DiscreteVP
from allaprima.diffusion.solvers.consistency import Consistency
from allaprima.distill.distribution_matching import Adversary, DistributionMatching, NoiseImagePairs, Regression
from allaprima.distill.generators import RenoisedChain
from allaprima.distill.loop import LoopConfig, train
from allaprima.distill.losses.adversarial import DiscriminatorHead
from allaprima.distill.two_time_scale import TwoTimeScaleConfig, train_two_time_scale

VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
MEAN, STD, D = 0.7, 0.5, 16
CONFIG = TwoTimeScaleConfig(
    LoopConfig(
        max_train_steps=12, train_batch_size=8, learning_rate=0.02, warmup_steps=1, weight_decay=0.0, emas={"use": 0.9},
        log_every=2,
    ),
    generator_every=3,
)  # fmt: skip


class Affine(nn.Module):
    """The generator: `x = mean + std x_t`, whatever t."""

    def __init__(self, mean=-1.0, std=0.1):
        super().__init__()
        self.mean, self.std = (nn.Parameter(torch.tensor(v)) for v in (mean, std))

    def forward(self, x_t, t, cond):
        return self.mean + self.std * x_t


class GaussianScore(nn.Module):
    """The fake score: the exact denoiser of a Gaussian whose mean and spread are learned."""

    def __init__(self, mean=MEAN, std=STD):
        super().__init__()
        self.mean, self.log_std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std).log())

    def forward(self, x_t, t, cond):
        a, s = (v.float()[:, None] for v in (VP.alpha(t), VP.sigma(t)))
        var = (2 * self.log_std).exp()
        return self.mean + a * var / (a**2 * var + s**2) * (x_t - a * self.mean)


def nobody(n, g):
    return Condition({"prompt": torch.zeros(n, 1)})


TEACHER = MixtureDenoiser(VP, torch.full((1, D), MEAN), torch.tensor([STD]))


def data(n, g):
    return TEACHER.sample(n, g).float(), nobody(n, g)


def bottleneck(network, x_t, t, cond):
    # The fake score's own clean prediction is the feature, so that its weights hear the head.
    mu = network(x_t, t, cond)
    return torch.cat([mu, mu**2], 1)[..., None, None]


def method(**more):
    return DistributionMatching(
        VP, lambda net: net, TEACHER, nobody, (D,),
        **{"batch": CONFIG.loop.train_batch_size, "chain": RenoisedChain.one_step(VP), **more},
    )  # fmt: skip


def networks(head=False):
    torch.manual_seed(0)
    found = {"generator": Affine(), "fake_score": GaussianScore()}
    return {**found, "head": DiscriminatorHead(2 * D, hidden=16, groups=4)} if head else found


def weights(nets):
    return {f"{n}.{k}": v.clone() for n, net in nets.items() for k, v in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fit(nets, way, config, folder, generator_loss=None, critic_loss=None):
    return train_two_time_scale(
        nets, generator_loss or way.generator_loss, critic_loss or way.critic_loss, config, folder, {"name": "affine"}
    )


class Killed(Exception):
    pass


def dies_at(call, loss):
    calls = 0

    def dying(*args):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return loss(*args)

    return dying


FULL = {
    "one step": (False, {}),
    "with a head": (True, {"adversary": Adversary(data, bottleneck)}),
    "few steps with a head": (
        True, {"adversary": Adversary(data, bottleneck), "chain": RenoisedChain(VP, [999.0, 600.0, 200.0])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("death", [("generator", 3), ("critic", 3), ("critic", 8)], ids=lambda d: f"{d[0]} {d[1]}")
def test_a_resumed_training_equals_an_uninterrupted_one_to_the_bit(tmp_path, kind, death):
    head, more = FULL[kind]
    way = method(**more)
    whole, resumed = networks(head), networks(head)
    emas = fit(whole, way, CONFIG, tmp_path / "a")
    often = replace(CONFIG, loop=replace(CONFIG.loop, checkpoint_seconds=0.0))
    who, call = death
    losses = {f"{who}_loss": dies_at(call, getattr(way, f"{who}_loss"))}
    with pytest.raises(Killed):
        fit(networks(head), way, often, tmp_path / "b", **losses)
    emas_b = fit(resumed, way, often, tmp_path / "b")
    assert same(weights(whole), weights(resumed))
    assert same(weights(emas), weights(emas_b))
    assert not same(weights(whole), weights(networks(head)))
    curves = [[r.split(",") for r in (tmp_path / k / "curve.csv").read_text().splitlines()] for k in "ab"]
    assert curves[0][0] == ["step", "samples", "seconds", "critic_loss", "generator_loss", "lr"]
    # All but the seconds, the running losses included.
    assert [r[:2] + r[3:] for r in curves[0]] == [r[:2] + r[3:] for r in curves[1]]
    assert len(curves[0]) == 1 + CONFIG.loop.max_train_steps // CONFIG.loop.log_every


def test_the_critic_steps_every_time_and_the_generator_every_nth(tmp_path):
    way, seen = method(), []

    def spy(name, loss):
        def spied(nets, emas, g):
            seen.append((name, float(nets["generator"].std.detach()), float(nets["fake_score"].mean.detach())))
            return loss(nets, emas, g)

        return spied

    fit(networks(), way, CONFIG, tmp_path, spy("G", way.generator_loss), spy("F", way.critic_loss))
    assert "".join(s[0] for s in seen) == "FFGF" * 4
    critic = [s for s in seen if s[0] == "F"]
    assert len({s[2] for s in critic}) == 12  # moved every time
    assert len({s[1] for s in critic}) == 5  # its start, and once every third time


def test_nothing_of_the_generators_backward_pass_reaches_the_critics_step(tmp_path):
    """The adversarial loss runs through fake score and head; a critic that is taught nothing must stay as it was."""
    way = method(adversary=Adversary(data, bottleneck))
    nets, before = networks(head=True), weights(networks(head=True))
    # Gradients there are, from the generator's turn, and they are large enough to matter.
    heard = []
    nets["head"].stages[0].weight.register_hook(heard.append)

    def silent(nets, emas, g):
        return 0.0 * sum(p.sum() for n in ("fake_score", "head") for p in nets[n].parameters())

    fit(nets, way, CONFIG, tmp_path, critic_loss=silent)
    assert any(float(h.abs().max()) > 0 for h in heard)
    after = weights(nets)
    assert all(torch.equal(before[k], after[k]) for k in before if not k.startswith("generator"))
    assert not torch.equal(before["generator.mean"], after["generator.mean"])


def test_nothing_of_a_careless_critic_reaches_the_generator(tmp_path):
    way = method()

    def careless(nets, emas, g):
        x, _ = way.generate(nets["generator"], g)
        return x.square().mean() + 0.0 * nets["fake_score"].mean

    def silent(nets, emas, g):
        return 0.0 * (nets["generator"].mean + nets["generator"].std)

    nets = networks()
    fit(nets, way, CONFIG, tmp_path, silent, careless)
    assert same(weights(nets), weights(networks()))


@pytest.mark.parametrize("who", ["generator", "critic"])
@pytest.mark.parametrize("how", ["value", "gradient"])
def test_a_number_that_is_none_stops_the_training_before_any_weight_moves(tmp_path, who, how):
    way = method()
    nets = networks()
    at = {"generator": "step 2", "critic": "step 0"}[who]
    name = {"generator": "generator", "critic": "fake_score"}[who]

    def bad(nets, emas, g):
        p = nets[name].mean
        return p * float("nan") if how == "value" else (p - p.detach()).abs().sqrt()

    kept = []
    way_critic = way.critic_loss

    def critic(nets, emas, g):
        value = way_critic(nets, emas, g)
        kept.append(weights({"generator": nets["generator"]}))
        return value

    losses = {"generator_loss": bad, "critic_loss": critic} if who == "generator" else {"critic_loss": bad}
    with pytest.raises(TrainingError, match=f"{who}'s {at}"):
        fit(nets, way, CONFIG, tmp_path, **losses)
    assert all(bool(v.isfinite().all()) for v in weights(nets).values())
    if who == "generator":
        assert same(kept[-1], weights({"generator": nets["generator"]}))
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_other_time_scales_or_networks_do_not_resume(tmp_path):
    fit(networks(), method(), CONFIG, tmp_path)
    with pytest.raises(TrainingError, match=r"two_time_scale\.generator_every was 3, now 4"):
        fit(networks(), method(), replace(CONFIG, generator_every=4), tmp_path)
    with pytest.raises(TrainingError, match=r"two_time_scale\.networks"):
        fit(networks(head=True), method(), CONFIG, tmp_path)
    with pytest.raises(TrainingError, match="another recipe"):
        train(Affine(), lambda *_: torch.zeros(()), CONFIG.loop, tmp_path, {"name": "affine"})


def test_settings_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(SettingError, match="generator_every=0"):
        replace(CONFIG, generator_every=0)
    with pytest.raises(SettingError, match=r"fake_learning_rate=-1\.0"):
        replace(CONFIG, fake_learning_rate=-1.0)
    with pytest.raises(SettingError, match="'fake_score' are due"):
        fit({"generator": Affine()}, method(), CONFIG, tmp_path)
    with pytest.raises(SettingError, match="make no chain"):
        RenoisedChain(VP, [200.0, 600.0])
    with pytest.raises(SettingError, match="only for a one-step generator"):
        method(
            chain=RenoisedChain(VP, [999.0, 500.0]),
            regression=Regression(lambda n, g: NoiseImagePairs(*data(n, g), nobody(n, g))),
        )


# The generators.


def test_one_step_is_one_call_at_the_noisiest_time():
    asked = []

    def f(x, t, cond):
        asked.append(t)
        return 2 * x

    noise, g = torch.randn(3, D, generator=torch.Generator().manual_seed(0)), torch.Generator()
    assert torch.equal(RenoisedChain.one_step(VP)(f, noise, nobody(3, g), g), 2 * noise)
    assert [t.tolist() for t in asked] == [[999.0] * 3]


def test_the_gradient_of_a_chain_runs_through_its_last_jump_alone():
    chain, g = RenoisedChain(VP, [999.0, 600.0, 200.0]), torch.Generator()
    noise = torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    net = Affine(0.3, 0.8)
    entered = []

    def f(x, t, cond):
        entered.append(x)
        return net(x, t, cond)

    chain(f, noise, nobody(3, g), g.manual_seed(7)).sum().backward()
    assert len(entered) == 3
    assert not entered[-1].requires_grad
    # d/d std of sum(mean + std x_t) at the last jump's x_t; through all jumps it would be another number.
    assert torch.allclose(net.std.grad, entered[-1].sum(), rtol=1e-5)
    assert float(net.mean.grad) == 3 * D


def test_the_chain_in_training_is_the_sampler_in_use():
    solver, net, noise = Consistency(VP), Affine(0.3, 0.8), torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    plan = solver.timesteps(4)
    chain, g = RenoisedChain(VP, [p.t for p in plan]), torch.Generator()
    ours = chain(net, noise, nobody(3, g), g.manual_seed(7))
    x, g = noise, torch.Generator().manual_seed(7)
    for p in plan:
        t, s = (torch.full((3,), v, dtype=torch.float64) for v in (p.t, p.s))
        x0 = net(x, t, None)
        if p is not plan[-1]:
            x, _ = solver.step(x, x0, t, s, {}, torch.randn(3, D, generator=g))
    assert torch.equal(ours, x0)
    counts = [chain.draw(torch.Generator().manual_seed(i)) for i in range(200)]
    assert set(counts) == {1, 2, 3, 4}


# Where training leads.


def end_of(tmp_path, way, head=False, steps=240):
    nets = networks(head)
    loop = replace(CONFIG.loop, max_train_steps=steps, adam_beta2=0.9, learning_rate=0.06)
    fit(nets, way, replace(CONFIG, loop=loop, generator_every=3, fake_learning_rate=0.1, head_learning_rate=0.003), tmp_path)
    return nets["generator"].mean.item(), abs(nets["generator"].std.item())


def test_a_learned_fake_score_leads_an_affine_generator_to_the_data(tmp_path):
    assert end_of(tmp_path, method(batch=32)) == pytest.approx((MEAN, STD), abs=0.03)


@pytest.mark.slow
def test_an_adversary_does_not_move_the_fixed_point(tmp_path):
    way = method(batch=32, adversary=Adversary(data, bottleneck))
    assert end_of(tmp_path, way, head=True) == pytest.approx((MEAN, STD), abs=0.06)


def test_pairs_lead_there_too(tmp_path):
    def draw(n, g):
        noise = torch.randn(n, D, generator=g)
        return NoiseImagePairs(noise, MEAN + STD * noise, nobody(n, g))

    assert end_of(tmp_path, method(batch=32, regression=Regression(draw))) == pytest.approx((MEAN, STD), abs=0.03)


def test_a_fake_score_that_never_learns_leads_elsewhere(tmp_path):
    def nothing(nets, emas, g):
        return 0.0 * (nets["fake_score"].mean + nets["fake_score"].log_std)

    nets = {"generator": Affine(), "fake_score": GaussianScore(-1.0, 0.1)}
    loop = replace(CONFIG.loop, max_train_steps=150, learning_rate=0.03)
    fit(nets, method(batch=32), replace(CONFIG, loop=loop, generator_every=1), tmp_path, critic_loss=nothing)
    assert nets["generator"].mean.item() > MEAN + 0.5
