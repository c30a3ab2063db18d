"""Curvature against closed forms: a line, arcs, one dimension, closed paths; the plane of principal components."""

import math

import numpy as np
import pytest
import torch

from allaprima.analysis.geometry import Trajectories, curvature, deviations, gram, plane
from allaprima.core.errors import SettingError


def arc(angle, radius=2.0, n=41, dim=7, offset=100.0):
    """Points of an arc in a random plane of `dim` dimensions, far from the origin."""
    t = torch.linspace(-angle / 2, angle / 2, n, dtype=torch.float64)
    flat = radius * torch.stack([t.sin(), t.cos()], 1)
    g = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(dim, 2, generator=g, dtype=torch.float64)).Q
    return flat @ axes.T + offset


@pytest.mark.parametrize("angle", [0.3, 1.0, math.pi / 2, math.pi])
def test_an_arc_has_its_sagitta(angle):
    sagitta = 2.0 * (1 - math.cos(angle / 2))
    assert curvature(gram(arc(angle)).numpy()) == pytest.approx(sagitta, rel=1e-6)


def test_a_line_has_none_at_any_speed_and_anywhere():
    t = torch.tensor([0.0, 0.1, 0.11, 0.7, 1.0], dtype=torch.float64)[:, None]
    line = 50 + t * torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.float64)
    assert curvature(gram(line).numpy()) == pytest.approx(0, abs=1e-6)


def test_one_dimension_has_none_even_past_the_ends_of_the_chord():
    path = torch.tensor([0.0, 5.0, -3.0, 1.0], dtype=torch.float64)[:, None]
    assert curvature(gram(path).numpy()) == pytest.approx(0, abs=1e-6)


def test_the_distance_is_the_interior_points_to_the_chord_not_to_the_origin_or_the_ends():
    path = torch.tensor([[1.0, 1.0], [2.0, 4.0], [5.0, 1.0], [9.0, 1.0]], dtype=torch.float64)
    assert deviations(gram(path).numpy()) == pytest.approx([0, 3, 0, 0], abs=1e-6)


def test_a_closed_path_is_measured_from_its_point():
    path = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert curvature(gram(path).numpy()) == pytest.approx(5)


def test_part_of_the_points_is_measured_alone_and_in_batches():
    both = torch.stack([torch.cat([arc(1.0), arc(2.0)]), torch.cat([arc(0.5), arc(math.pi)])])
    inner = gram(both).numpy()
    expected = [2 * (1 - math.cos(a / 2)) for a in (1.0, 0.5)]
    assert curvature(inner, 0, 40) == pytest.approx(expected, rel=1e-6)
    paths = Trajectories(inner, np.arange(41.0), np.arange(41.0))
    assert paths.student() == pytest.approx(expected, rel=1e-6)
    assert paths.teacher() == pytest.approx([2 * (1 - math.cos(1.0)), 2.0], rel=1e-6)
    assert paths.chord() == pytest.approx([4 * math.sin(1.0), 4.0], rel=1e-6)
    assert paths.student_to_end()[:, 0] == pytest.approx((both[:, 0] - both[:, -1]).norm(dim=1).numpy(), rel=1e-6)
    assert paths.by_time().shape == (2, 41)


def test_the_plane_keeps_distances_of_flat_paths_and_says_what_it_shows():
    flat = arc(2.0, n=9)
    where, share = plane(gram(flat).numpy())
    mine = np.linalg.norm(where[:, None] - where[None], axis=-1)
    assert mine == pytest.approx(torch.cdist(flat, flat).numpy(), abs=1e-5)
    assert share == pytest.approx(1)
    cube = torch.eye(4, dtype=torch.float64)  # A simplex: three equal directions, of which two are shown.
    assert plane(gram(cube).numpy())[1] == pytest.approx(2 / 3)


def test_no_points_are_refused():
    with pytest.raises(SettingError, match="T of 1 or more"):
        gram(torch.zeros(0, 3))
