"""Same seed, same bytes, on the bundled networks: alone, in a batch of 16 with others, reversed."""

import pytest
import torch

PROMPTS = [
    f"{c}, {s}" for c in ("panda", "pizza", "rocket", "strawberry") for s in ("noto", "twemoji", "fluent flat", "fluent 3d")
]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["refine", "regenerate"])
def test_a_picture_is_the_same_alone_in_a_batch_and_reversed(pipe, strategy):
    settings = {"threshold": 0.75, "strategy": strategy, "teacher_steps": 6, "batch_size": 16}
    seeds = list(range(100, 116))
    batch = pipe(PROMPTS, seed=seeds, **settings)
    reverse = pipe(PROMPTS[::-1], seed=seeds[::-1], **settings)
    assert 0 < sum(d == "accept" for d in batch.decisions) < 16, "some of both are due, or nothing is shown"
    for i in range(16):
        assert torch.equal(batch.results[i].image, reverse.results[15 - i].image)
        assert batch.scores[i] == reverse.scores[15 - i]
    for i in (0, 7, 13):
        alone = pipe(PROMPTS[i], seed=seeds[i], **settings)
        assert torch.equal(batch.results[i].image, alone.results[0].image)


def test_the_call_is_that_of_diffusers(pipe):
    g = torch.Generator().manual_seed(3)
    out = pipe(["crown, noto", "ghost, noto"], num_inference_steps=3, num_images_per_prompt=2, generator=g, threshold=2.0)
    assert len(out.images) == 4
    assert out.images[0].size == (64, 64)
    assert out.decisions == ["regenerate"] * 4
    assert [c.evaluations["teacher"] for c in out.costs] == [6] * 4
    assert len({r.request.seed for r in out.results}) == 4
