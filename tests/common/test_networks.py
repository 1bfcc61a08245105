"""Stacks, flat buffers and still statistics against plain torch."""

import pytest
import torch
import torch.nn.functional as F

from collage.common.networks import Stack, forward, frozen_batch_statistics, mlp
from collage.sam import Flat


def test_stack_equals_torch_sgd():
    g = torch.Generator().manual_seed(0)
    start = [t.double() for t in mlp([4, 6, 2], 3, g)]
    x = torch.randn(7, 4, generator=g, dtype=torch.float64)
    y = torch.randn(7, 2, generator=g, dtype=torch.float64)

    def losses(params):
        return ((forward(params, x) - y) ** 2).mean((1, 2))

    nets = Stack(
        start,
        lr=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
        momentum=0.9,
        weight_decay=1e-2,
    )
    for _ in range(4):
        nets.step(losses)
    for k in range(3):
        layers = [torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)]
        net = torch.nn.Sequential(*layers).double()
        for p, t in zip(net.parameters(), start, strict=True):
            p.data = t[k].T.clone() if p.dim() == 2 else t[k, 0].clone()
        sgd = torch.optim.SGD(net.parameters(), lr=0.1 * (k + 1), momentum=0.9, weight_decay=1e-2)
        for _ in range(4):
            sgd.zero_grad()
            F.mse_loss(net(x), y).backward()
            sgd.step()
        mine = torch.cat([t.detach()[k].T.reshape(-1) for t in nets.params])
        theirs = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_params_are_views_of_the_buffer():
    nets = Stack([torch.zeros(2, 3, 4), torch.zeros(2, 5)])
    nets.flat.copy_(torch.arange(34.0).view(2, 17))
    assert nets.params[1][1].tolist() == [29, 30, 31, 32, 33]


def test_bad_input():
    with pytest.raises(ValueError, match="params"):
        Stack([torch.ones(2), torch.ones(())])
    with pytest.raises(ValueError, match="lr"):
        Stack([torch.ones(2, 1)], lr=-0.1)
    with pytest.raises(ValueError, match="dtypes"):
        Flat([torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1).double())])


def test_flat_takes_in_gradients_that_were_put_elsewhere():
    net = torch.nn.Linear(3, 2)
    flat = Flat(list(net.parameters()))
    assert not flat.collect()
    net.zero_grad()  # drops the views
    net(torch.ones(1, 3)).sum().backward()
    assert flat.collect()
    assert flat.whole.grad.tolist() == [1.0] * 8


@pytest.mark.parametrize("momentum", [0.1, None])
def test_frozen_batch_statistics_even_when_the_forward_fails(momentum):
    norm = torch.nn.BatchNorm1d(2, momentum=momentum)
    kept = {k: v.clone() for k, v in norm.state_dict().items()}
    with frozen_batch_statistics():
        out = norm(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        with pytest.raises(ValueError):
            norm(torch.ones(3))
    torch.testing.assert_close(out.mean(0), torch.zeros(2))
    assert all(torch.equal(v, kept[k]) for k, v in norm.state_dict().items())
    norm(torch.ones(2, 2))
    assert norm.num_batches_tracked == 1


def test_an_abandoned_context_is_closed():
    norm = torch.nn.BatchNorm1d(2)
    still = frozen_batch_statistics()
    still.__enter__()
    norm(torch.ones(2, 2))
    assert norm.num_batches_tracked == 0
    del still
    norm(torch.ones(2, 2))
    assert norm.num_batches_tracked == 1
