"""Partitions: sizes, cuts by hand, one route alone and in a batch, files that are refused by name."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from allaprima.core.errors import ModelError, SettingError
from allaprima.models.multi_student.partition import (
    check_sizes,
    fit_balanced_kmeans,
    fit_pca_median,
    fit_random,
    partition_fingerprint,
    pool,
)
from allaprima.models.multi_student.partition_file import load_partition, save_partition

FITS = {"pca_median": fit_pca_median, "balanced_kmeans": fit_balanced_kmeans, "random": fit_random}


def prompts(n, dim=6, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, dim + 1)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(8, 70), students=st.integers(1, 8), seed=st.integers(0, 999), method=st.sampled_from(sorted(FITS)))
def test_shares_of_the_training_prompts_are_equal_to_within_one(n, students, seed, method):
    if method == "pca_median":
        students = 1 << (students.bit_length() - 1)
    x = prompts(n, seed=seed)
    sizes = check_sizes(FITS[method](x, students), x)
    assert len(sizes) == students
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1


def test_pca_median_by_hand():
    """Means are 0, the sum of x y is 0 and x varies most: the axes are x and y. Median of x: 0; of y where x < 0:
    (.2 + 2.2) / 2, where x > 0: (-2.2 - .2) / 2. Of all y it is 0: cut there, the third and the seventh would move."""
    x = torch.tensor([[-12, -3.2], [-12, 2.2], [-4, 0.2], [-4, 2.8], [12, 3.2], [12, -2.2], [4, -0.2], [4, -2.8]])
    fitted = fit_pca_median(x, 4)
    torch.testing.assert_close(fitted.directions, torch.tensor([[1.0, 0], [0, 1], [0, 1]]).double(), atol=1e-6, rtol=0)
    assert fitted.thresholds.tolist() == pytest.approx([0, 1.2, -1.2], abs=1e-6)
    assert fitted.route(x).tolist() == [0, 1, 0, 1, 3, 2, 3, 2]
    assert fit_pca_median(x, 2).route(x).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert fit_pca_median(x, 1).route(x).tolist() == [0] * 8


def test_pca_axes_go_on_for_eight_students():
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1])] * 3) * torch.tensor([4.0, 2, 1])
    assert fit_pca_median(corners, 8).route(corners).tolist() == list(range(8))


def test_kmeans_finds_clusters_that_the_first_axis_cuts_through():
    """Three tight clusters of 20 along x, and each of two points far apart along y: k-means goes by cluster."""
    g = torch.Generator().manual_seed(1)
    corners = torch.tensor([[0.0, 0], [6, 1], [1, 7]]).repeat_interleave(20, 0)
    x = corners + 0.1 * torch.randn(60, 2, generator=g)
    route = fit_balanced_kmeans(x, 3).route(x).reshape(3, 20)
    assert bool((route == route[:, :1]).all())
    assert set(route[:, 0].tolist()) == {0, 1, 2}


def test_kmeans_is_at_least_as_tight_as_the_median_of_the_first_axis():
    """Two rows: the first axis runs along them, so its median cuts through both, the means find them."""
    g = torch.Generator().manual_seed(2)
    x = torch.stack([torch.linspace(-2, 2, 30).repeat(2), torch.tensor([-1.15, 1.15]).repeat_interleave(30)], 1)
    x = x + 0.01 * torch.randn(60, 2, generator=g)

    def spread(route):
        return sum(float((x[route == k] - x[route == k].mean(0)).square().sum()) for k in (0, 1))

    means, median = fit_balanced_kmeans(x, 2).route(x), fit_pca_median(x, 2).route(x)
    assert spread(means) < 0.9 * spread(median)
    assert len(set(means[:30].tolist())) == len(set(means[30:].tolist())) == 1


def test_kmeans_cuts_across_the_line_between_its_means():
    x = prompts(50).double()
    fitted = fit_balanced_kmeans(x, 2, restarts=0)
    right = fitted.route(x) == 1
    between = x[right].mean(0) - x[~right].mean(0)
    assert float(torch.cosine_similarity(between, fitted.directions[0], dim=0)) == pytest.approx(1, abs=1e-9)


def test_random_shares_have_no_meaning_and_depend_on_the_seed():
    x = prompts(400)
    one, again, other = (fit_random(x, 2, seed).route(x) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert 100 < int((one != other).sum()) < 300
    meaning = fit_pca_median(x, 2).route(x)
    assert abs(float((one == meaning).double().mean()) - 0.5) < 0.1


@pytest.mark.parametrize("method", sorted(FITS))
def test_a_route_is_the_same_alone_in_a_batch_reversed_and_from_its_file(method, tmp_path):
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(33, 5, 6, generator=g) * torch.arange(1, 7)
    hidden[:, 3:] *= (torch.rand(33, 2, 1, generator=g) > 0.5).float()
    fitted = FITS[method](hidden, 4)
    save_partition(fitted, tmp_path / "partition.safetensors")
    loaded = load_partition(tmp_path / "partition.safetensors")
    new = torch.cat([hidden, torch.randn(33, 5, 6, generator=g) * 4])
    together = fitted.route(new)
    assert set(together.tolist()) == {0, 1, 2, 3}
    assert torch.equal(together, torch.cat([fitted.route(new[i : i + 1]) for i in range(66)]))
    assert torch.equal(together, fitted.route(new.flip(0)).flip(0))
    assert torch.equal(together, fitted.route(pool(new)))
    assert torch.equal(together, loaded.route(new))
    assert (loaded.method, loaded.students) == (method, 4)
    assert partition_fingerprint(loaded) == partition_fingerprint(fitted) != partition_fingerprint(FITS[method](hidden, 2))
    assert list(tmp_path.iterdir()) == [tmp_path / "partition.safetensors"]


def test_the_mean_of_live_tokens_is_what_is_routed():
    hidden = torch.tensor([[[1.0, 2], [3, 4], [0, 0]], [[0, 0], [0, 0], [0, 0]]])
    assert pool(hidden).tolist() == [[2, 3], [0, 0]]


@pytest.mark.parametrize("method", sorted(FITS))
def test_a_student_without_prompts_is_named(method):
    with pytest.raises(SettingError, match=r"student \d of 4 .* none of the 8 prompts"):
        FITS[method](torch.ones(8, 3), 4)
    with pytest.raises(SettingError, match=r"student 3 of 4 .* none of the 3 prompts"):
        FITS[method](prompts(3), 4)
    with pytest.raises(SettingError, match="nan"):
        FITS[method](prompts(8).log(), 4)


def test_two_prompts_many_times_cannot_feed_four_students():
    two = torch.tensor([[0.0, 0], [1, 0]]).repeat(4, 1)
    with pytest.raises(SettingError, match=r"student 1 of 4 .* none of the 8 prompts"):
        fit_pca_median(two, 4)
    with pytest.raises(SettingError, match=r"student \d of 4 .* none of the 8 prompts"):
        fit_random(two, 4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fit_pca_median(prompts(9), 3), r"students=3 .*1, 2, 4, 8"),
        (lambda: fit_random(prompts(9), 0), "students=0"),
        (lambda: fit_pca_median(prompts(9), 2).route(prompts(2, dim=7)), "7 dimensions.* fitted on 6"),
        (lambda: fit_pca_median(prompts(9), 2).route(torch.arange(3)), r"floating point \(N, L, D\)"),
    ],
)
def test_what_cannot_be_routed_is_named(call, says):
    with pytest.raises(SettingError, match=says):
        call()


def test_files_that_are_no_partition_are_refused_by_name(tmp_path):
    path = tmp_path / "partition.safetensors"
    fitted = fit_pca_median(prompts(40), 4)
    save_partition(fitted, path)
    whole, tensors = path.read_bytes(), {k: v.clone() for k, v in load_file(path).items()}

    def refused(says):
        with pytest.raises(ModelError, match=says) as caught:
            load_partition(path)
        assert "partition.safetensors" in str(caught.value)

    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused("cannot be read")

    def header(**changes):
        return {"partition": json.dumps({"schema": 1, "method": "pca_median", "students": 4, **changes})}

    save_file(tensors, path)
    refused("header says None")
    save_file(tensors, path, header(schema=2))
    refused("schema 2, this version reads 1")
    for changes in ({"students": 3}, {"method": "by_length"}, {"method": "random"}, {"students": "4"}):
        save_file(tensors, path, header(**changes))
        refused("can't be made")
    for broken in ([[1, 1], [-1, -2], [-3, -4]], [[1, 2], [0, -2], [-3, -4]], [[1, 2], [-1, -2], [-3, -3]]):
        save_file({**tensors, "children": torch.tensor(broken)}, path, header())
        refused("can't be made")
    save_file({**tensors, "thresholds": tensors["thresholds"] * float("nan")}, path, header())
    refused("can't be made")
    path.unlink()
    refused("cannot be read")
