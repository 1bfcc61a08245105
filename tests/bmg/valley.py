"""Gradient descent in a noisy valley, its learning rate learned: what the tests hold others against."""

import torch

from collage import runtime


class NoisyValley:
    """x <- x - exp(w) (h x + noise_k),  noise_k ~ N(0, sigma^2), on f(x) = 1/2 sum_i h_i x_i^2.

    x (S, d), w (S,); the noise of step k comes from a seed of its own, so that a step can be replayed.
    The problem is that of Wu et al. 2018 (arXiv 1803.02021).
    """

    def __init__(self, h, sigma=0.0, alpha=0.1):
        self.h, self.sigma = (torch.tensor(t, dtype=torch.float64) for t in (h, sigma))
        self.alpha, self.placed = alpha, {}

    def constants(self, x):
        """Sent once: to ask for them at every step would make the host wait."""
        key = x.device, x.dtype
        if key not in self.placed:
            self.placed[key] = self.h.to(x), self.sigma.to(x)
        return self.placed[key]

    def noise(self, x, k):
        if not bool(self.sigma.any()):
            return torch.zeros_like(x)
        g = runtime.generator(runtime.seed_for(0, k), x.device)
        draw = torch.randn(x.shape, generator=g, device=x.device, dtype=x.dtype)
        return self.constants(x)[1] * draw

    def slope(self, x, k):
        return self.constants(x)[0] * x + self.noise(x, k)

    def objective(self, x):
        return (self.constants(x)[0] * x * x).sum(-1) / 2

    def update(self, x, w, k):
        """A step with the learned rate exp(w)."""
        return x - w.exp()[:, None] * self.slope(x, k)

    def ground_truth_step(self, x, k):
        """A step with the rate alpha."""
        return x - self.alpha * self.slope(x, k)
