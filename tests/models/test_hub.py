"""Hub ids as sources: a cache of our own, a hub that is played, and none at all."""

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import yaml
from huggingface_hub import constants, errors
from safetensors.torch import load_file
from tiny_folders import SIZE, VP, card, model, unet

from allaprima.core.errors import ModelError, UnsafeWeightsError
from allaprima.core.files import fingerprint
from allaprima.models.cards.card import load_card
from allaprima.models.cards.hub import REACH, HubSource, command, complete, fetched, here, lacking, within
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub that nobody may ask."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def asked(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)
    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    return folder


def placed(cache, name, folder):
    """A model's folder as huggingface_hub keeps it."""
    repository = cache / ("models--" + name.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    shutil.copytree(folder, repository / "snapshots" / "c0ffee")
    return repository / "snapshots" / "c0ffee"


def hub(monkeypatch, files, fetch=None):
    """A hub whose only repository holds `files`; `fetch` stands for the download."""
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=str(f)) for f in files], sha="c0ffee")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: info)
    if fetch is not None:
        monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)


def of_hub(tmp_path, name="acme/tiny", **student):
    """The card of `tiny_folders` with its teacher in the hub."""
    raw = yaml.safe_load((tmp_path / "made" / "card.yaml").read_text())
    raw["teacher"]["source"] = raw["student"]["source"] = name
    raw["student"] |= student
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
    return load_card(tmp_path)


@pytest.mark.parametrize(
    ("text", "is_hub"),
    [
        ("stabilityai/sdxl-turbo", ("stabilityai/sdxl-turbo", None, None)),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1", None)),
        ("a/b.c-d@v1:text/unet", ("a/b.c-d", "v1", "text/unet")),
        ("a/b:x.safetensors", ("a/b", None, "x.safetensors")),
        ("student", None), ("./a/b", None), ("/a/b", None), ("a/b/c", None), ("~/a", None),
        ("student/pytorch_lora_weights.safetensors", None),
    ],
)  # fmt: skip
def test_what_is_an_id(text, is_hub):
    found = HubSource.parse(text)
    assert (found and (found.id, found.revision, found.inside)) == is_hub
    assert found is None or str(found) == text


def test_a_cached_pair_is_loaded_and_nobody_is_asked(tmp_path, cache):
    card("sdxl", tmp_path / "made")
    own = load_pair(load_card(tmp_path / "made"))
    placed(cache, "acme/tiny", tmp_path / "made" / "teacher")
    pair = load_pair(of_hub(tmp_path))
    assert pair.teacher.fingerprint == own.teacher.fingerprint
    assert pair.student.vae is pair.teacher.vae


def test_a_folder_beside_the_card_comes_first(tmp_path, cache):
    card("sd", tmp_path / "made")
    shutil.move(tmp_path / "made" / "teacher", tmp_path / "acme" / "tiny")
    # Another model of that name in the cache, which fits as well.
    placed(cache, "acme/tiny", model("sd", tmp_path / "other", seed=7))
    read = of_hub(tmp_path)
    assert read.path("acme/tiny") == tmp_path / "acme" / "tiny"
    pair = load_pair(read)
    prints = [fingerprint(f / "unet") for f in (tmp_path / "acme" / "tiny", tmp_path / "other")]
    assert prints[0] != prints[1]
    assert pair.teacher.fingerprints["unet"] == pair.student.fingerprints["unet"] == prints[0]
    stored = load_file(tmp_path / "acme" / "tiny" / "unet" / "diffusion_pytorch_model.safetensors")
    assert pair.teacher.unet.conv_in.weight.equal(stored["conv_in.weight"])


