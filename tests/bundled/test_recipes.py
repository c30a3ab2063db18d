"""Parts of the recipes that can be wrong in silence: what damage does, what a deeper decoder starts as."""

import torch

from allaprima.bundled.emoji.autoencoder import deepen, gradient_l1
from allaprima.bundled.emoji.judge import augment, damage
from allaprima.bundled.emoji.oracle import fidelity
from allaprima.models.autoencoder import PixelShuffleAutoencoder


def pictures(n):
    """Coloured discs on white, not in the middle."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    inside = [((x - 0.1 * i) ** 2 + y**2 < 0.4).float() for i in range(n)]
    return torch.stack([1 - m * torch.tensor([0.2, 0.5 + 0.1 * i, 0.9])[:, None, None] for i, m in enumerate(inside)])


def test_a_deeper_decoder_begins_as_the_one_it_came_from():
    torch.manual_seed(0)
    start = PixelShuffleAutoencoder()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        z = start.encode(x).latent
        deep = deepen(start, 5)
        assert torch.equal(deep.encode(x).latent, z)
        assert torch.allclose(deep.decode(z).sample, start.decode(z).sample, atol=1e-5)
        assert len(deep.dec) == len(start.dec) + 2


def test_gradient_l1_sees_edges_not_brightness():
    a = torch.zeros(1, 3, 8, 8)
    assert float(gradient_l1(a + 0.3, a)) < 1e-6
    edge = a.clone()
    edge[..., 4:] = 1
    assert float(gradient_l1(edge, a)) > 0.1


def test_damage_hurts_more_than_augmentation():
    x, g = pictures(4).repeat(25, 1, 1, 1), torch.Generator().manual_seed(0)
    hurt = fidelity(damage(x, x.roll(1, 0), g), x)
    kept = fidelity(augment(x, g), x)
    assert float(hurt.mean()) < float(kept.mean())
    assert float(augment(x, g).min()) >= 0
    assert float(augment(x, g).max()) <= 1
    assert float(fidelity(x, x).min()) == 1
