"""Gradient descent in a noisy valley, its learning rate learned.

NoisyQuadratic  an inner problem for meta-gradients, in which everything can be written down
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from collage import runtime
from collage.common.checks import check_positive, check_single, check_whole
from collage.common.placed import Placed


class NoisyQuadratic:
    """Gradient descent on f(x) = 1/2 sum_i h_i x_i^2 with noisy gradients and a learned learning rate.

    x <- x - exp(w) (h x + noise_k),    noise_k ~ N(0, sigma^2)

    h (d,), sigma a number or (d,); x (S, d), w (S,) the logarithm of the rate. The noise of step k is
    drawn from a seed of its own, so that every learner meets the same one and a step can be replayed.
    `ground_truth_step`, the last of a target, has the rate `alpha`.

    Raises ValueError for curvatures that are not positive. Source of the problem: Wu et al. 2018
    (arXiv 1803.02021), where its short-sighted learning rates are explained.

    >>> valley = NoisyQuadratic([1.0, 0.01], sigma=0.0)
    >>> valley.update(torch.tensor([[1.0, 1.0]]), torch.zeros(1), 0)
    tensor([[0.0000, 0.9900]])
    """

    def __init__(
        self,
        h: Sequence[float] | Tensor,
        sigma: float | Sequence[float] | Tensor = 0.0,
        alpha: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not isinstance(check_positive("h", h), Tensor):
            raise ValueError(f"h: got {h!r}, wanted curvatures (d,)")
        self.h = torch.as_tensor(h, dtype=torch.float64)
        self.sigma = torch.as_tensor(sigma, dtype=torch.float64)
        if not bool((self.sigma >= 0).all()):
            raise ValueError(f"sigma: got {sigma!r}, wanted deviations, 0 or more")
        self.noisy = bool(self.sigma.any())
        self._h, self._sigma = Placed(self.h), Placed(self.sigma)
        self.alpha = check_single("alpha", alpha)
        self.seed = check_whole("seed", seed, 0)

    def noise(self, x: Tensor, k: int) -> Tensor:
        """Noise of the gradient at step k, like x."""
        if not self.noisy:
            return torch.zeros_like(x)
        g = runtime.generator(runtime.seed_for(self.seed, k), x.device)
        draw = torch.randn(x.shape, generator=g, device=x.device, dtype=x.dtype)
        return self._sigma.like(x) * draw

    def slope(self, x: Tensor, k: int) -> Tensor:
        """The noisy gradient at step k, like x."""
        return self._h.like(x) * x + self.noise(x, k)

    def objective(self, x: Tensor) -> Tensor:
        """f (S,), without noise."""
        return (self._h.like(x) * x * x).sum(-1) / 2

    def update(self, x: Tensor, w: Tensor, k: int) -> Tensor:
        """A step with the learned rate exp(w)."""
        return x - w.exp()[:, None] * self.slope(x, k)

    def ground_truth_step(self, x: Tensor, k: int) -> Tensor:
        """A step with the rate alpha."""
        return x - self.alpha * self.slope(x, k)
