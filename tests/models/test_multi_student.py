"""Several students behind one painter: whose a picture is never shows in its bits, only in who painted it."""

import dataclasses
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml

from allaprima.cascade.job import Job
from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import AlwaysPolicy, Decision
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.runner import run
from allaprima.core.errors import ModelError, SettingError
from allaprima.core.types import Condition
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.models.multi_student.model import MultiStudent, Networks, load_multi_student
from allaprima.models.multi_student.partition import fit_pca_median
from allaprima.models.multi_student.partition_file import save_partition
from allaprima.pipeline import AdaptivePipeline

EMOJI = Path(str(resources.files("allaprima"))) / "bundled" / "emoji"
PROMPTS = ["panda, noto", "pizza, twemoji", "rocket, noto", "owl, fluent 3d"]
SHARED = ("text_encoder", "tokenizer", "vae")
SETTINGS = {"student_steps": 2, "batch_size": 2, "mode": "student-only"}


@pytest.fixture(scope="module")
def partition(pipe):
    """Two prompts a student."""
    return fit_pca_median(pipe.student.encode(PROMPTS), 2)


@pytest.fixture(scope="module")
def singles(pipe):
    """The bundled student, and another that paints otherwise."""
    other = dataclasses.replace(
        pipe.student, unet=pipe.teacher.unet, fingerprints={**pipe.student.fingerprints, "unet": "other"}
    )
    return pipe.student, other


def paint(pipe, student, prompts=PROMPTS, seeds=(7, 8, 9, 10), **changes):
    out = AdaptivePipeline(student, pipe.teacher, None, pipe.settings)(prompts, seed=list(seeds), **{**SETTINGS, **changes})
    return [r.image for r in out.results]


@pytest.fixture(scope="module")
def alone(pipe, singles):
    """By student, the four pictures it paints as the only one."""
    return [paint(pipe, s) for s in singles]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_identical_students_paint_the_very_bytes_of_the_single_one(pipe, singles, partition, alone):
    several = MultiStudent.of([singles[0], singles[0]], partition)
    assert several.students > 1
    assert sorted(several.route(several.encode(PROMPTS)).tolist()) == [0, 0, 1, 1]
    assert same(paint(pipe, several), alone[0])


def test_each_picture_is_that_of_its_own_student_alone_in_a_batch_and_reversed(pipe, singles, partition, alone):
    several = MultiStudent.of(singles, partition)
    route = several.route(several.encode(PROMPTS)).tolist()
    due = [alone[k][i] for i, k in enumerate(route)]
    assert not any(torch.equal(alone[0][i], alone[1][i]) for i in range(4)), "students that differ are due"
    assert same(paint(pipe, several), due)
    assert same(paint(pipe, several, PROMPTS[::-1], (10, 9, 8, 7)), due[::-1])
    assert same(paint(pipe, several, PROMPTS[:1], (7,)), due[:1])


def test_a_mixed_batch_and_one_resident_student_give_the_same_bytes(pipe, partition, alone, tmp_path):
    """The machine alone, without `run`'s grouping: every step has rows of both students, and room for one network."""
    save_partition(partition, tmp_path / "partition.safetensors")
    folders = [EMOJI / "weights" / name for name in ("student", "teacher")]
    card = load_card("emoji")
    several = load_multi_student(folders, tmp_path / "partition.safetensors", card.text, pipe.teacher, SHARED, resident=1)
    assert several.networks.held == ()
    route = several.route(several.encode(PROMPTS)).tolist()
    assert same(paint(pipe, several), [alone[k][i] for i, k in enumerate(route)])
    assert (several.networks.loads, len(several.networks.held)) == (2, 1), "drafts of one student are painted to the end"

    pair = [route.index(0), route.index(1)]
    settings = dataclasses.replace(pipe.settings, student_steps=2, batch_size=2)
    cascade = LatentCascade(several, pipe.teacher, None, AlwaysPolicy(Decision.ACCEPT), settings)
    jobs = [Job(GenerationRequest(PROMPTS[i], (7, 8, 9, 10)[i])) for i in pair]
    cascade.start(jobs)
    cascade.step(jobs)
    cascade.step(jobs)
    cascade.score(jobs)
    assert same([j.image for j in jobs], [alone[k][i] for k, i in enumerate(pair)])
    assert len(several.networks.held) == 1


