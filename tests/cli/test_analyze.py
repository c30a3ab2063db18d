"""`allaprima analyze` on the toy pair: what it must know, what it may not paint twice, what it refuses."""

import csv
import dataclasses
import json

import pytest
import torch

from allaprima.analysis.painting import RecordingModel, attends, paint_side
from allaprima.cascade.request import GenerationRequest
from allaprima.core.errors import PromptError, RunFolderError, SettingError
from allaprima.experiments import analysis_sections
from allaprima.experiments.analyze import AnalyzeOptions, analyze_command
from allaprima.features.module import ModuleFeatures
from allaprima.pipeline import AdaptivePipeline
from tests.command_line import allaprima
from tests.toys import SETTINGS, Grey, Toy


class Counting(Toy):
    """Counts the pictures it is asked for."""

    calls = 0

    def decode(self, latents):
        Counting.calls += len(latents)
        return super().decode(latents)


class Oracle(Grey):
    name, fingerprint, cost = "grey", "g", 0.1


class Card:
    name = "toy"
    styles = ()

    def usual_prompts(self):
        return []


@pytest.fixture
def toy(monkeypatch):
    settings = dataclasses.replace(SETTINGS, batch_size=8)
    pipe = AdaptivePipeline(Counting(), Counting(0.3), Oracle(), settings, card=Card())
    monkeypatch.setattr(AdaptivePipeline, "from_card", lambda card: pipe)
    # 1 - cos of (grey, 1) is known by hand.
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 0.0]])[..., None, None])
        net[1].bias.copy_(torch.tensor([0.0, 1.0]))
    monkeypatch.setattr(analysis_sections, "load_features", lambda what: ModuleFeatures("grey", net, 2))


def options(tmp_path, **changes):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"{i / 50:.3f}" for i in range(20)))
    fields = {"card": "toy", "prompts_file": str(prompts), "prompts": 20, "seeds": 2, "seed": 1, "measures": (),
              "skip": ("lpips",), "features": "grey", "icnet": None, "tie": 0.25, "student_steps": None, "steps": None,
              "batch_size": None, "out": tmp_path / "out"}  # fmt: skip
    return AnalyzeOptions(**{**fields, **changes})


def rows(tmp_path):
    with (tmp_path / "out" / "pairs.csv").open() as f:
        return list(csv.DictReader(f))


def test_the_report_knows_what_the_toys_do(toy, tmp_path, capsys):
    analyze_command(options(tmp_path))
    made = rows(tmp_path)
    assert len(made) == 40
    for r in made:
        # The teacher is .3 brighter (guided: once), and Grey scores by brightness.
        assert float(r["oracle_teacher"]) - float(r["oracle_student"]) == pytest.approx(0.3, abs=0.15)
        a, b = (float(r[f"oracle_{s}"]) for s in ("student", "teacher"))
        cos = (a * b + 1) / ((a * a + 1) * (b * b + 1)) ** 0.5
        assert float(r["distance"]) == pytest.approx(1 - cos, rel=0.02, abs=2e-4)
    report = json.loads((tmp_path / "out" / "report.json").read_text())["observations"]
    assert "no cross-attention" in report["influence"]["missing"]
    assert "only judge" in report["decisions"]["missing"]
    assert set(report) == {
        "distance", "complexity", "length", "influence", "curvature", "decisions", "simulated", "diversity"
    }  # fmt: skip
    assert "--skip lpips" in json.loads((tmp_path / "out" / "report.json").read_text())["about"]["command"]
    assert "## Trajectory curvature" in capsys.readouterr().out


