"""Embeddings of networks, and cubes reduced to the plane: what the experiment looks at."""

import dataclasses

import pytest
import torch

from collage import runtime
from experiments import embeddings

CONFIG = dataclasses.replace(embeddings.PRESETS["tiny"], width=16)


def test_all_corners_of_a_square_stay_corners():
    """Turning a square into the plane that it lies in moves no corner inside."""
    assert embeddings.inside_after("principal components", 2, seed=0) == 0


def test_corners_do_not_count_as_inside_because_others_fall_on_them():
    """Two axes of a cube would leave four places for 256 corners; more than four lie on the outline."""
    assert 0.9 < embeddings.inside_after("principal components", 8, seed=0) < 1 - 4 / 256


@pytest.mark.parametrize("name", embeddings.REDUCERS)
def test_every_reducer_hides_corners_of_a_cube(name):
    """2^5 corners, all of them extreme: in the plane a quarter at least no longer are."""
    share = embeddings.inside_after(name, 5, seed=1)
    assert 8 / 32 <= share < 1 and (share * 32) % 1 == 0


def test_a_network_learns_and_its_views_are_of_the_embedding():
    x, y, z, t = embeddings.images(CONFIG)
    assert len(x) == CONFIG.points and len(z) == CONFIG.queries and len(y) + len(t) == 790
    net = embeddings.network(CONFIG, x, y, seed=0, epochs=20)
    with torch.no_grad():
        assert net.embed(z).shape == (CONFIG.queries, 16) and bool((net.embed(z) >= 0).all())
        assert (net.head(net.embed(z)).argmax(1) == t).double().mean() > 0.6
    one, other = (embeddings.network(CONFIG, x, y, seed, 0).head.weight for seed in (0, 1))
    assert not torch.equal(one, other)


def test_all_units_are_all_components():
    """With every coordinate both views are the same points, turned: the same share is inside."""
    found = embeddings.views(CONFIG, {"network": "untrained", "seed": 3}, torch.device("cpu"))
    shares = {(s["view"], s["d"]): s["inside"] for s in found["shares"]}
    assert shares["principal components", 16] == pytest.approx(shares["random units", 16], abs=0.03)
    assert shares["random units", 2] > 0.8 > shares["random units", 16]
    assert runtime.seed_for(3, "embeddings") != runtime.seed_for(4, "embeddings")