@pytest.mark.parametrize("named", ["acme/whole", "acme/whole@v1", "acme/whole:inside"])
def test_a_whole_pipeline_in_the_cache_asks_nobody(tmp_path, cache, monkeypatch, named):
    """Of `family: any`: by its id, a revision, a folder inside; and what is lacking of it is seen."""
    model("sdxl", tmp_path / "made")
    there = placed(cache, "acme/whole", tmp_path / "made")
    (there.parents[1] / "refs" / "v1").write_text("c0ffee")
    if ":" in named:
        for part in list(there.iterdir()):
            (there / "inside").mkdir(exist_ok=True)
            shutil.move(part, there / "inside" / part.name)
        there = there / "inside"
    side = {"source": named, "guidance_scale": 1.0, "license": "mine"}
    raw = {
        "name": "whole", "family": "any", "description": "tiny", "height": SIZE, "width": SIZE,
        "student": {**side, "steps": 1}, "teacher": {**side, "steps": 2}, "oracle": {"kind": "none", "license": "none"},
    }  # fmt: skip
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
    asked = []
    monkeypatch.setattr(httpx2.Client, "send", lambda *a, **k: asked.append(a) or (_ for _ in ()).throw(OSError("no")))
    pipe = AdaptivePipeline.from_card(tmp_path)
    assert type(pipe.student.text).__name__ == "StableDiffusionXLPipeline"
    assert not asked
    (there / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert lacking(there, None) == ["unet/*.safetensors"]
    assert complete(HubSource.parse(named)) is None


def test_an_absent_one_fails_fast_with_the_command_and_the_place(tmp_path, cache, monkeypatch):
    card("sd", tmp_path / "made")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: time.sleep(60))
    assert REACH <= 4
    monkeypatch.setattr("allaprima.models.cards.hub.REACH", 1.0)
    start = time.monotonic()
    with pytest.raises(ModelError) as e:
        load_pair(of_hub(tmp_path))
    assert time.monotonic() - start < 2
    said = str(e.value)
    assert "hf download acme/tiny --include model_index.json --include 'unet/*' --include 'scheduler/*'" in said
    assert "--include 'vae/*'" in said
    assert "--exclude '*.bin'" in said
    assert str(cache / "models--acme--tiny") in said


def test_offline_is_honoured_by_the_environment(tmp_path):
    """Through the real library, in a process of its own."""
    code = (
        "from allaprima.models.cards.card import load_card; c = load_card('sdxl-lcm-lora');"
        "\ntry: c.path(c.student.lora)\nexcept Exception as e: print(type(e).__name__, e)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    env.pop("HF_HUB_CACHE", None)
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.startswith(
        "ModelError latent-consistency/lcm-lora-sdxl:pytorch_lora_weights.safetensors is not on this machine"
    )
    assert "HF_HUB_OFFLINE is set" in out
    assert str(tmp_path / "home" / "hub" / "models--latent-consistency--lcm-lora-sdxl") in out
    assert "hf download latent-consistency/lcm-lora-sdxl pytorch_lora_weights.safetensors" in out


def test_only_what_is_read_is_fetched(tmp_path, cache, monkeypatch):
    card("sd", tmp_path / "made")
    there = tmp_path / "made" / "teacher"
    (there / "safety_checker").mkdir()
    for more in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "unet/flax.msgpack",
                 "v1-5-pruned.safetensors", "safety_checker/model.safetensors"):  # fmt: skip
        (there / more).write_bytes(b"not to be read")
    files = [p.relative_to(there) for p in there.rglob("*") if p.is_file()]
    taken = []

    def download(id_, revision, allow_patterns, ignore_patterns):
        into = cache / "models--acme--tiny" / "snapshots" / "c0ffee"
        for f in files:
            if any(fnmatch.fnmatch(f, a) for a in allow_patterns) and not any(
                fnmatch.fnmatch(f, i) for i in ignore_patterns
            ):
                (into / f).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(there / f, into / f)
                taken.append(str(f))
        (into.parent.parent / "refs").mkdir(exist_ok=True)
        (into.parent.parent / "refs" / "main").write_text("c0ffee")

    hub(monkeypatch, files, download)
    load_pair(of_hub(tmp_path))
    assert {Path(f).parts[0] for f in taken} == {
        "model_index.json", "unet", "scheduler", "vae", "text_encoder", "tokenizer"
    }  # fmt: skip
    assert not [f for f in taken if f.endswith((".bin", ".msgpack")) or "fp16" in f]