def test_a_second_run_paints_nothing_and_a_stopped_one_goes_on(toy, tmp_path):
    analyze_command(options(tmp_path))
    first, painted = rows(tmp_path), Counting.calls
    page = (tmp_path / "out" / "report.html").read_bytes()
    analyze_command(options(tmp_path))
    assert Counting.calls == painted
    assert (tmp_path / "out" / "report.html").read_bytes() == page
    # Killed while painting: one batch missing, one half written, no measures.
    (tmp_path / "out" / "painted" / "00001.safetensors").unlink()
    broken = tmp_path / "out" / "painted" / "00003.safetensors"
    broken.write_bytes(broken.read_bytes()[:200])
    for kept in (tmp_path / "out" / "measured").iterdir():
        kept.unlink()
    analyze_command(options(tmp_path))
    assert Counting.calls == painted + 2 * 2 * 8
    assert rows(tmp_path) == first


def test_another_runs_folder_is_refused_by_name(toy, tmp_path):
    analyze_command(options(tmp_path, skip=("lpips", "diversity", "complexity")))
    with pytest.raises(RunFolderError, match="seed was 1, is now 2"):
        analyze_command(options(tmp_path, seed=2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(RunFolderError, match="is not an analysis"):
        analyze_command(options(tmp_path, out=tmp_path / "full"))


def test_one_seed_has_no_diversity_and_says_so(toy, tmp_path):
    analyze_command(options(tmp_path, seeds=1))
    report = json.loads((tmp_path / "out" / "report.json").read_text())["observations"]
    assert "--seeds 2" in report["diversity"]["missing"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"prompts": 9}, "at least 10 prompts"), ({"seeds": 0}, "1 seed"), ({"tie": -1.0}, "tie=-1.0"),
        ({"measures": ("beauty",)}, "'beauty' is not known"), ({"skip": ("distance",)}, "Leave it in"),
    ],
)  # fmt: skip
def test_settings_are_refused_before_anything_is_loaded(tmp_path, changes, error):
    with pytest.raises(SettingError, match=error):
        analyze_command(options(tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_too_few_prompts_and_no_concepts_are_named(toy, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("0.1\n0.2\n0.1\n")
    with pytest.raises(PromptError, match="2 different prompts"):
        analyze_command(options(tmp_path, prompts_file=str(few)))
    with pytest.raises(PromptError, match="--prompts-file"):
        analyze_command(options(tmp_path, prompts_file=None))


def test_the_command_line_hands_on_what_was_said(tmp_path, capsys):
    allaprima("analyze", "--skip", "distance", "--out", tmp_path / "out", expect=2)
    assert "Leave it in" in capsys.readouterr().err
    allaprima("analyze", "--help", expect=0)
    assert "curvature" in capsys.readouterr().out


def test_a_watched_pair_paints_what_the_pipeline_paints(pipe):
    requests = [GenerationRequest("red apple, noto", 5), GenerationRequest("owl, twemoji", 6)]
    assert attends(pipe.student)
    for name, mode in (("student", "student-only"), ("teacher", "teacher-only")):
        steps = {"teacher_steps": 3} if name == "teacher" else {}
        settings = pipe.settings.changed(batch_size=2, **steps)
        watching, side = (
            AdaptivePipeline(pipe.student, pipe.teacher, pipe.oracle, settings),
            RecordingModel(getattr(pipe, name)),
        )
        setattr(watching, name, side)
        cascade = watching.cascade(settings, pipe.policy(settings, mode=mode))
        with side.attending():
            made = paint_side(cascade, requests, side)
        plain = list(pipe.stream(requests, settings, pipe.policy(settings, mode=mode)))
        plain.sort(key=lambda r: r.request.seed)
        assert torch.equal(made.images, torch.stack([(r.image * 255).round().byte() for r in plain]))
        assert made.points.shape[:2] == (2, 3)
        assert made.times.tolist() == sorted(made.times.tolist(), reverse=True)
        # The last denoised prediction is what is decoded.
        latents = made.points[:, -1].reshape(2, *pipe.teacher.latent_shape(64, 64))
        assert (getattr(pipe, name).decode(latents) * 255).round().byte().float().sub(made.images.float()).abs().max() <= 1
        assert made.attention is not None
        assert made.attention.sum(1).tolist() == pytest.approx([1, 1], abs=1e-4)
