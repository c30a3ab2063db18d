"""Masked edits with the Restart solver: outside the mask, latents carry the noise of the time that a restart returns to."""

import torch

from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import AlwaysPolicy, Decision
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.runner import run
from allaprima.conditioning.edit import Edit, ImageInput
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from tests.toys import SETTINGS, VP, Grey, Toy

SIDE = 4


class Recorder(Toy):
    """A toy that reads pictures as their mean grey and records the latents and times its network is given."""

    def __init__(self):
        super().__init__()
        self.calls = []

    @property
    def denoiser(self):
        def x0(x_t, t, cond):
            self.calls.append((float(t[0]), x_t[0].clone()))
            return torch.full_like(x_t, 0.8)

        x0.evaluations_per_call = 1
        return ClassifierFreeGuidance(x0)

    def encode_images(self, images):
        return images.mean(1, keepdim=True)


def test_latents_outside_the_mask_have_the_noise_level_of_every_step_of_a_restart():
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 1:3, 1:3] = 1
    picture = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    settings = SETTINGS.changed(
        height=SIDE, width=SIDE, teacher_guidance=1, teacher_steps=12, teacher_solver="restart", batch_size=1
    )
    teacher = Recorder()
    cascade = LatentCascade(Recorder(), teacher, Grey(), AlwaysPolicy(Decision.REGENERATE), settings)
    edit = Edit(ImageInput.of(picture), 1.0, ImageInput.of(mask))
    (result,) = run(cascade, [GenerationRequest("0.8", 7, edit=edit)])
    assert result.error is None

    times = [t for t, _ in teacher.calls]
    assert any(later > earlier for earlier, later in zip(times, times[1:], strict=False)), "the plan holds a restart"
    source = picture.mean(0, keepdim=True).double()
    noise = noise_batch([7], "initial", [0], (1, SIDE, SIDE))[0].double()
    outside = mask == 0
    # The first call is pure noise everywhere; from the second on, the kept part follows the forward process.
    for t, x_t in teacher.calls[1:]:
        at = torch.tensor([t], dtype=torch.float64)
        expected = VP.alpha(at) * source + VP.sigma(at) * noise
        assert torch.allclose(x_t.double()[outside], expected[outside], atol=1e-5), f"at t={t}"
