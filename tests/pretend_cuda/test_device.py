"""The pretended GPU itself: faults that are planted are found, and what is right is let through."""

import pytest
import torch

from collage.common.graph import Captured
from tests.pretend_cuda import installed

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not installed(), reason="about the pretended GPU"),
]


@pytest.fixture
def watch():
    from tests.pretend_cuda.watch import WATCH

    WATCH.clear()
    yield WATCH
    assert WATCH.graph is None and WATCH.side == 0


def replayed(function, *inputs, generators=()):
    """Run, recorded and replayed once: what the replay returned."""
    captured = Captured(function, generators, torch.device("cuda"))
    captured(*inputs)
    return captured(*inputs)


def test_a_generator_that_is_not_registered(watch):
    g = torch.Generator("cuda").manual_seed(0)

    def draw():
        return torch.rand(3, generator=g, device="cuda")

    with pytest.raises(RuntimeError, match="generator: not registered"):
        replayed(draw)
    state, first = g.get_state(), draw()
    g.set_state(state)
    captured = Captured(draw, [g], torch.device("cuda"))
    assert torch.equal(captured(), first)
    assert not torch.equal(captured().clone(), captured()), "every replay draws anew"


def test_memory_that_was_freed(watch):
    box = [torch.ones(3, device="cuda")]
    captured = Captured(lambda: box[0] * 2, device=torch.device("cuda"))
    captured(), captured()
    box[0] = torch.zeros(3, device="cuda")
    with pytest.raises(RuntimeError, match="freed after the capture"):
        captured()


WAITING = {
    "item": lambda x: x * x.sum().item(),
    "branch": lambda x: -x if x.sum() > 0 else x,
    "tolist": lambda x: x.tolist(),
    "mask": lambda x: x[x > 1],
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "solve": lambda x: torch.linalg.solve(x.diag(), x),
    "eigh": lambda x: torch.linalg.eigh(x.diag())[0],
    "list": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "to": lambda x: x + torch.ones(3).to(x.device),
    "back": lambda x: x.cpu(),
    "number": lambda x: x.clone().index_put_((torch.zeros(1, device="cuda").long(),), torch.ones(())),
    "repeat": lambda x: x.repeat_interleave(torch.ones(3, device="cuda").long()),
}  # fmt: skip


@pytest.mark.parametrize("name", WAITING)
def test_a_wait_or_a_copy_inside_a_capture(name, watch):
    x = torch.arange(1.0, 4.0, device="cuda")
    WAITING[name](x)
    assert watch.waits, "outside a graph it is counted"
    before = x.clone()
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        replayed(WAITING[name], x)
    assert torch.equal(x, before)


def test_devices_that_do_not_match(watch):
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    for wrong in (lambda: there + here, lambda: torch.cat([there, here]), lambda: here @ there,
                  lambda: torch.where(there > 0, there, here), lambda: there.add_(here)):  # fmt: skip
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="'cpu' device type for generator"):
        torch.rand(3, generator=torch.Generator("cuda"))
    assert torch.equal(there * torch.tensor(2.0), there + 1), "a number of the host is a constant"


def test_a_capture_runs_nothing(watch):
    total, seen = torch.zeros(2, device="cuda"), []

    def add():
        seen.append(total.add_(1) * 2)
        return seen[-1]

    captured = Captured(add, device=torch.device("cuda"))
    captured()
    captured._record()
    assert total.tolist() == [1, 1] and seen[1].isnan().all()
    assert captured().tolist() == [4, 4] and total.tolist() == [2, 2] and watch.replays == 1
    with pytest.raises(RuntimeError, match="default stream"):
        torch.cuda.CUDAGraph().begin()


def test_a_capture_leaves_running_statistics(watch):
    """torch does not say that a norm writes them."""
    norm, x = torch.nn.BatchNorm1d(2, device="cuda"), torch.ones(4, 2, device="cuda")
    captured = Captured(lambda x: norm(x).detach())
    captured(x)
    captured._record()
    assert torch.allclose(norm.running_mean.cpu(), torch.tensor([0.1, 0.1]))
    captured(x)
    assert torch.allclose(norm.running_mean.cpu(), torch.tensor([0.19, 0.19]))


def test_what_is_counted(watch):
    x = torch.ones(4, 4, device="cuda")
    watch.clear()
    (x.T @ x).relu()[1:].view(-1)
    assert (watch.launches, watch.waits.total(), watch.copies) == (2, 0, 0)
    x.sum().item(), x.cpu(), torch.ones(3).to("cuda")
    assert (watch.waits.total(), watch.copies) == (3, 2)
    assert {where for _, where in watch.waits} == {"elsewhere"}


def test_products_are_rounded_where_tf32_is_allowed(watch):
    x = torch.full((2, 2), 1 + 2.0**-12)
    try:
        torch.set_float32_matmul_precision("high")
        rounded = (x.cuda() @ torch.eye(2).cuda()).cpu()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(rounded, torch.ones(2, 2)) and torch.equal(
        (x.cuda() @ torch.eye(2).cuda()).cpu(), x
    )


def test_random_numbers_are_those_of_the_seed(watch):
    torch.manual_seed(3)
    first = torch.rand(3, device="cuda")
    with torch.random.fork_rng(["cuda"]):
        torch.rand(5, device="cuda")
    following = torch.rand(3, device="cuda")
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3, device="cuda"), first)
    assert torch.equal(torch.rand(3, device="cuda"), following)
