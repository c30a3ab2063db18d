"""`allaprima evaluate` on small made pictures: its numbers against the metrics' own, its pairs, and bad input."""

import json
from types import SimpleNamespace

import command_line
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from allaprima.core.errors import SettingError
from allaprima.data.pictures import open_pictures, read_picture
from allaprima.evaluation import make_metric
from allaprima.evaluation.cached_features import CachedFeatures
from allaprima.evaluation.intervals import mean_interval


class Pixels:
    """Features are the first pixels; counts the pictures that it saw."""

    name, fingerprint, dim = "pixels", "p1", 5
    layer_names = ("whole",)

    def __init__(self):
        self.seen, self.preprocessing = 0, {"resize": "none"}

    def features(self, images):
        self.seen += len(images)
        return images.flatten(1)[:, : self.dim]

    def layers(self, images):
        return [images]


class LongBright:
    """An oracle that likes bright pictures of long prompts."""

    name, fingerprint, cost = "bright", "b1", 0.1

    def score(self, images, prompts):
        return images.mean((1, 2, 3)) * torch.tensor([float(len(p)) for p in prompts])


@pytest.fixture
def net(monkeypatch, tmp_path):
    found = Pixels()
    monkeypatch.setattr("allaprima.features.load.load_features", lambda what: found)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "allaprima.models.loading.pair.load_pair", lambda card: SimpleNamespace(student=SimpleNamespace(encode=None))
    )
    monkeypatch.setattr("allaprima.oracles.load.load_oracle", lambda *given: LongBright())
    return found


