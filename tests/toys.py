"""A pair and an oracle with known answers, for tests of what stands on the cascade."""

import torch

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.diffusion.noising import Variance
from allaprima.diffusion.schedules import DiscreteVP
from allaprima.models.diffusion_model import DiffusionModel

VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=3, student_guidance=2, teacher_guidance=2, batch_size=4, height=2, width=2,
    sigma=Variance(0.5),
)  # fmt: skip


class Toy(DiffusionModel):
    """Paints a grey per prompt ('0.3' -> .3 + its own bias + a pinch of noise); its text states are (1, 1)."""

    schedule = VP

    def __init__(self, bias=0.0, pinch=0.05):
        self.bias, self.pinch = bias, pinch

    @property
    def denoiser(self):
        def x0(x_t, t, cond: Condition):
            # Half of it: the tests guide with scale 2, away from the empty prompt's 0.
            return cond.tensors["prompt_embeds"][..., None].expand_as(x_t) / 2 + self.bias + self.pinch * x_t

        x0.evaluations_per_call = 1
        return ClassifierFreeGuidance(x0)

    def latent_shape(self, height, width):
        return (1, height, width)

    def check_prompt(self, prompt):
        pass

    def condition(self, prompts):
        return Condition({"prompt_embeds": self.encode(prompts)})

    def encode(self, prompts):
        return torch.tensor([[[float(p or 0)]] for p in prompts])

    def decode(self, latents):
        return latents.expand(-1, 3, -1, -1).clamp(0, 1)


class Grey:
    """Scores by the mean, times `sign`; raises for prompts in `broken`."""

    def __init__(self, sign=1.0, broken=()):
        self.sign, self.broken = sign, broken

    def score(self, images, prompts):
        if any(p in self.broken for p in prompts):
            raise RuntimeError("no such weights")
        return self.sign * images.mean((1, 2, 3))
