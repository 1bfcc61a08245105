"""Problems and short cuts that the tests of this folder share."""

from types import SimpleNamespace

import torch

from collage.pes import PES, FullES, NoiseReuseES, PESAnalytic, TruncatedES

FAMILY = (PES, FullES, TruncatedES, NoiseReuseES, PESAnalytic)
THETA = torch.tensor([0.4, -0.3, 0.2]).double()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def zeros(n, generator):
    return torch.zeros(n).double()


def functions(unroll, reset=zeros):
    """A problem made of two functions."""
    return SimpleNamespace(unroll=unroll, reset=reset)


class Tanh:
    """A small nonlinear problem with random data, drawn at the reset: state {"s", "x", "t"}."""

    def reset(self, n, generator):
        draw = torch.randn(n, 7, generator=generator, dtype=torch.float64)
        return {"s": draw[:, :3], "x": draw[:, 3:], "t": torch.zeros(n, dtype=torch.long)}

    def unroll(self, theta, state, steps):
        s, x, t = state["s"], state["x"], state["t"]
        losses = 0
        for _ in range(steps):
            force = x.gather(1, (t % 4)[:, None])
            s = torch.tanh(s.roll(1, 1) + theta * force)
            losses = losses + (s.sum(1) - 1).square()
            t = t + 1
        return {"s": s, "x": x, "t": t}, losses


class Interrupted(Tanh):
    """`Tanh`, stopped from outside in one call of unroll or reset."""

    def __init__(self, at, function="unroll"):
        self.left, self.function = at, function

    def _count(self, function):
        if function == self.function:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def reset(self, n, generator):
        self._count("reset")
        return super().reset(n, generator)

    def unroll(self, theta, state, steps):
        self._count("unroll")
        return super().unroll(theta, state, steps)


def build(kind, problem, sigma, particles, truncation, horizon, generator=None, **options):
    return kind(
        problem,
        sigma=sigma,
        particles=particles,
        truncation=truncation,
        horizon=horizon,
        generator=generator,
        **options,
    )


def whole(problem, theta, horizon):
    """The exact gradient of the whole loss of one problem, by backpropagation."""
    theta = theta.clone().requires_grad_()
    losses = problem.unroll(theta[None], problem.reset(1, seeded()), horizon)[1]
    return torch.autograd.grad(losses.sum(), theta)[0]


def totals(kind, problem, theta, sigma, truncation, horizon, repeats, **options):
    """Summed over the unrolls of one inner problem, for many independent single pairs (R, P)."""
    estimator = build(kind, problem, sigma, 2, truncation, horizon, seeded(), **options)
    windows = 1 if kind is FullES else horizon // truncation
    rows = theta.expand(repeats, -1)
    return sum(estimator.step(rows) for _ in range(windows))


def assert_mean(samples, wanted, errors=4):
    """The mean of samples (n, ...) is within so many of its standard errors."""
    mean, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    assert ((mean - wanted).abs() <= errors * error).all(), (mean, wanted, error)


def check_interrupted(make, at):
    """Broken at that call of unroll, a step is made again with the same result."""
    fine, broken = make(Tanh(), seeded()), make(Interrupted(at), seeded())
    gradients, interrupts = [], 0
    while len(gradients) < 4:
        try:
            gradients.append(broken.step(THETA))
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 1
    assert all(torch.equal(g, fine.step(THETA)) for g in gradients)
