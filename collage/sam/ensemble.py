"""Many small networks in one tensor program, each trained by SAM with a radius of its own."""

from collections.abc import Iterable

import torch
from torch import Tensor

from collage.common.networks import Losses, Stack, frozen_batch_statistics, views
from collage.sam.core import check_order, dual


class Ensemble(Stack):
    """K small networks trained at once, each by SAM with a radius of its own.

    g_k = grad L_k(theta_k) at theta_k + `dual`(grad L_k(theta_k), rho_k), then as in `Stack`.

    params, lr, momentum, weight_decay as in `Stack`; rho a number or one for each network (K,).
    With rho zero everywhere the second pass is not run: plain SGD. A list of losses in `step` is
    m-sharpness: one perturbation for each chunk, the step along the mean gradient.

    >>> nets = Ensemble([torch.ones(2, 1)], rho=torch.tensor([0.0, 0.5]), lr=0.1, momentum=0.0)
    >>> nets.step(lambda params: 2 * params[0].square().sum(1))
    tensor([2., 2.])
    >>> nets.flat.squeeze(1)
    tensor([0.6000, 0.4000])
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        rho: float | Tensor = 0.05,
        p: float = 2.0,
        **settings: float | Tensor,
    ) -> None:
        super().__init__(params, **settings)
        self.rho, self.p = self.setting("rho", rho), check_order(p)
        self.climbs = bool(self.rho.any())
        self._above()

    def _above(self) -> None:
        self.high = torch.empty_like(self.flat)  # theta + e
        self.high_params = views(self.high, [t.shape for t in self.params])

    def __getstate__(self) -> dict:
        return {k: v for k, v in super().__getstate__().items() if not k.startswith("high")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._above()

    def gradients(self, losses: Losses) -> tuple[Tensor, Tensor]:
        """Losses (K,) at theta, gradients (K, P) at theta + e."""
        values, g = super().gradients(losses)
        if not self.climbs:
            return values, g
        torch.add(self.flat, dual(g, self.rho, self.p), out=self.high)
        with frozen_batch_statistics():
            return values, self.gradients_at(self.high_params, losses)[1]