def made(n, seed=0, side=4):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def tensor(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def folder_of(path, pixels, names=None):
    path.mkdir(parents=True)
    for i, p in enumerate(pixels):
        Image.fromarray(p).save(path / (names[i] if names else f"{i:05d}.png"))
    return path


def run_of(path, pixels, prompts, seeds, drafts=None, order=None):
    folder_of(path / "images", pixels)
    if drafts is not None:
        folder_of(path / "drafts", drafts)
    rows = []
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        row = {"index": i, "prompt": prompt, "seed": seed, "error": None, "image": f"images/{i:05d}.png"}
        rows.append(row | ({} if drafts is None else {"draft": f"drafts/{i:05d}.png"}))
    (path / "results.jsonl").write_text("".join(json.dumps(rows[i]) + "\n" for i in order or range(len(rows))))
    (path / "run.json").write_text(json.dumps({"card": "emoji"}))
    return path


def allaprima(*args, expect=0):
    command_line.allaprima("evaluate", *args, expect=expect)


def evaluated(tmp_path, *args):
    out = tmp_path / "evaluation.json"
    allaprima(*args, "--out", out)
    return json.loads(out.read_text())


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


PROMPTS = ["cat", "cat", "a house", "a house", "sun", "moon"]


def test_every_number_is_the_metrics_own_however_the_pictures_are_batched(tmp_path, net):
    ours, real = made(6), made(5, 1)
    run, reference = run_of(tmp_path / "run", ours, PROMPTS, range(6)), folder_of(tmp_path / "real", real)
    names = "frechet,kernel,precision_recall,oracle_score"
    report = evaluated(tmp_path, run, "--metrics", names, "--reference", reference, "--batch-size", 4)
    (one,) = report["sets"]
    x, y = tensor(ours), tensor(real)
    for name, options in [("frechet", {}), ("kernel", {"subset_size": 5}), ("precision_recall", {})]:
        metric = make_metric(name, features=Pixels(), **options)
        metric.update(x, [], y)
        due = metric.compute()
        assert one["metrics"][name]["value"] == pytest.approx(due.value, rel=1e-9), name
        assert one["metrics"][name]["more"] == pytest.approx(dict(due.more))
        assert one["metrics"][name]["protocol"] == due.protocol
        assert one["metrics"][name]["interval"] is None
    scores = LongBright().score(x, PROMPTS).double().tolist()
    due = mean_interval(scores, [0, 0, 1, 1, 2, 3])
    found = one["metrics"]["oracle_score"]
    assert [found["value"], *found["interval"]] == pytest.approx([due.mean, due.low, due.high], rel=1e-6)
    assert found["mean_over_pictures"] == pytest.approx(np.mean(scores))
    assert found["value"] != pytest.approx(found["mean_over_pictures"]), "prompts weigh the same, pictures don't"
    assert (report["schema"], one["pictures"], one["prompts"], one["height"], one["width"]) == (1, 6, 4, 4, 4)
    assert report["reference"]["pictures"] == 5 and report["comparison"] is None
    assert report["command"].startswith("allaprima evaluate ")
    again = evaluated(tmp_path, run, "--metrics", names, "--reference", reference, "--batch-size", 5)
    assert again["sets"][0]["pictures_sha256"] == one["pictures_sha256"]
    assert again["sets"][0]["metrics"]["frechet"]["value"] == pytest.approx(one["metrics"]["frechet"]["value"])


def test_pairs_go_by_prompt_and_seed_not_by_place(tmp_path, net):
    a, b = made(6), made(6, 1)
    ours = run_of(tmp_path / "a", a, PROMPTS, range(6))
    shuffled = [4, 2, 5, 0, 3, 1]
    theirs = run_of(tmp_path / "b", b[shuffled], [PROMPTS[i] for i in shuffled], shuffled)
    report = evaluated(tmp_path, ours, "--metrics", "oracle_score", "--against", theirs)
    scores = [LongBright().score(tensor(x), PROMPTS).double().numpy() for x in (a, b)]
    difference = scores[0] - scores[1]
    due = mean_interval(difference.tolist(), [0, 0, 1, 1, 2, 3])
    c = report["comparison"]
    found = c["metrics"]["oracle_score"]
    assert [found["difference"], *found["interval"]] == pytest.approx([due.mean, due.low, due.high], abs=1e-6)
    wins = found["win_rate"]
    assert (wins["wins"], wins["ties"], wins["losses"]) == ((difference > 0).sum(), 0, (difference < 0).sum())
    assert (c["paired_by"], c["pairs"], c["without_partner"]) == ("prompt and seed", 6, [0, 0])


def test_a_missing_partner_is_counted_and_the_rest_compared(tmp_path, net, capsys):
    a, b = made(4), made(4, 1)
    b[1:3] = made(4, 2)[1:3]  # Theirs are the real ones: nearer, in both pairs.
    ours, theirs = folder_of(tmp_path / "a", a), folder_of(tmp_path / "b", b[1:], ["00001.png", "00002.png", "x.png"])
    folder_of(tmp_path / "real", made(4, 2))
    (tmp_path / "real" / "x.png").write_bytes((tmp_path / "real" / "00000.png").read_bytes())
    report = evaluated(tmp_path, ours, "--metrics", "lpips,frechet", "--reference", tmp_path / "real", "--against", theirs)
    c = report["comparison"]
    assert (c["paired_by"], c["pairs"], c["without_partner"]) == ("name", 2, [2, 1])
    real = tensor(made(4, 2))
    lpips = make_metric("lpips", features=Pixels()).scorer
    due = lpips.score(tensor(a[1:3]), [], real[1:3]) - lpips.score(tensor(b[1:3]), [], real[1:3])
    assert c["metrics"]["lpips"]["difference"] == pytest.approx(float(due.mean()))
    assert float(due.min()) > 0
    wins = c["metrics"]["lpips"]["win_rate"]
    assert (wins["wins"], wins["losses"]) == (0, 2), "a lower distance wins"
    values = [s["metrics"]["frechet"]["value"] for s in report["sets"]]
    assert c["metrics"]["frechet"] == {"difference": values[0] - values[1], "interval": None, "win_rate": None}
    assert "3 pictures have no partner" in said(capsys)


def test_finals_against_drafts_of_one_run(tmp_path, net):
    drafts = made(4)
    finals = drafts.copy()
    finals[2] = 255
    run = run_of(tmp_path / "run", finals, ["a", "b", "c", "d"], [0] * 4, drafts)
    report = evaluated(tmp_path, run, "--metrics", "oracle_score", "--which", "both")
    assert [s["name"] for s in report["sets"]] == [str(run), f"{run} (drafts)"]
    wins = report["comparison"]["metrics"]["oracle_score"]["win_rate"]
    assert (wins["wins"], wins["ties"], wins["losses"]) == (1, 3, 0)
    only = evaluated(tmp_path, run, "--metrics", "oracle_score", "--which", "draft")
    assert only["sets"][0]["metrics"] == report["sets"][1]["metrics"]


def test_prompts_of_a_file_go_by_sorted_names_and_those_of_a_row_by_its_path(tmp_path, net):
    pixels = made(3)
    folder = folder_of(tmp_path / "pictures", pixels, ["c.png", "a.webp", "b.PNG"])
    Image.fromarray(pixels[1]).save(folder / "a.webp", lossless=True)
    (tmp_path / "p.txt").write_text("a\nlonger\nthe longest\n")
    common = ["--metrics", "oracle_score", "--card", "emoji"]
    report = evaluated(tmp_path, folder, *common, "--prompts-file", tmp_path / "p.txt")
    due = LongBright().score(tensor(pixels[[1, 2, 0]]), ["a", "longer", "the longest"]).mean()
    assert report["sets"][0]["metrics"]["oracle_score"]["value"] == pytest.approx(float(due), rel=1e-6)
    run = run_of(tmp_path / "run", pixels, ["x", "yy", "zzz"], [0] * 3, order=[2, 0, 1])
    assert open_pictures(run / "images").prompts == ["x", "yy", "zzz"]
    assert open_pictures(run / "results.jsonl").prompts == ["zzz", "x", "yy"]
    beside = evaluated(tmp_path, run / "images", *common)["sets"][0]["metrics"]["oracle_score"]
    inside = evaluated(tmp_path, run, "--metrics", "oracle_score")["sets"][0]["metrics"]["oracle_score"]
    assert beside["value"] == pytest.approx(inside["value"])


def test_diversity_is_compared_prompt_by_prompt(tmp_path, net):
    prompts, seeds = ["a", "a", "b", "b"], [0, 1, 0, 1]
    ours = run_of(tmp_path / "a", made(4), prompts, seeds)
    theirs = run_of(tmp_path / "b", np.repeat(made(2, 1), 2, 0), prompts, seeds)
    found = evaluated(tmp_path, ours, "--metrics", "diversity", "--against", theirs)
    assert found["sets"][1]["metrics"]["diversity"]["value"] == pytest.approx(0, abs=1e-6)
    c = found["comparison"]["metrics"]["diversity"]
    assert (c["pairs"], c["win_rate"]["wins"]) == (2, 2)
    assert c["difference"] == pytest.approx(found["sets"][0]["metrics"]["diversity"]["value"], abs=1e-6)


def test_features_are_made_once_and_kept_until_a_pixel_changes(tmp_path, net):
    folder, real = folder_of(tmp_path / "a", made(5)), folder_of(tmp_path / "real", made(6, 1))
    args = [folder, "--metrics", "frechet,precision_recall,kernel", "--reference", real]
    first = evaluated(tmp_path, *args)
    assert net.seen == 11
    assert evaluated(tmp_path, *args) == first
    assert net.seen == 11
    assert list((tmp_path / "cache" / "allaprima").glob("*.safetensors"))
    changed = made(5)
    changed[4, 0, 0, 0] ^= 128
    Image.fromarray(changed[4]).save(folder / "00004.png")
    second = evaluated(tmp_path, *args)
    assert net.seen == 16
    assert second["sets"][0]["pictures_sha256"] != first["sets"][0]["pictures_sha256"]
    assert second["sets"][0]["metrics"]["frechet"]["value"] != first["sets"][0]["metrics"]["frechet"]["value"]


def test_features_in_a_file_are_as_good_as_their_pictures_if_the_network_is_the_same(tmp_path, net, capsys):
    folder, real = folder_of(tmp_path / "a", made(5)), made(6, 1)
    rows = Pixels().features(tensor(real)).contiguous()
    save_file({"features": rows}, tmp_path / "mine.safetensors", {"network": "p1"})
    save_file({"features": rows}, tmp_path / "other.safetensors", {"network": "p2"})
    save_file({"features": rows[:, :3].contiguous()}, tmp_path / "narrow.safetensors")
    save_file({"weights": rows}, tmp_path / "weights.safetensors")
    args = [folder, "--metrics", "frechet", "--reference"]
    of_file = evaluated(tmp_path, *args, tmp_path / "mine.safetensors")
    of_folder = evaluated(tmp_path, *args, folder_of(tmp_path / "real", real))
    values = [r["sets"][0]["metrics"]["frechet"]["value"] for r in (of_file, of_folder)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert of_file["reference"]["network"] == "p1"
    for name, says in [
        ("other", "p2, pixels is p1"),
        ("narrow", "3 features a picture, pixels 5"),
        ("weights", "'features'"),
    ]:
        allaprima(*args, tmp_path / f"{name}.safetensors", "--out", tmp_path / "e.json", expect=2)
        assert says in said(capsys)
    allaprima(folder, "--metrics", "lpips", "--reference", tmp_path / "mine.safetensors", "--out", tmp_path, expect=2)
    assert "must be a folder, not features" in said(capsys)


def test_stdout_is_the_report_and_nothing_else(tmp_path, net, capsys):
    folder = folder_of(tmp_path / "a", made(4))
    out = tmp_path / "report.json"
    allaprima(folder, "--metrics", "preservation", "--reference", folder, "--json", "--out", out)
    stdout, stderr = capsys.readouterr()
    assert stdout == out.read_text()
    assert json.loads(stdout)["sets"][0]["metrics"]["preservation"]["value"] == pytest.approx(1)
    assert "preservation" in stderr and "4 pictures" in stderr


def test_the_bundled_judge_and_its_retrieval(tmp_path, monkeypatch, capsys):
    from allaprima.bundled.emoji import load_judge

    def encode(prompts):
        # Any text encoder will do: these are the judge's numbers, not its taste.
        return torch.stack([torch.randn(7, 384, generator=torch.Generator().manual_seed(len(p))) for p in prompts])

    prompts, pixels = ["cat, noto", "pizza, twemoji"], made(2, side=64)
    run = run_of(tmp_path / "run", pixels, prompts, [0, 1])
    monkeypatch.setattr("allaprima.models.cards.card.Card.known_concepts", lambda card: ["cat", "pizza", "sun"])
    monkeypatch.setattr(
        "allaprima.models.loading.pair.load_pair", lambda c: SimpleNamespace(student=SimpleNamespace(encode=encode))
    )
    found = evaluated(tmp_path, run, "--metrics", "judge,retrieval")["sets"][0]["metrics"]
    judge = load_judge()
    due = judge.score(tensor(pixels), judge.embed_texts(encode(prompts))).mean()
    assert found["judge"]["value"] == pytest.approx(float(due), rel=1e-5)
    assert found["retrieval"]["protocol"]["pool"] == 12, "concepts times the card's styles"
    small = run_of(tmp_path / "small", made(2), prompts, [0, 1])
    allaprima(small, "--metrics", "judge", "--out", tmp_path, expect=2)
    assert "the judge looks at 64x64 pixels, these pictures have 4x4" in said(capsys)


def test_composition_is_told_by_kind(tmp_path):
    """Drawn scenes, every fourth under another's caption: the report says how many of each kind are right, and how sure."""
    from allaprima.bundled.scenes.renderer import training_pair

    pairs = [training_pair(8, i) for i in range(40)]
    pictures = folder_of(tmp_path / "pictures", [(x * 255).round().astype("uint8") for _, x in pairs])
    captions = [pairs[(i + (i % 4 == 3)) % 40][0].caption() for i in range(40)]
    (tmp_path / "prompts.txt").write_text("".join(f"{c}\n" for c in captions))
    args = ("--metrics", "composition", "--card", "scenes", "--prompts-file", tmp_path / "prompts.txt")
    report = evaluated(tmp_path, pictures, *args)
    measured = report["sets"][0]["metrics"]["composition"]
    assert 0.7 < measured["mean_over_pictures"] <= 0.8
    assert sum(k["pictures"] for k in measured["kinds"].values()) == 40
    for k in measured["kinds"].values():
        assert k["interval"][0] <= k["value"] <= k["interval"][1]
    assert "mean over kinds" in measured["more"]


def test_a_card_and_prompts_are_painted_into_out_and_then_measured(tmp_path, net, monkeypatch):
    asked = []

    def paint(options):
        asked.append(options)
        if not options.out.exists():
            run_of(options.out, made(3), ["a", "b", "c"], range(5, 8))

    monkeypatch.setattr("allaprima.experiments.generate.generate_command", paint)
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    args = ["--prompts-file", tmp_path / "p.txt", "--metrics", "oracle_score", "--seed", 5, "--threshold", 0.5]
    allaprima(*args, "--out", tmp_path / "run")
    first = (tmp_path / "run" / "evaluation.json").read_bytes()
    allaprima(*args, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "evaluation.json").read_bytes() == first
    o = asked[0]
    assert (o.card, o.seed, o.threshold, o.images_per_prompt, o.resume, o.budget) == ("emoji", 5, 0.5, 1, True, None)
    assert json.loads(first)["sets"][0]["pictures"] == 3


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "no metrics: give --metrics"),
        (["--metrics", "frechett"], "Did you mean 'frechet'"),
        (["--metrics", "juge"], "Did you mean 'judge'"),
        (["--metrics", "lpips,lpips"], "given twice"),
        (["--metrics", "frechet"], "give --reference"),
        (["--metrics", "judge"], "give --card"),
        (["--metrics", "composition"], "give --detector with the folder of an OWLv2 model"),
        (["--metrics", "judge", "--card", "emoji"], "give --prompts-file"),
        (["--metrics", "clip_score"], "give --clip"),
        (["--metrics", "judge", "--card", "emojy"], "Did you mean 'emoji'"),
        (["--metrics", "diversity", "--prompts-file", "p.txt"], "'one' has 1"),
        (["--metrics", "diversity", "--prompts-file", "short.txt"], "1 prompts for the 2 pictures"),
        (["--metrics", "lpips", "--which", "drafts"], "which='drafts'"),
        (["--metrics", "lpips", "--reference", "pictures", "--which", "draft"], "and so no drafts"),
        (["--metrics", "lpips", "--which", "both", "--against", "pictures"], "give one"),
        (["--metrics", "lpips", "--reference", "empty"], "holds no pictures"),
        (["--metrics", "lpips", "--reference", "nowhere"], "nowhere is not a folder"),
        (["--metrics", "preservation,lpips", "--reference", "one"], "no partner in one: a picture of the name '00001'"),
        (["--metrics", "lpips", "--budget", "15"], "--budget is for painting"),
        (["--metrics", "lpips", "--batch-size", "0"], "batch_size=0"),
        (["--metrics", "lpips", "--out", "nowhere/e.json"], "nowhere, where --out goes, is not a folder"),
    ],
)
def test_bad_options_end_with_2_and_say_what_to_do(tmp_path, net, capsys, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "pictures", made(2))
    folder_of(tmp_path / "one", made(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    (tmp_path / "short.txt").write_text("one\n")
    allaprima("pictures", *args, expect=2)
    assert says in said(capsys)
    assert net.seen == 0
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--metrics", "judge"], "give PICTURES"),
        (["--metrics", "judge", "--prompts-file", "p.txt"], "Give --out FOLDER"),
        (["--metrics", "judge", "--prompts-file", "p.txt", "--out", "e.json"], "Give --out FOLDER"),
        (["--metrics", "frechet", "--prompts-file", "p.txt", "--out", "run"], "give --reference"),
    ],
)
def test_nothing_is_painted_for_options_that_cannot_be_measured(tmp_path, capsys, monkeypatch, args, says):
    monkeypatch.setattr("allaprima.experiments.generate.generate_command", lambda o: pytest.fail("painted"))
    monkeypatch.chdir(tmp_path)
    allaprima(*args, expect=2)
    assert says in said(capsys)


