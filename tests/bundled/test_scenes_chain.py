"""A small version of every network of the scenes by its recipe, one after the other, and a card of them that paints."""

import json
import shutil
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml
from command_line import allaprima

from allaprima.bundled.scenes import autoencoder, drafts, export, oracle, student, teacher
from allaprima.bundled.scenes.autoencoder import encode_scenes, linear_encoder, reconstructions, to_batch
from allaprima.bundled.scenes.grammar import validation_scenes
from allaprima.bundled.scenes.networks import new_autoencoder, new_text_encoder, new_tokenizer, new_unet
from allaprima.bundled.scenes.renderer import training_pair
from allaprima.core.seeds import noise_batch
from allaprima.data.grammars import canonical_prompt
from allaprima.models.cards.card import load_card
from allaprima.pipeline import AdaptivePipeline

PAIR = Path(str(resources.files("allaprima.bundled.scenes")))


@pytest.fixture(scope="module", autouse=True)
def threads():
    """The recipes set their processes' threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(recipe, *arguments):
    """A recipe from its command line, in this process."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "argv", ["recipe", *map(str, arguments)])
        recipe.main()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder with all runs and the card of what they made."""
    root = tmp_path_factory.mktemp("scenes")
    vae = root / "autoencoder" / "vae"
    run(autoencoder, "--out", root / "autoencoder", "--steps", 12, "--pictures", 60)
    run(teacher, "--vae", vae, "--out", root / "teacher", "--steps", 4)
    run(student, "--vae", vae, "--teacher", root / "teacher", "--out", root / "student", "--steps", 3)
    made = ("--vae", root / "autoencoder", "--teacher", root / "teacher", "--student", root / "student")
    run(export, *made, "--out", root / "pair" / "weights")
    card = root / "pair" / "card.yaml"
    said = yaml.safe_load((PAIR / "card.yaml").read_text())
    del said["calibration"]
    said["name"], said["student"]["steps"], said["teacher"]["steps"] = "small", 2, 3
    card.write_text(yaml.safe_dump(said))
    shutil.copy(PAIR / "prompts.txt", card.parent)
    painted = ("--card", card, "--out", root / "drafts.safetensors", "--chunk", 30)
    run(drafts, *painted, "--chunks", 3)
    run(drafts, *painted, "--chunks", 4)
    run(
        oracle, "--vae", vae, "--teacher", root / "teacher", "--drafts", root / "drafts.safetensors", "--out",
        root / "oracle", "--steps", 3,
    )  # fmt: skip
    run(export, "--oracle", root / "oracle", "--out", root / "pair" / "weights")
    return root


def test_the_encoder_projects_cells_and_reads_like_its_matrix():
    vae = autoencoder.prepare_autoencoder(pictures=60)
    images = [training_pair(0, i)[1] for i in range(12)]
    by_matrix = encode_scenes(images, linear_encoder(vae))
    with torch.no_grad():
        by_network = vae.encode(to_batch(images)).latents * vae.config.scaling_factor
    assert by_matrix.shape == (12, 32, 4, 4)
    assert torch.allclose(by_matrix, by_network, atol=2e-4)
    assert 0.5 < float(by_matrix.square().mean()) < 2
    # Nothing of a cell leaks into its neighbours: an object moved by a cell moves its latents.
    moved = [image.copy() for image in images]
    for image, original in zip(moved, images, strict=True):
        image[:, 16:] = original[:, :-16]
    shifted = encode_scenes(moved, linear_encoder(vae))
    assert torch.allclose(shifted[..., 1:], by_matrix[..., :-1], atol=1e-4)


def test_principal_components_keep_most_of_a_cell():
    projection, _ = autoencoder.principal_components(pictures=200)
    cells = autoencoder.cells_of(torch.stack([torch.from_numpy(training_pair(0, i)[1]) for i in range(40)]).numpy())
    basis = projection.T
    kept = cells @ basis @ torch.linalg.pinv(torch.from_numpy(basis)).numpy()
    assert ((kept - cells) ** 2).sum() < 0.12 * (cells**2).sum()


def test_every_network_is_made_and_its_provenance_kept(small):
    weights = small / "pair" / "weights"
    for part in ("teacher", "teacher/vae", "student", "oracle"):
        account = json.loads((weights / part / "provenance.json").read_text())
        assert account["samples"] > 0
        assert account["sha256"]
        assert (weights / part / "curve.csv").exists()
    assert json.loads((small / "teacher" / "progress.json").read_text())["samples"] == 4 * teacher.LOOP.train_batch_size


def test_the_card_names_prompts_that_its_models_know(small):
    prompts = load_card(small / "pair").usual_prompts()
    assert len(prompts) == 700
    assert [canonical_prompt("scenes", prompt) for prompt in prompts] == prompts
    assert prompts == [scene.caption() for scene in validation_scenes()]


def test_the_card_paints_scores_and_refuses(small):
    pipe = AdaptivePipeline.from_card(small / "pair")
    out = pipe(["two red circles left of a blue star", "a star and 2 green squares"], seed=1, threshold=0.0)
    assert out.images[0].size == (64, 64)
    assert all(score is not None for score in out.scores)
    same = pipe("a star and two green squares", seed=2, threshold=0.0)
    assert same.scores[0] == out.scores[1], "another phrasing is the same prompt"
    assert same.costs[0].evaluations["student"] == 2, "one evaluation a step"


def test_one_bad_line_does_not_keep_the_others_from_being_painted(small, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\nten thousand red circles\na mauve star\ntwo hearts\n")
    allaprima(
        "generate", "--prompts-file", tmp_path / "prompts.txt", "--card", small / "pair", "--threshold", "0",
        "--out", tmp_path / "run", expect=2,
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [row["error"] is None for row in rows] == [True, False, False, True]
    assert "'four red circles'" in rows[1]["error"]
    assert "'a star'" in rows[2]["error"]
    assert len(list((tmp_path / "run" / "images").glob("*.png"))) == 2


def test_diffusers_own_pipelines_paint_the_teachers_pictures(small):
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    folder = small / "pair" / "weights" / "teacher"
    theirs = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    pipe = AdaptivePipeline.from_card(small / "pair")
    prompts, seeds = ["two red circles left of a blue star", "a heart"], [11, 12]
    how = {
        "mode": "teacher-only",
        "teacher_steps": 4,
        "teacher_solver": "ddim@trailing",
        "batch_size": 2,
        "output_type": "np",
    }
    ours = pipe(prompts, seed=seeds, **how).images
    noise = noise_batch(seeds, "initial", [0, 0], pipe.teacher.latent_shape(64, 64))
    by_words = theirs(prompts, latents=noise, num_inference_steps=4, guidance_scale=2.0, output_type="np").images
    assert abs(by_words - ours).max() < 2e-3, "diffusers reads the prompts with the folder's own tokenizer"
    changed = StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    changed.set_progress_bar_config(disable=True)
    x = torch.from_numpy(training_pair(0, 3)[1]).permute(2, 0, 1)[None]
    image = changed("a heart", image=x, strength=0.5, num_inference_steps=4, guidance_scale=2.0, output_type="np").images
    assert image.shape == (1, 64, 64, 3)


def test_the_table_of_held_out_scenes(small, tmp_path, monkeypatch, capsys):
    from benchmarks import scenes as table

    def few(pipe):
        return {"student 2": ("student-only", {"student_steps": 2}, 2), "teacher 3": ("teacher-only", {}, 6)}

    monkeypatch.setattr(table, "rows_of", few)
    arguments = ("--card", small / "pair", "--prompts", 14, "--seeds", 2, "--out", tmp_path / "table")
    run(table, *arguments, "--json")
    made = json.loads(capsys.readouterr().out)
    assert {row: r["evaluations"] for row, r in made["rows"].items()} == {"student 2": 2, "teacher 3": 6}
    for row in made["rows"].values():
        assert row["interval"][0] <= row["right"] <= row["interval"][1]
        assert row["right"] + sum(row["faults"].values()) == pytest.approx(1)
    kept = sorted((tmp_path / "table").iterdir())
    assert len(kept) == 4
    before = [f.stat().st_mtime_ns for f in kept]
    run(table, *arguments)
    assert "| student 2 | 2 |" in capsys.readouterr().out
    assert [f.stat().st_mtime_ns for f in kept] == before, "what was painted is not painted again"


def test_the_judges_own_table(small, capsys):
    from benchmarks import scenes_judge

    sizes = ("--clean", 60, "--altered", 60, "--changed", 12)
    run(scenes_judge, *sizes, "--card", small / "pair", "--json")
    made = json.loads(capsys.readouterr().out)
    assert made["clean"]["right"] == 1
    assert made["altered"]["wrongly"] == []
    assert made["changed"]["right"]["8 bits"] == 1
    assert made["changed"]["right"]["autoencoder, 8 bits"] < 1, "a decoder of twelve steps draws nothing that can be read"
    scene, layout, _ = scenes_judge.rendered(1, "x")[0]
    assert scenes_judge.shows(layout, scene)
    assert not scenes_judge.shows(layout[:-1], scene)


def test_the_oracle_scores_a_picture_by_itself(small):
    pipe = AdaptivePipeline.from_card(small / "pair")
    images = torch.stack([torch.from_numpy(training_pair(0, i)[1]).permute(2, 0, 1) for i in range(5)])
    prompts = [training_pair(0, i)[0].caption() for i in range(5)]
    together = pipe.oracle.score(images, prompts)
    alone = torch.cat([pipe.oracle.score(images[i : i + 1], [p]) for i, p in enumerate(prompts)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_decoded_pictures_come_from_the_saved_autoencoder(small):
    vae = teacher.load_vae(small / "autoencoder" / "vae")
    exported = teacher.load_vae(small / "pair" / "weights" / "teacher" / "vae")
    x = to_batch([training_pair(0, 1)[1]])
    assert torch.allclose(reconstructions(vae, x), reconstructions(exported, x), atol=0.02), "float16 alone lies between"


def test_trainings_start_to_the_bit_alike(small, tmp_path):
    run(teacher, "--vae", small / "autoencoder" / "vae", "--out", tmp_path / "again", "--steps", 4)
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        once, again = ((f / f"{part}.safetensors").read_bytes() for f in (small / "teacher", tmp_path / "again"))
        assert once == again


def test_a_training_goes_on_from_another_with_other_captions(small, tmp_path):
    vae = small / "autoencoder" / "vae"
    stage = ("--data-seed", 12, "--time-power", 0.35, "--mixture", "relations", "--lr", 1e-6, "--steps", 2)
    run(teacher, "--vae", vae, "--start", small / "teacher", "--out", tmp_path, *stage)
    account = json.loads((tmp_path / "progress.json").read_text())["recipe"]
    assert (account["mixture"], account["time_power"], account["goes_on"]) == ("relations", 0.35, True)
    before, after = (teacher.TextToLatents.from_pretrained(f).state_dict() for f in (small / "teacher", tmp_path))
    assert max(float((before[k] - after[k]).abs().max()) for k in before) < 1e-4, "it begins where the other ended"


def test_networks_are_as_small_as_said():
    assert sum(p.numel() for p in new_unet().parameters()) < 5.3e6
    assert sum(p.numel() for p in new_text_encoder().parameters()) < 0.6e6
    assert sum(p.numel() for p in new_autoencoder().parameters()) < 0.6e6
    tokenizer = new_tokenizer()
    longest = "three orange triangles, an orange circle and a purple square"
    assert len(tokenizer(longest).input_ids) <= 16
    assert tokenizer.unk_token_id not in tokenizer(longest).input_ids
