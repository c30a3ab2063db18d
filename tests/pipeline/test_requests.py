"""One composer of requests: what is asked in Python, on the command line, over HTTP and through Ray is one and the same."""

import tempfile
from types import SimpleNamespace

import pytest
from rich.console import Console

from allaprima.cascade.request import GenerationRequest
from allaprima.core.errors import SettingError
from allaprima.data.prompts import PromptRow
from allaprima.experiments.generate import cascade_settings, requests_of
from allaprima.experiments.generate_ray import Spool
from allaprima.pipeline.requests import compose_requests, settings_changes
from allaprima.serving.api.limits import Limits
from allaprima.serving.api.request_parser import RequestParser
from allaprima.serving.api.schemas import GenerationBody

PROMPT = "red apple, noto"
TEXTS = {"negative_prompt": "a", "prompt_2": "b", "negative_prompt_2": "c", "prompt_3": "d", "negative_prompt_3": "e"}
CALL = {"guidance_scale": 2.0, "guidance_rescale": 0.5, "clip_skip": 1}


def test_every_field_arrives_by_every_way(pipe):
    due = [GenerationRequest(PROMPT, seed, index=seed - 7, **TEXTS) for seed in (7, 8)]
    assert pipe.requests([PROMPT], [7, 8], **TEXTS) == due
    options = SimpleNamespace(
        prompts=[PROMPT], prompts_file=None, demo=False, nearest=True, seed=7, images_per_prompt=2, **TEXTS
    )
    assert requests_of(PromptRow(PROMPT), PROMPT, 0, options) == due
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        spool = Spool(file)
        spool.fill(options, pipe, Console(quiet=True))
        assert [request for request, _ in spool.items()] == due
    body = GenerationBody(prompt=PROMPT, n=2, seed=7, **TEXTS)
    parsed = RequestParser(pipe, Limits(), "emoji").parse(body, pipe.settings, "me")
    assert [r.request for r in parsed.requests] == due


def test_settings_of_a_call_are_the_same_by_every_way(pipe):
    due = pipe.settings.changed(**settings_changes(**CALL))
    names = ("strategy", "solver", "steps", "last_time", "student_steps", "batch_size", "guidance_interval",
             "guidance_outside", "sigma", "sigma_is")  # fmt: skip
    told = {"guidance": 2.0, "guidance_rescale": 0.5, "clip_skip": 1}
    assert cascade_settings(pipe.settings, SimpleNamespace(**dict.fromkeys(names), **told)) == due
    parser = RequestParser(pipe, Limits(), "emoji")
    assert parser.check(GenerationBody(prompt=PROMPT, seed=7, **CALL)) == due


def test_a_rows_own_text_goes_before_the_commands():
    options = SimpleNamespace(seed=1, images_per_prompt=1, **TEXTS)
    (request,) = requests_of(PromptRow("x", prompt_2="own"), "x", 0, options)
    assert (request.prompt_2, request.negative_prompt) == ("own", "a")


def test_prompts_and_seeds_in_a_row():
    made = compose_requests(["x", "y"], [5, 6, 7, 8], first_index=3, texts={"negative_prompt": ["p", "q"]})
    assert [(r.prompt, r.seed, r.negative_prompt, r.index) for r in made] == [
        ("x", 5, "p", 3), ("x", 6, "p", 4), ("y", 7, "q", 5), ("y", 8, "q", 6),
    ]  # fmt: skip
    with pytest.raises(SettingError, match="'prompt_4' is no text"):
        compose_requests(["x"], [1], texts={"prompt_4": "z"})
