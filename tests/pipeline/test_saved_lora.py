"""LoRA students of the families with a transformer: saved by `save_pretrained` and read again, they paint the same."""

import copy

import pytest
import torch
from tiny_folders import SIZE, model
from tiny_language import SIDE, card, qwen_image, sana, z_image

from allaprima.models.cards.card import TextSettings
from allaprima.models.components.lora import FILE, add_adapters, save_lora
from allaprima.models.families.registry import FAMILIES
from allaprima.pipeline import AdaptivePipeline

MAKERS = {"flux": lambda folder: model("flux", folder), "sana": sana, "qwen-image": qwen_image, "z-image": z_image}
PROMPTS, SEEDS = ["red fox", "a blue owl"], [11, 12]
RUN = {"seed": SEEDS, "mode": "student-only", "output_type": "pt", "batch_size": 2}


def with_adapters(network, seed=3):
    """Another network: this one, with adapters that show."""
    made = copy.deepcopy(network)
    add_adapters(made, rank=2, alpha=3.0)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if ".lora_B." in name:
                p.normal_(0, 0.3, generator=g)
    return made.eval()


@pytest.mark.parametrize("family", MAKERS)
def test_a_lora_student_of_a_card_is_saved_as_its_file(family, tmp_path):
    MAKERS[family](tmp_path / "teacher")
    plain = FAMILIES[family].load(tmp_path / "teacher", TextSettings(max_sequence_length=16))
    network = with_adapters(plain.network)
    save_lora(network, tmp_path)
    student = {"source": None, "lora": FILE, "solver": "euler", "guidance_scale": 1.0}
    path = card(tmp_path, family, student, {"solver": "euler"}, oracle={"kind": "none", "license": "none"})
    first = AdaptivePipeline.from_card(path)
    x = torch.randn(2, *plain.latent_shape(SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    cond, t = plain.condition(PROMPTS), torch.tensor([0.7, 0.3])
    with torch.inference_mode():
        trained, bare = plain.output(network, x, t, cond), plain.output(plain.network, x, t, cond)
        read = first.student.output(first.student.network, x, t, cond)
    torch.testing.assert_close(read, trained, atol=1e-5, rtol=0)
    assert float((trained - bare).abs().max()) > 0.1, "the adapters show"
    first.save_pretrained(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine" / "student").iterdir()] == [FILE]
    again = AdaptivePipeline.from_pretrained(tmp_path / "mine")
    assert again.fingerprints() == first.fingerprints()
    assert again.student.network is not again.teacher.network
    assert torch.equal(again(PROMPTS, **RUN).images, first(PROMPTS, **RUN).images)


@pytest.mark.parametrize("own_base", [False, True])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_pipelines_lora_on_a_transformer_stays_a_lora(family, own_base, tmp_path):
    import diffusers

    kind = getattr(diffusers, {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}[family])
    absent = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    teacher = kind.from_pretrained(model(family, tmp_path / "model"), torch_dtype=torch.float32, **absent)
    network = copy.deepcopy(teacher.transformer)
    if own_base:
        with torch.no_grad():
            next(network.parameters()).add_(0.01)
    student = kind(**{**teacher.components, "transformer": with_adapters(network)})
    text = TextSettings(max_sequence_length=16)
    first = AdaptivePipeline.from_pipelines(student, teacher, text=text, height=SIZE, width=SIZE, student_steps=2)
    first.save_pretrained(tmp_path / "mine")
    kept = sorted(p.name for p in (tmp_path / "mine" / "student").iterdir())
    assert kept == [FILE, *(["scheduler", "transformer"] if own_base else [])]
    again = AdaptivePipeline.from_pretrained(tmp_path / "mine")
    assert again.fingerprints() == first.fingerprints()
    ours, theirs = first(PROMPTS, **RUN).images, again(PROMPTS, **RUN).images
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    student.transformer.disable_adapters()
    assert float((first(PROMPTS, **RUN).images - ours).abs().max()) > 1e-2, "the adapters show"
    # What is in the folder is diffusers' to load, too.
    painter = kind.from_pretrained(tmp_path / "mine" / "teacher", torch_dtype=torch.float32, **absent)
    painter.load_lora_weights(str(tmp_path / "mine" / "student"), weight_name=FILE)
    assert painter.get_active_adapters()
