"""The gradient that is written out, beside autograd's of `core.loss`."""

import pytest
import torch

from collage import runtime
from collage.nbeats import Ensemble, core, grid
from collage.nbeats.fast.gradient import Gradient, members_in_memory


def batches(g, dtype=torch.float64):
    """Windows of 12 points and targets of 4 for 9 members, some of them masked."""
    x, y = (1 + torch.rand(9, 9, n, generator=g, dtype=dtype) for n in (12, 4))
    seen = torch.arange(12) >= torch.randint(0, 12, (9, 9, 1), generator=g)
    known = torch.arange(4) <= torch.randint(0, 4, (9, 9, 1), generator=g)
    return x * seen, seen, y * known, known


@pytest.mark.parametrize("stacks", [[("trend", 5), ("seasonality", 7)], [("generic", 6)] * 3,
                                    [("generic", 4), ("trend", 3)]])  # fmt: skip
@pytest.mark.parametrize("setting", [{}, {"layers": 1}, {"blocks": 2}, {"blocks": 1}])
def test_the_gradient_is_what_autograd_says(stacks, setting):
    """All losses and lookbacks at once, with padded windows and targets; buffers are used again."""
    members = grid(4, lookbacks=(1, 2, 3), seeds=1)
    e = Ensemble(members, 4, stacks=stacks, **setting).double()
    gradient, g = Gradient(e.networks, e.weights, 9, at_once=4), torch.Generator().manual_seed(0)
    for _ in range(2):
        batch = batches(g)
        losses, slopes = gradient(*batch, 2)
        plain = core.loss(e.networks, e.weights, *batch, 2)
        (autograd,) = torch.autograd.grad(plain.sum(), e.weights)
        assert torch.allclose(losses, plain, rtol=1e-12)
        assert autograd.abs().max() > 1e-3
        assert (slopes - autograd).abs().max() <= 1e-12 * autograd.abs().max()


@pytest.mark.parametrize(("product", "near"), [(torch.float64, 1e-5), (torch.bfloat16, 0.03)])
def test_layers_may_multiply_in_another_dtype(product, near):
    members = grid(4, lookbacks=(1, 2, 3), seeds=1)
    stacks = [("generic", 16), ("trend", 16), ("seasonality", 16)]
    e = Ensemble(members, 4, stacks=stacks)
    x, _, y, _ = batches(torch.Generator().manual_seed(0), torch.float32)
    x, y = x + 1, y + 1  # without zeros
    batch = x, torch.ones_like(x, dtype=torch.bool), y, torch.ones_like(y, dtype=torch.bool)
    exact, expected = (t.clone() for t in Gradient(e.networks, e.weights, 9)(*batch))
    losses, slopes = Gradient(e.networks, e.weights, 9, at_once=4, product=product)(*batch)
    assert losses.dtype == slopes.dtype == torch.float32
    assert torch.allclose(losses, exact, rtol=near)
    if product == torch.bfloat16:  # a slope that turns its sign is another one
        assert torch.cosine_similarity(slopes, expected, dim=1).min() > 0.9
    else:
        assert (slopes - expected).norm() < near * expected.norm()


# The stacks of the paper's interpretable networks, and of its generic ones, for monthly series.
TREND, GENERIC = [("trend", 256), ("seasonality", 2048)], [("generic", 512)] * 30


@pytest.mark.parametrize(("stacks", "blocks", "fit"), [(TREND, 3, True), (GENERIC, 1, False)])
def test_members_that_a_gpu_has_no_memory_for(stacks, blocks, fit):
    """180 members of the paper's size at once are more than 80 GB; so many fewer are not."""
    shapes = core.shapes(stacks, 4, 126, 18)
    free = 72e9  # beside the weights
    size = sum(i * o for stack in shapes for i, o in stack)
    left = sum(blocks * 1024 * (i + o) for stack in shapes for i, o in stack[::2])
    assert 180 * 4 * (6 * size + left) > free
    if not fit:  # what they keep is too much already
        with pytest.raises(
            ValueError, match=r"members: got 180, .* wanted at most (\d+) for"
        ) as said:
            members_in_memory(shapes, blocks, 1024, 180, free)
        most = int(str(said.value).split("wanted at most ")[1].split()[0])
        assert members_in_memory(shapes, blocks, 1024, most, free) >= 1
        with pytest.raises(ValueError, match="wanted at most"):
            members_in_memory(shapes, blocks, 1024, most + 1, free)
        return
    at_once = members_in_memory(shapes, blocks, 1024, 180, free)
    assert 1 <= at_once < 180
    assert 180 * 16 * size + at_once * 4 * (2 * size + left) < free
    assert members_in_memory(shapes, blocks, 1024, 180, 10 * free) == 180


@pytest.mark.cuda
def test_members_go_through_in_the_memory_there_is(monkeypatch):
    e = Ensemble(grid(4, lookbacks=(1, 2, 3), seeds=1), 4, stacks=[("trend", 5), ("generic", 6)],
                 device="cuda")  # fmt: skip
    batch = [t.to("cuda") for t in batches(torch.Generator().manual_seed(0), torch.float32)]
    whole = Gradient(e.networks, e.weights, 9)
    assert len(whole.parts) == 1
    monkeypatch.setattr(runtime, "free_memory", lambda device: 1.5e5)
    few = Gradient(e.networks, e.weights, 9)
    assert len(few.parts) > 1
    for a, b in zip(few(*batch, 2), whole(*batch, 2), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(runtime, "free_memory", lambda device: 1e3)
    with pytest.raises(ValueError, match=r"members: got 9, .* wanted at most 0 for"):
        Gradient(e.networks, e.weights, 9)
