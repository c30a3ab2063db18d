"""Edits, masks, pictures that control and several students in the engine: to the byte what they are offline."""

import math
import random

import pytest
import torch
from conformance import alone, check, play, random_cases, same
from toys import SETTINGS, Grey, Toy

from allaprima.cascade.policy import AlwaysPolicy, Decision, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.conditioning.edit import Edit, ImageInput
from allaprima.core.errors import SettingError
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.engine import Engine
from allaprima.serving.handle import EngineRequest
from allaprima.serving.queue import EngineLimits

SIDE = SETTINGS.height
REFINE, REGENERATE, CAREFUL = SETTINGS, SETTINGS.changed(strategy="regenerate"), SETTINGS.changed(batch_size=3)
POLICIES = (
    ThresholdPolicy(0.5),
    ThresholdPolicy(0.5, Decision.REGENERATE),
    SequentialPolicy(0.55, 2, margin=math.inf),
    AlwaysPolicy(Decision.ACCEPT),
    AlwaysPolicy(Decision.REGENERATE),
)


class Reader(Toy):
    """Can be given pictures."""

    def encode_images(self, images):
        return images.mean(1, keepdim=True)


class Netted(Reader):
    """With two ControlNets, of pictures of 3 and 4 channels: what is painted moves towards them, as much as they say."""

    controls = (3, 4)

    @property
    def denoiser(self):
        inner = super().denoiser.denoiser

        def x0(x_t, t, cond: Condition):
            tensors, scales = cond.tensors, cond.tensors["control_scale"]
            towards = sum(scales[:, k, None, None, None] * tensors[f"control_{k}"].mean(1, keepdim=True) for k in range(2))
            return inner(x_t, t, cond) + 0.1 * towards

        x0.evaluations_per_call = 1
        return ClassifierFreeGuidance(x0)


class Several(Reader):
    """Three students, each with its own grey; which one paints follows from the prompt."""

    students = 3

    def route(self, embeds):
        return (embeds[:, 0, 0] * 10).round().long() % 3

    @property
    def denoiser(self):
        inner = super().denoiser

        def x0(x_t, t, cond):
            mine = self.route(cond.tensors["prompt_embeds"])
            assert len(set(mine.tolist())) == 1, "a batch is one student's"
            return inner(x_t, t, cond) + 0.05 * mine[:, None, None, None]

        x0.evaluations_per_call = inner.evaluations_per_call
        x0.unguided = x0
        return x0


def picture(dice, channels=3):
    return ImageInput.of(torch.tensor([dice.random() for _ in range(channels * SIDE * SIDE)]).view(channels, SIDE, SIDE))


def edit_of(dice):
    """A picture and a strength; with a mask one time in two."""
    if dice.random() < 0.3:
        return None
    mask = torch.tensor([[[1.0, 0.0], [dice.choice((0.0, 0.5, 1.0)), 1.0]]]) if dice.random() < 0.5 else None
    strength = dice.choice((0.3, 0.5, 0.9)) if mask is None else dice.choice((0.5, 1.0))
    return Edit(picture(dice), strength, None if mask is None else ImageInput.of(mask))


def given(cases, seed, nets=False):
    """The same cases, with pictures of their own beside their prompts."""
    dice = random.Random(seed)
    for case in cases:
        for i, asked in enumerate(case.requests):
            more = {"edit": edit_of(dice)}
            if nets:
                more["controls"] = (picture(dice), picture(dice, 4))
                more["control_scales"] = dice.choice(((), (1.0, 0.5), (0.0, 2.0)))
            request = GenerationRequest(**{**vars(asked.request), **more})
            case.requests[i] = EngineRequest(request, asked.settings, asked.policy, asked.priority, None, asked.client)
    return cases


def pipe(student, teacher):
    return AdaptivePipeline(student, teacher, Grey(), SETTINGS)


PAIRS = {
    "edits": lambda: pipe(Reader(pinch=0.2), Reader(0.3, pinch=0.2)),
    "nets": lambda: pipe(Netted(pinch=0.2), Netted(0.3, pinch=0.2)),
    "students": lambda: pipe(Several(pinch=0.2), Reader(0.3, pinch=0.2)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_among_random_neighbours_each_is_what_it_is_alone(kind):
    prompts = [f"{k / 20}" for k in range(21)]
    cases = random_cases(50, 3, settings=(REFINE, REGENERATE, CAREFUL), policies=POLICIES, prompts=prompts)
    cases = given(cases, 4, kind == "nets")
    engine = Engine(PAIRS[kind](), EngineLimits(queue=20, in_flight=11))
    engine.start()
    outcomes = play(engine, cases)
    now = engine.snapshot()
    engine.stop()
    seen = check(PAIRS[kind](), cases, outcomes)
    assert seen["Finished"] > 30
    assert (now.queued, now.in_flight, now.held_bytes) == (0, {}, 0)
    assert max(now.fill.values()) < 1, "and some batches were padded"


def refused(made, request, settings=SETTINGS):
    engine = Engine(made)
    with pytest.raises(SettingError) as e:
        engine.submit([EngineRequest(request, settings, POLICIES[0])])
    assert engine.snapshot().accepted == 0
    engine.stop()
    return str(e.value)


def test_what_these_models_cannot_do_is_refused_by_name_before_it_is_queued():
    dice = random.Random(1)
    edit, controls = Edit(picture(dice), 0.5), (picture(dice), picture(dice, 4))
    plain = pipe(Toy(), Toy(0.3))
    assert "no encode_images" in refused(plain, GenerationRequest("0.1", 1, edit=edit))
    assert "2 control pictures" in refused(plain, GenerationRequest("0.1", 1, controls=controls))
    nets = PAIRS["nets"]()
    assert "0 control pictures" in refused(nets, GenerationRequest("0.1", 1))
    assert "1 scales" in refused(nets, GenerationRequest("0.1", 1, controls=controls, control_scales=(1.0,)))
    assert "4 channel(s)" in refused(nets, GenerationRequest("0.1", 1, controls=controls[::-1]))
    large = ImageInput.of(torch.zeros(3, SIDE * 2, SIDE))
    assert "doesn't fit" in refused(PAIRS["edits"](), GenerationRequest("0.1", 1, edit=Edit(large, 0.5)))


def test_pictures_that_wait_are_counted_and_let_go():
    dice = random.Random(2)
    engine = Engine(PAIRS["nets"]())
    request = GenerationRequest("0.1", 1, edit=Edit(picture(dice), 0.5), controls=(picture(dice), picture(dice, 4)))
    (handle,) = engine.submit([EngineRequest(request, SETTINGS, POLICIES[0])])
    assert engine.snapshot().held_bytes >= (3 + 3 + 3) * SIDE * SIDE * 4
    engine.start()
    same(handle.result(20), alone(PAIRS["nets"](), handle.request))
    assert engine.drain(10)
    assert engine.snapshot().held_bytes == 0
    engine.stop()


def test_strengths_are_a_strangers_choice_and_take_no_room_for_ever():
    engine = Engine(PAIRS["edits"]())
    engine.start()
    image = picture(random.Random(3))
    for k in range(200):
        (handle,) = engine.submit(
            [EngineRequest(GenerationRequest("0.1", k, edit=Edit(image, 0.2 + k / 1000)), REGENERATE, POLICIES[4])]
        )
        handle.result(10)
    (loaded,) = engine._cascades._loaded.values()
    engine.stop()
    assert len(loaded.cascade._edits) <= 64
