"""SAM's captured step: what it reads stays where it is."""

import gc

import pytest
import torch
from torch.nn.functional import cross_entropy

from collage import runtime
from collage.sam import SAM

pytestmark = pytest.mark.cuda


def network():
    g = runtime.generator(0)
    layers = [torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)]
    model = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / 2)
    x, y = torch.randn(12, 6, generator=g), torch.randint(3, (12,), generator=g)
    return model.cuda(), x.cuda(), y.cuda()


def prepared(base="SGD", **settings):
    model, x, y = network()
    own = {"SGD": {"momentum": 0.9}, "Adam": {"capturable": True}}[base]
    opt = SAM(model.parameters(), base, lr=0.1, fused=True, **own, **settings)

    def closure():
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    return model, opt, closure


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_run_outlives_the_optimiser():
    """All that is kept is what `capture` returned."""
    model, opt, closure = prepared()
    twin, plain, again = prepared()
    run = opt.capture(closure)
    del opt, closure
    gc.collect()
    for _ in range(4):
        run(), plain.step(again)
    torch.testing.assert_close(weights(model), weights(twin))


@pytest.mark.parametrize("base", ["SGD", "Adam"])
def test_a_captured_step_follows_a_loaded_state(base):
    model, opt, closure = prepared(base)
    twin, plain, again = prepared(base)
    run = opt.capture(closure)
    for _ in range(3):
        run(), plain.step(again)
    kept = {name: t.clone() for name, t in twin.state_dict().items()}
    state = plain.state_dict()
    state["state"] = {i: {k: v.clone() for k, v in s.items()} for i, s in state["state"].items()}
    for _ in range(2):
        run()  # away from there
    model.load_state_dict(kept)
    opt.load_state_dict(state)
    del state
    gc.collect()
    for _ in range(3):
        run(), plain.step(again)
    torch.testing.assert_close(weights(model), weights(twin))


def test_a_radius_on_the_device_is_read_once():
    model, opt, closure = prepared(rho=torch.tensor(0.05, device="cuda"))
    twin, plain, again = prepared(rho=0.05)
    run = opt.capture(closure)
    for _ in range(3):
        run(), plain.step(again)
    torch.testing.assert_close(weights(model), weights(twin))
