"""What a GPU's settings may not change: answers that are proofs, records, how ranks find a device."""

import pytest
import torch

from collage import convex_hull, runtime
from collage.convex_hull.fast import prices
from collage.convex_hull.frame import Cloud
from tests.gpu.works import normal
from tools import provenance

pytestmark = pytest.mark.cuda


@pytest.fixture
def flags():
    """All precision flags, put back."""
    yield
    for name in ("cuda.matmul", "mkldnn.matmul"):
        owner = torch.backends
        for part in name.split("."):
            owner = getattr(owner, part)
        if hasattr(owner, "fp32_precision"):
            owner.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


def sphere():
    """Queries a hair off a fine hull, with the answers of float64 on the CPU."""
    points = normal(3000, 3, dtype=torch.float64)
    points = points / points.norm(dim=1, keepdim=True)
    near = convex_hull.nearest(points, 3 * normal(60, 3, seed=1, dtype=torch.float64)).point
    queries = torch.cat([near * (1 - 1e-5), near * (1 + 1e-5)])
    return points, queries, convex_hull.membership(points, queries).inside


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_hull_answers_do_not_depend_on_tf32(precision, flags, monkeypatch):
    monkeypatch.setattr(prices, "SMALL", 0)  # float32 products propose, however few the points
    points, queries, inside = sphere()
    torch.set_float32_matmul_precision(precision)
    found = convex_hull.membership(points.cuda(), queries.cuda())
    assert torch.equal(found.inside.cpu(), inside)
    convex_hull.verify(found, points.cuda(), queries.cuda())


def test_hull_margins_follow_the_flag(flags):
    cloud = Cloud(normal(200, 3, dtype=torch.float64))
    margins = {}
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        margins[precision] = float(prices.Prices(cloud, [200]).error)
    assert margins["high"] == 2**13 * margins["highest"]
    assert margins["medium"] >= margins["high"]


def test_a_record_is_written_under_any_flags(flags):
    settings = {"config": {"x": 1}, "seeds": [0], "repeats": 1}
    assert provenance.record({}, **settings)["tf32"] is False
    torch.set_float32_matmul_precision("high")
    assert provenance.record({}, **settings)["tf32"] is True
    torch.set_float32_matmul_precision("highest")
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # the old flag cannot be read any more
        assert provenance.record({}, **settings)["tf32"] is True
        assert runtime.product_precision() == "tf32"


def test_two_ranks_on_one_gpu_compute_on_the_cpu(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda how, **_: used.append(how))
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with runtime.ranks() as (rank, world, device):
        assert (rank, world, device.type) == (1, 2, "cpu")
    with pytest.raises(ValueError, match="a GPU for each"), runtime.ranks("cuda"):
        pass
    for name, value in {
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 1,
    }.items():  # the other on another machine
        monkeypatch.setenv(name, str(value))
    with runtime.ranks() as (_, _, device):
        assert device.type == "cuda"
    assert used == ["gloo", "nccl"]