def results(tmp_path, *lines):
    run = run_of(tmp_path / "run", made(2), ["a", "b"], [0, 1])
    (run / "results.jsonl").write_text("".join(line + "\n" for line in lines))
    return run


GOOD = '{"prompt": "a", "seed": 0, "image": "images/00000.png"}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "b", "ima', 'results.jsonl, line 2: \'{"prompt": "b", "ima\' is not JSON'),
        ('["b"]', "line 2: '[\"b\"]' has no 'prompt'"),
        ('{"image": "images/00001.png"}', "has no 'prompt'"),
        ('{"prompt": "b"}', "line 2: image=None"),
        ('{"prompt": "b", "image": "images/7.png"}', "images/7.png is not there"),
        ('{"prompt": "b", "seed": "x", "image": "images/00001.png"}', "seed='x' is not a whole number"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path, net, capsys, line, says):
    run = results(tmp_path, GOOD, line)
    allaprima(run, "--metrics", "oracle_score", "--out", tmp_path, expect=2)
    assert says in said(capsys)


def test_a_row_that_failed_is_left_out_and_said(tmp_path, net, capsys):
    run = results(tmp_path, GOOD, '{"prompt": "b", "seed": 1, "image": null, "error": "too long"}', "")
    report = evaluated(tmp_path, run, "--metrics", "oracle_score")
    assert (report["sets"][0]["pictures"], report["sets"][0]["left_out"]) == (1, 1)
    assert report["sets"][0]["metrics"]["oracle_score"]["interval"] is None, "one prompt says nothing of its spread"
    assert "1 rows of" in said(capsys)
    allaprima(run, "--metrics", "oracle_score", "--which", "draft", "--out", tmp_path, expect=2)
    assert "painted by the teacher alone" in said(capsys)


