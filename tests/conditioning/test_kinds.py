"""Tasks by name: what they ask for, which net they take, and that they paint what the longer way paints."""

import pytest
import torch
from PIL import Image
from tiny_folders import SIZE, card

from allaprima.conditioning.task import enlarged
from allaprima.core.errors import SettingError
from allaprima.data.control_maps import HOLE, with_hole
from allaprima.data.images import as_tensor, to_pil
from allaprima.models.cards.card import ControlSource, load_card
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline, card_settings


def net_of(unet, folder, channels):
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8), conditioning_channels=channels)
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.2) if p.ndim > 1 else None
    net.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A card with nets for holes, few pixels and edges, and the same without."""
    folder = tmp_path_factory.mktemp("kinds")
    made = load_card(card("sd", folder))
    unet = load_pair(made).teacher.unet
    controls = {
        name: ControlSource(source=net_of(unet, folder / name, 4 if name == HOLE else 3), map=name, license="MIT")
        for name in ("canny", HOLE, "low-resolution")
    }
    return made.model_copy(update={"controls": controls}), made


def pipe_of(made, task="text-to-image"):
    pair = load_pair(made)
    return AdaptivePipeline(pair.student, pair.teacher, None, card_settings(made), None, made).for_task(task)


GIVEN = {"seed": 3, "mode": "teacher-only"}


def image(seed=0, size=SIZE):
    return as_tensor(to_pil(torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))))


def mask():
    made = torch.zeros(1, SIZE, SIZE)
    made[:, :, : SIZE // 2] = 1
    return made


def painted(out):
    return torch.stack([r.image for r in out.results])


def test_each_task_is_the_longer_way(world):
    full, plain = world
    given = {**GIVEN, "image": image(), "strength": 0.6}
    assert torch.equal(painted(pipe_of(full, "edit")("fox", **given)), painted(pipe_of(plain)("fox", **given)))
    hole = {"image": image(), "mask_image": mask()}
    blended = painted(pipe_of(plain, "inpaint")("fox", **GIVEN, **hole))
    assert torch.equal(blended, painted(pipe_of(plain)("fox", **GIVEN, **hole)))
    by_net = painted(pipe_of(full, "inpaint")("fox", **GIVEN, **hole))
    told = pipe_of(full).with_controlnets([HOLE])("fox", **GIVEN, control_image=with_hole(image(), mask()))
    assert torch.equal(by_net, painted(told))
    control = painted(pipe_of(full, "control")("fox", **GIVEN, control_image=image()))
    assert torch.equal(control, painted(pipe_of(full).with_controlnets(["canny"])("fox", **GIVEN, control_image=image())))


def test_small_pictures_are_enlarged_one_each(world):
    small = [to_pil(image(k, SIZE // 4)) for k in range(2)]
    out = pipe_of(world[0], "super-resolution")(["fox", "owl"], seed=[1, 2], mode="teacher-only", image=small)
    maps = [enlarged(i, (SIZE, SIZE)) for i in small]
    assert maps[0].shape == (3, SIZE, SIZE)
    told = pipe_of(world[0]).with_controlnets(["low-resolution"])
    same = told(["fox", "owl"], seed=[1, 2], mode="teacher-only", control_image=maps)
    assert torch.equal(painted(out), painted(same))
    assert enlarged(small[0].resize((SIZE, SIZE), Image.Resampling.BICUBIC), (SIZE, SIZE)).equal(maps[0])


@pytest.mark.parametrize(
    ("task", "given", "says"),
    [
        ("edit", {}, r"needs image="),
        ("inpaint", {"image": image()}, r"needs mask_image="),
        ("control", {}, r"needs control_image="),
        ("edit", {"image": image(), "mask_image": mask()}, r"takes no mask_image="),
        ("super-resolution", {"image": image(), "control_image": image()}, r"takes no control_image="),
        ("inpaint", {"image": [image()] * 2, "mask_image": [mask()] * 3}, r"2 pictures and 3 masks"),
    ],
)
def test_what_is_missing_or_too_much_is_named(world, task, given, says):
    with pytest.raises(SettingError, match=says):
        pipe_of(world[0], task)("fox", **GIVEN, **given)


def test_a_card_without_the_net_and_an_unknown_task_are_named(world):
    with pytest.raises(SettingError, match="no net for the map 'low-resolution'"):
        pipe_of(world[1], "super-resolution")
    with pytest.raises(SettingError, match="has no ControlNet"):
        pipe_of(world[1], "control")
    with pytest.raises(SettingError, match="task='outpaint' is not known"):
        pipe_of(world[0], "outpaint")
    pair = load_pair(world[1])
    with pytest.raises(SettingError, match="is not known"):
        AdaptivePipeline(pair.student, pair.teacher, task="paint")