def test_a_licence_that_must_be_accepted_is_said(tmp_path, cache, monkeypatch):
    answer = httpx2.Response(403, request=httpx2.Request("GET", "https://hub"))

    def gated(*args, **kwargs):
        raise errors.GatedRepoError("Access to model is restricted", response=answer)

    hub(monkeypatch, [], gated)
    with pytest.raises(ModelError, match=r"behind a licence .* https://huggingface.co/acme/tiny, then `hf auth login`"):
        fetched(HubSource("acme/tiny"), ("unet",))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.RevisionNotFoundError, r"acme/tiny has no revision 'v9': mend the card's source"),
        (errors.RepositoryNotFoundError, r"neither a folder beside the card nor a repository of the hub .*hf auth login"),
    ],
)
def test_a_mistaken_id_is_told_from_a_missing_network(cache, monkeypatch, error, says):
    def refused(*args, **kwargs):
        raise error("no", response=httpx2.Response(404, request=httpx2.Request("GET", "https://hub")))

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refused)
    with pytest.raises(ModelError, match=says) as e:
        fetched(HubSource("acme/tiny", "v9"), ("unet",))
    assert "not on this machine" not in str(e.value)


def test_a_folder_that_a_repository_lacks_is_named(cache, monkeypatch):
    def download(*args, **kwargs):
        (cache / "models--acme--tiny" / "snapshots" / "main").mkdir(parents=True)

    hub(monkeypatch, ["x.safetensors"], download)
    with pytest.raises(ModelError, match="acme/tiny holds no 'nowhere': mend the card's source"):
        fetched(HubSource("acme/tiny", None, "nowhere"))


def test_a_revision_is_its_own(tmp_path, cache):
    """Another branch in the cache doesn't stand for the one that is asked for; a commit is its own name."""
    there = placed(cache, "acme/tiny", unet_alone(tmp_path / "net"))
    assert here(HubSource("acme/tiny")) == there
    assert here(HubSource("acme/tiny", "v1")) is None
    assert here(HubSource("acme/tiny", "c0ffee")) == there
    other = there.parent / "decaf"
    shutil.copytree(there, other)
    (there.parents[1] / "refs" / "v1").write_text("decaf")
    assert here(HubSource("acme/tiny", "v1")) == other


