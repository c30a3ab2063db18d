"""Preprocessing against Pillow and transformers' own image processor, the same where it is theirs, 1.5/255 off where not."""

import numpy as np
import pytest
import torch
from PIL import Image

from allaprima.core.errors import ModelError
from allaprima.oracles.pixels import CLIP_MEAN, CLIP_STD, Pixels

SIZES = [(32, 32), (32, 35), (40, 55), (64, 33), (512, 512), (20, 31), (33, 80)]


def picture(h, w, low=0, high=256):
    return torch.randint(low, high, (1, 3, h, w), generator=torch.Generator().manual_seed(h * w), dtype=torch.uint8)


def settings(**changes):
    return {
        "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "resample": 3,
        "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), **changes,
    }  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_a_folders_pictures_are_transformers_own(tmp_path, size):
    import json

    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings()))
    x = picture(*size)
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)(x[0].permute(1, 2, 0).numpy(), return_tensors="pt")
    mine = Pixels.of_folder(tmp_path)(x.float() / 255)
    assert np.abs(mine - theirs["pixel_values"]).max() < 1e-5
    # On the device the filter is the same but for 8-bit rounding between and after its passes.
    grey = picture(*size, 80, 176)
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)(grey[0].permute(1, 2, 0).numpy(), return_tensors="pt")
    mine = Pixels.of_folder(tmp_path, "tensor")(grey.float() / 255)
    assert np.abs(mine - theirs["pixel_values"]).max() < 1.5 / 255 / min(CLIP_STD)


@pytest.mark.parametrize("size", SIZES)
def test_the_published_torchvision_transform_by_hand(size):
    """Resize(32, BICUBIC) of a Pillow picture, CenterCrop(32), ToTensor, Normalize, as torchvision computes them."""
    x = picture(*size)
    image = Image.fromarray(x[0].permute(1, 2, 0).numpy())
    w, h = image.size
    short, long = 32, int(32 * max(w, h) / min(w, h))
    image = image.resize((short, long) if w <= h else (long, short), Image.Resampling.BICUBIC)
    left, top = int(round((image.width - 32) / 2.0)), int(round((image.height - 32) / 2.0))  # noqa: RUF046
    image = image.crop((left, top, left + 32, top + 32))
    expected = (np.asarray(image).astype(np.float32) / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    mine = Pixels(32)(x.float() / 255)[0].permute(1, 2, 0).numpy()
    assert np.abs(mine - expected).max() < 1e-5


def test_the_two_crops_differ_by_a_pixel_where_three_are_over():
    x = picture(32, 35).float() / 255
    rounded, floored = Pixels(32, (0,), (1,))(x), Pixels(32, (0,), (1,), crop="floor")(x)
    assert torch.equal(rounded[..., :-1], floored[..., 1:]) and not torch.equal(rounded, floored)


def test_overshoot_stands_in_tensors_unless_it_is_clamped():
    x = picture(64, 64).float() / 255 > 0.5
    free = Pixels(32, (0.0,) * 3, (1.0,) * 3, "tensor", clamped=False)(x.float())
    held = Pixels(32, (0.0,) * 3, (1.0,) * 3, "tensor")(x.float())
    assert free.min() < 0 and free.max() > 1
    assert torch.equal(held, free.clamp(0, 1))


def test_other_preprocessing_is_named(tmp_path):
    import json

    for odd in (
        {"size": {"height": 32, "width": 32}}, {"resample": 2}, {"crop_size": {"height": 28, "width": 28}},
    ):  # fmt: skip
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings(**odd)))
        with pytest.raises(ModelError, match="isn't how CLIP sees pictures"):
            Pixels.of_folder(tmp_path)
