"""The point to start from: a critical point, found from the slope alone."""

from typing import NamedTuple

import torch
from torch.func import grad, jacrev, vmap

from collage.common.checks import check_finite, check_single, check_whole
from collage.common.networks import only_looking
from collage.ridge_rider.rides import DENSE, check_points, traced


class Saddles(NamedTuple):
    """Points (B, P) and what is left of the slope there, ||grad L|| (B,)."""

    thetas: torch.Tensor
    slopes: torch.Tensor


@only_looking
def saddle(loss, thetas, bonus=None, *, weight=0.1, floor=0.0, steps=2000, lr=0.05, newton=10):
    """Critical points near thetas (B, P), the most symmetric ones with the right bonus.

    min |grad L(theta)|^2 - w_t bonus(theta),  w_t from weight down to floor,  then Newton steps

    A loss that treats actions alike has its most symmetric critical point where the policy is as
    even as the loss allows, so the entropy is the usual bonus: (P,) -> scalar. It only chooses
    between critical points while w_t is large. Left on (floor > 0) it moves the point away from
    where the slope is zero. Newton steps (up to 256 parameters, floor = 0) make the slope as small
    as rounding allows; one that does not lower it is not taken.

    Raises ValueError for shapes, NaN or inf. Look at `slopes`: there may be no critical point.

    >>> found = saddle(lambda t: t[0] * t[1], torch.tensor([[0.3, -0.2]]), steps=10)
    >>> found.slopes.item() < 1e-6
    True
    """
    steps, newton = check_whole("steps", steps, 0), check_whole("newton", newton, 0)
    thetas = torch.as_tensor(thetas).detach().clone()
    check_points(loss, thetas)
    slope, worth = vmap(grad(loss)), vmap(bonus) if bonus else None
    steep = traced(grad(lambda x: slope(x).square().sum()), thetas, steps)
    bent = traced(grad(lambda x: worth(x).sum()), thetas, steps) if worth else None
    point = thetas.requires_grad_()
    adam = torch.optim.Adam([point], lr=check_single("lr", lr))
    for t in range(steps):
        left, here = 1 - t / steps, point.detach()
        point.grad = steep(here)
        if worth is not None:
            # The bonus has faded after three quarters of the steps; the rest finds the slope's zero.
            now = floor + (weight - floor) * max(0, 4 * left - 1) / 3
            point.grad -= now * bent(here)
        adam.param_groups[0]["lr"] = lr * min(1, 4 * left)
        adam.step()
    point = point.detach()
    check_finite("thetas: on the way to a critical point (a smaller lr may help)", point)
    if point.shape[1] <= DENSE and (not floor or worth is None):
        whole = vmap(jacrev(grad(loss)))
        for _ in range(newton):
            g = slope(point)
            check_finite("loss: its slope", g)
            new = point - (torch.linalg.pinv(whole(point), rtol=1e-6) @ g[:, :, None])[..., 0]
            lower = slope(new).norm(dim=1) < g.norm(dim=1)
            point = torch.where(lower[:, None], new, point)
    slopes = slope(point).norm(dim=1)
    check_finite("loss: its slope", slopes)
    return Saddles(point, slopes)
