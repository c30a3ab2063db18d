"""What a teacher's guided step takes: the same counted on a copy without memory as on the real network, attention seen."""

import pytest
import torch
from tiny_folders import SIZE, card
from torch.utils.flop_counter import FlopCounterMode

from allaprima.models.cards.card import load_card
from allaprima.models.loading.flops import step_flops
from allaprima.models.loading.pair import load_pair


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_counted_without_memory_is_counted_on_the_network(tmp_path, family):
    from diffusers.models.attention_processor import AttnProcessor

    teacher = load_pair(load_card(card(family, tmp_path))).teacher
    found = step_flops(teacher, SIZE, SIZE, 3.0)
    assert step_flops(teacher, SIZE, SIZE, 1.0) * 2 == found > 0
    if family == "sd3":
        return
    # Attention as plain products, which the counter sees on every device.
    teacher.network.set_attn_processor(AttnProcessor())
    x_t, cond = torch.zeros(1, *teacher.latent_shape(SIZE, SIZE)), teacher.condition(["a"])
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        teacher.output(teacher.network, x_t, torch.full((1,), 0.5), cond)
    assert found == 2 * counter.get_total_flops()