def test_pictures_that_are_none_are_named_before_any_network_runs(tmp_path, net, capsys):
    folder = folder_of(tmp_path / "a", made(3))
    args = [folder, "--metrics", "lpips,frechet", "--reference", folder, "--out", tmp_path]
    whole = (folder / "00001.png").read_bytes()
    (folder / "00001.png").write_bytes(whole[: len(whole) // 2])
    allaprima(*args, expect=2)
    assert "00001.png cannot be read as a picture" in said(capsys)
    Image.fromarray(made(1, side=6)[0][:5]).save(folder / "00001.png")
    allaprima(*args, "--batch-size", 1, expect=2)
    assert "00001.png has 6x5 pixels, 00000.png 4x4: one size is due" in said(capsys)
    assert net.seen == 0


def test_what_is_not_plain_8_bit_is_refused_and_what_is_is_read_to_the_bit(tmp_path):
    pixels = made(1)[0]
    clear = np.concatenate([pixels, np.full((4, 4, 1), 255, np.uint8)], 2)
    Image.fromarray(clear).save(tmp_path / "opaque.png")
    assert np.array_equal(read_picture(tmp_path / "opaque.png").permute(1, 2, 0).numpy(), pixels)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_picture(tmp_path / "grey.png").numpy(), np.repeat(pixels[None, ..., 0], 3, 0))
    clear[1, 1, 3] = 254
    Image.fromarray(clear).save(tmp_path / "clear.png")
    with pytest.raises(SettingError, match="transparent places"):
        read_picture(tmp_path / "clear.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    with pytest.raises(SettingError, match="8 bits a channel"):
        read_picture(tmp_path / "deep.png")


def test_the_same_name_with_another_prompt_is_no_pair(tmp_path, net, capsys):
    ours, theirs = folder_of(tmp_path / "a", made(2)), run_of(tmp_path / "b", made(2, 1), ["one", "three"], [0, 1])
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    args = [ours, "--metrics", "oracle_score", "--card", "emoji", "--prompts-file", tmp_path / "p.txt"]
    allaprima(*args, "--against", theirs, "--out", tmp_path, expect=2)
    assert "picture '00001' shows 'two' in" in said(capsys)


def test_known_features_are_given_to_those_pictures_alone():
    net, pixels = Pixels(), torch.from_numpy(made(4)).permute(0, 3, 1, 2)
    rows = torch.arange(20.0).view(4, 5)
    known = CachedFeatures(net, pixels.split(3), rows)
    images = pixels.float() / 255
    assert torch.equal(known.features(images[[2, 0]]), rows[[2, 0]]) and net.seen == 0
    near = (images * (1 - 1e-4)).clamp(0, 1)
    assert torch.equal((near * 255).round(), pixels.float())
    assert torch.equal(known.features(near), net.features(near))
    mixed = torch.cat([images[:1], 1 - images[1:2]])
    assert torch.equal(known.features(mixed), net.features(mixed))