def test_of_a_sharded_network_alone_every_shard_is_due(tmp_path, cache):
    there = placed(cache, "acme/net", unet_alone(tmp_path / "net"))
    assert complete(HubSource("acme/net")) == there
    (there / "diffusion_pytorch_model.safetensors").rename(there / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (there / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert lacking(there, None) == ["model-00002-of-00002.safetensors"]


def unet_alone(folder):
    unet(folder, cross_attention_dim=8)
    return folder


def test_pickles_alone_are_refused_before_anything_is_fetched(cache, monkeypatch):
    hub(monkeypatch, ["unet/config.json", "unet/diffusion_pytorch_model.bin", "vae/x.safetensors", "vae/x.bin"])
    with pytest.raises(UnsafeWeightsError, match=r"acme/tiny has unet/diffusion_pytorch_model.bin, a pickle"):
        fetched(HubSource("acme/tiny"), ("unet", "vae"))


@pytest.mark.parametrize("name", ["acme/tiny:model.ckpt", "lora.pt", "acme/tiny:lora.bin"])
def test_a_pickle_is_refused_by_its_name(tmp_path, cache, name):
    card("sd", tmp_path / "made")
    with pytest.raises(UnsafeWeightsError, match=r"is a pickle, which can run code"):
        of_hub(tmp_path).path(name)


def test_a_payload_never_runs(tmp_path, cache):
    """A pickle that writes a file when it is read, where weights are due: in the cache, and as the only weights."""
    card("sd", tmp_path / "made")
    there = placed(cache, "acme/tiny", tmp_path / "made" / "teacher")
    ran = tmp_path / "ran"
    (there / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    payload = f'cbuiltins\nexec\n(S\'__import__("pathlib").Path("{ran}").touch()\'\ntR.'.encode()
    (there / "unet" / "diffusion_pytorch_model.bin").write_bytes(payload)
    with pytest.raises(UnsafeWeightsError, match=r"diffusion_pytorch_model.bin, a pickle"):
        load_pair(of_hub(tmp_path))
    assert not ran.exists()
    import pickle

    pickle.loads(payload)  # noqa: S301
    assert ran.exists(), "the payload works, so that its absence means something"


def test_half_a_download_is_named(tmp_path, cache, monkeypatch):
    card("sd", tmp_path / "made")
    there = placed(cache, "acme/tiny", tmp_path / "made" / "teacher")
    folder = there / "unet"
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    shards = {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors",
              "conv_out.weight": "diffusion_pytorch_model-00002-of-00002.safetensors"}  # fmt: skip
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"here, but without unet/diffusion_pytorch_model-00002-of-00002.safetensors"):
        load_pair(of_hub(tmp_path))
    shutil.move(there, tmp_path / "acme" / "tiny")
    with pytest.raises(ModelError, match=r"00002-of-00002.safetensors is missing, one of 2 files"):
        load_pair(of_hub(tmp_path))


def test_networks_alone_and_weights_alone(tmp_path, cache):
    card("sd", tmp_path / "made")
    placed(cache, "acme/tiny", tmp_path / "made" / "teacher")
    unet(tmp_path / "net", cross_attention_dim=8)
    placed(cache, "acme/net", tmp_path / "net")
    by_folder = load_pair(of_hub(tmp_path, source=None, network="acme/net"))
    assert by_folder.student.fingerprints["unet"] != by_folder.teacher.fingerprints["unet"]
    assert by_folder.student.fingerprints["scheduler"] == by_folder.teacher.fingerprints["scheduler"]
    file = "acme/net:diffusion_pytorch_model.safetensors"
    by_file = load_pair(of_hub(tmp_path, source=None, network=file))
    for a, b in zip(by_file.student.unet.parameters(), by_folder.student.unet.parameters(), strict=True):
        assert a.equal(b)
        assert not a.is_meta
    unet(tmp_path / "other", cross_attention_dim=8, time_cond_proj_dim=4)
    placed(cache, "acme/other", tmp_path / "other")
    with pytest.raises(ModelError, match=r"doesn't fit the UNet2DConditionModel of .*'time_embedding.cond_proj.weight'"):
        load_pair(of_hub(tmp_path, source=None, network="acme/other:diffusion_pytorch_model.safetensors"))


def test_pairs_that_do_not_fit_are_named(tmp_path):
    from diffusers import AutoencoderKL, DDIMScheduler

    path = card("sd", tmp_path)
    raw = yaml.safe_load(path.read_text())
    other = tmp_path / "other"

    def refused(says, **student):
        path.write_text(yaml.safe_dump({**raw, "student": {**raw["student"], "source": "other", **student}}))
        with pytest.raises(ModelError, match=says):
            load_pair(load_card(path))
        shutil.rmtree(other)

    DDIMScheduler(**VP).save_pretrained(other / "scheduler")
    unet(other / "unet", cross_attention_dim=12)
    refused("reads prompts of 12 numbers a token, the teacher of 8")
    model("sd", other)
    AutoencoderKL(block_out_channels=(4,), latent_channels=8, norm_num_groups=2).save_pretrained(other / "vae")
    refused("network reads latents of 4 channels, its autoencoder makes 8", share=["text_encoder", "tokenizer"])
    model("sd", other)
    shutil.rmtree(other / "vae")
    AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, norm_num_groups=2, sample_size=SIZE, scaling_factor=0.5,
    ).save_pretrained(other / "vae")  # fmt: skip
    refused(
        r"scaling_factor of the student's autoencoder is 0.5, of the teacher's 0.18215", share=["text_encoder", "tokenizer"]
    )


def test_an_unknown_family_names_the_known_and_the_fallback(tmp_path):
    raw = yaml.safe_load(card("sd", tmp_path).read_text())
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({**raw, "family": "pixart"}))
    with pytest.raises(ModelError, match=r"'pixart': sd, sdxl, sd3, .*family: any"):
        load_pair(load_card(tmp_path))


def test_within_returns_raises_and_gives_up():
    assert within(1, lambda: 3) == 3
    with pytest.raises(ValueError, match="so"):
        within(1, lambda: int("so"))
    with pytest.raises(TimeoutError):
        within(0.01, lambda: time.sleep(1))


def test_the_command_is_the_real_tools(cache):
    """Its own parser takes it, as far as asking the hub."""
    words = command(HubSource("acme/tiny", "v1", None), ("unet",)).replace("'", "").split()
    assert words[:5] == ["hf", "download", "acme/tiny", "--revision", "v1"]
    tool = Path(sys.executable).with_name("hf")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    said = subprocess.run([tool, *words[1:]], env=env, capture_output=True, text=True)
    assert "No such option" not in said.stdout + said.stderr
    assert said.returncode == 1, "offline, and so neither done nor misunderstood (2)"