class Grey:
    """Stands for a UNet: a constant a student, and a record of what it was called with."""

    def __init__(self, value):
        self.value, self.calls = value, []

    def __call__(self, x_t, t, embeds):
        self.calls.append(embeds[:, 0, 0].tolist())
        out = torch.full_like(x_t, self.value)
        return type("Out", (), {"sample": out + embeds.mean((1, 2))[:, None, None, None] * x_t})


def toy(pipe, students=2):
    nets = [Grey(float(k)) for k in range(students)]
    partition = fit_pca_median(torch.linspace(-1, 1, 8)[:, None].repeat(1, 384) + torch.eye(8, 384) * 1e-3, students)
    shell = MultiStudent.of([pipe.student] * students, partition).shell
    return MultiStudent(shell, partition, Networks([lambda n=n: n for n in nets])), nets


def test_the_negative_half_goes_with_its_prompt_and_every_call_has_one_shape(pipe):
    several, nets = toy(pipe)
    prompt = torch.tensor([-0.9, 0.9, 0.8])[:, None, None].expand(3, 4, 384)
    cond = {"prompt_embeds": prompt, "negative_prompt_embeds": torch.zeros(3, 4, 384) - 0.1, "guidance_scale": torch.ones(3)}
    x, t = torch.randn(3, 8, 2, 2), torch.full((3,), 500.0, dtype=torch.float64)
    made = several.denoiser(x, t, Condition(cond))
    # float32 of the embeddings, padded with copies of a student's first row, its negative.
    rounded = [[round(v, 3) for v in net.calls[0]] for net in nets]
    assert rounded == [[-0.1, -0.9, -0.1, -0.1, -0.1, -0.1], [-0.1, -0.1, 0.9, 0.8, -0.1, -0.1]]
    for i, student in enumerate((0, 1, 1)):
        row = Condition({k: v[i : i + 1] for k, v in cond.items()} | {"route": torch.tensor([student])})
        torch.testing.assert_close(several.denoiser(x[i : i + 1], t[i : i + 1], row), made[i : i + 1])
    several.denoiser.unguided(x, t, Condition(cond))
    assert [[round(v, 3) for v in net.calls[-1]] for net in nets] == [[-0.9] * 3, [0.9, 0.8, 0.9]]


def test_drafts_gather_into_full_batches_of_one_student_each(pipe, monkeypatch):
    several, nets = toy(pipe)
    values = {f"p{i}": (-0.9 if i % 2 else 0.9) + i / 1000 for i in range(8)} | {"": 0.0}

    def condition(self, prompts):
        return Condition({"prompt_embeds": torch.tensor([values[p] for p in prompts])[:, None, None].expand(-1, 4, 384)})

    monkeypatch.setattr(MultiStudent, "condition", condition)
    monkeypatch.setattr(MultiStudent, "negative", condition)
    monkeypatch.setattr(MultiStudent, "decode", lambda self, x: x[:, :3].sigmoid())
    routed = []
    monkeypatch.setattr(MultiStudent, "route", lambda self, e: routed.append(len(e)) or self.partition.route(e))
    settings = dataclasses.replace(pipe.settings, student_steps=2, batch_size=4)
    cascade = LatentCascade(several, pipe.teacher, None, AlwaysPolicy(Decision.ACCEPT), settings)
    results = list(run(cascade, [GenerationRequest(f"p{i}", i, index=i) for i in range(8)]))
    assert [r.request.index for r in results] == list(range(8)), "decided in the order of the requests"
    assert [len(net.calls) for net in nets] == [2, 2], "two steps of one full batch each"
    assert all(len(call) == len(set(call)) + 3 == 8 for net in nets for call in net.calls), "4 prompts, 4 same negatives"
    assert routed == [4, 4], "once a request"


def test_the_latest_used_stay_and_no_more_than_asked():
    made = []
    unets = Networks([lambda k=k: made.append(k) or k for k in range(3)], resident=2)
    assert [unets[k] for k in (0, 1, 0, 2, 0, 1)] == [0, 1, 0, 2, 0, 1]
    assert made == [0, 1, 2, 1]
    assert unets.held == (0, 1)
    with pytest.raises(SettingError, match="resident=0"):
        Networks([], resident=0)


def test_the_fingerprint_covers_every_student_and_the_partition(pipe, singles, partition):
    a, b = singles
    other = fit_pca_median(pipe.student.encode([f"{p} " + "red" for p in PROMPTS]), 2)
    prints = {
        MultiStudent.of(models, cut).fingerprint
        for models, cut in (((a, b), partition), ((b, a), partition), ((a, a), partition), ((a, b), other))
    }
    assert len(prints) == 4
    assert MultiStudent.of(singles, partition).fingerprint in prints
    assert MultiStudent.of(singles, partition).student(1).fingerprint == b.fingerprint


def card_of(tmp_path, student, **changes):
    raw = yaml.safe_load((EMOJI / "card.yaml").read_text())
    base = {k: v for k, v in raw["student"].items() if k != "source"}
    teacher = {**raw["teacher"], "source": str(EMOJI / "weights" / "teacher")}
    oracle = {**raw["oracle"], "source": str(EMOJI / "weights" / "oracle")}
    drop = ("calibration", "knows", "keywords")
    made = {
        **{k: v for k, v in raw.items() if k not in drop},
        "student": base | student,
        "teacher": teacher,
        "oracle": oracle,
    }
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({**made, **changes}))
    return load_card(tmp_path)


def test_a_card_names_students_and_their_partition(pipe, partition, tmp_path):
    save_partition(partition, tmp_path / "partition.safetensors")
    folders = [str(EMOJI / "weights" / name) for name in ("student", "teacher")]
    named = {"students": folders, "partition": "partition.safetensors", "resident": 1}
    several = load_pair(card_of(tmp_path, named)).student
    assert (several.students, several.networks.resident) == (2, 1)
    assert several.fingerprints["unet.1"] == pipe.teacher.fingerprints["unet"]


def test_folders_and_partitions_that_do_not_fit_are_refused(pipe, partition, tmp_path):
    path, text = tmp_path / "partition.safetensors", pipe.student.text
    save_partition(partition, path)
    good = [EMOJI / "weights" / name for name in ("student", "teacher")]

    def refused(folders, says):
        with pytest.raises(ModelError, match=says):
            load_multi_student(folders, path, text, pipe.teacher, SHARED)

    refused([*good, good[0]], r"3 students are given, the partition .* for 2")
    refused([good[0], tmp_path / "nowhere"], r"nowhere.*config.json is missing")
    refused([], "at least one")
    (tmp_path / "odd" / "unet").mkdir(parents=True)
    config = (good[0] / "unet" / "config.json").read_text()
    (tmp_path / "odd" / "unet" / "config.json").write_text(config.replace('"in_channels": 8', '"in_channels": 4'))
    refused([good[0], tmp_path / "odd"], "in_channels=4, the first student 8")
    save_partition(fit_pca_median(torch.randn(8, 5), 2), path)
    refused(good, "5 dimensions, these students read 384")


@pytest.mark.parametrize(
    ("student", "says"),
    [
        ({}, "either source"),
        ({"source": "a", "students": ["b"], "partition": "p"}, "either source"),
        ({"students": ["a", "b"]}, "belong together"),
        ({"source": "a", "partition": "p"}, "belong together"),
        ({"source": "a", "resident": 1}, "several students only"),
        ({"students": ["a"], "partition": "p", "resident": 0}, "resident"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(tmp_path, student, says):
    with pytest.raises(ModelError, match=says):
        card_of(tmp_path, student)


def test_students_that_share_too_little_are_refused(pipe, partition):
    odd = dataclasses.replace(pipe.student, fingerprints={**pipe.student.fingerprints, "vae": "another"})
    with pytest.raises(ModelError, match="student 1 differs from student 0 in vae"):
        MultiStudent.of([pipe.student, odd], partition)
