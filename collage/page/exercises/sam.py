"""The exercises of chapter 36, `sam`."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from collage.page.exercises.checker import Answer, close, exercise


def _part_gradient(scale: Tensor, target: Tensor, w: Tensor, rho: float) -> Tensor:
    """SAM's gradient of half the weighted squared distance to a target, in closed form."""
    g = scale * (w - target)
    return scale * (w + rho * g / g.norm() - target)


@exercise("sam-1")
def step_in_parts(answer: Answer) -> str | None:
    """A function (losses, w, rho, eta, velocity v) -> (new w, new v): each part climbs by itself."""
    scale = torch.tensor([[4.0, 1.0], [0.5, 2.0]]).double()
    targets = [torch.zeros(2, 2).double(), torch.tensor([[2.0, -1.0], [0.0, 3.0]]).double()]
    w, v = torch.tensor([[1.0, 2.0], [-0.5, 0.7]]).double(), torch.full((2, 2), 0.3).double()

    def distance_to(target: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda t: 0.5 * (scale * (t - target) ** 2).sum()

    for count, rho, eta in ((1, 0.05, 0.1), (2, 0.3, 0.02)):
        parts = targets[:count]
        result = answer([distance_to(t) for t in parts], w.clone(), rho, eta, v.clone())
        if not isinstance(result, tuple | list) or len(result) != 2:
            return (
                f"Return two tensors, the new w and the new v; you return {type(result).__name__}."
            )
        new_w, new_v = (torch.as_tensor(t).detach() for t in result)
        if new_w.shape != w.shape or new_v.shape != w.shape:
            return f"w has the shape {tuple(w.shape)}: so do the new w and the new v."
        g = torch.stack([_part_gradient(scale, t, w, rho) for t in parts]).mean(0)
        velocity = 0.9 * v + g
        if not close(new_v, velocity, 1e-5):
            whole = torch.stack([scale * (w - t) for t in parts]).mean(0)
            together = torch.stack([scale * (w + rho * whole / whole.norm() - t) for t in parts])
            if count > 1 and close(new_v, 0.9 * v + together.mean(0), 1e-5):
                return "All parts climb along the mean gradient; each should climb along its own."
            if count > 1 and close(new_v, 0.9 * v + 2 * g, 1e-5):
                return "The velocity gets the sum of the parts' gradients, not their mean."
            return f"With {count} part(s), rho = {rho} and a 2 x 2 weight the velocity is wrong."
        if not close(new_w, w - eta * velocity, 1e-5):
            return "The velocity is right. Where does the step start, and how long is it?"
    return None


@exercise("sam-2")
def two_cycle(answer: Answer) -> str | None:
    """A function (a, eta, rho, decay) -> the amplitude of SAM's two-cycle with weight decay."""
    for a, eta, rho, decay in ((4.0, 0.1, 0.05, 0.0), (1.0, 0.5, 0.2, 0.4), (3.0, 0.3, 1.0, 0.1)):
        result = float(answer(a, eta, rho, decay))
        if not math.isclose(result, eta * a * rho / (2 - eta * (a + decay)), rel_tol=1e-5):
            if math.isclose(result, eta * a * rho / (2 - eta * a), rel_tol=1e-5):
                return "That is the amplitude of (9). Where does the decay enter?"
            return (f"For a={a:g}, eta={eta:g}, rho={rho:g}, lambda={decay:g} you say {result:.4g}. "
                    "Ask for the point that a step sends to its mirror image.")  # fmt: skip
    return None


@exercise("sam-3")
def dead_networks(answer: Answer) -> str | None:
    """The whole number whose logarithm is the loss of a network that gives all classes one chance."""
    result = float(answer)
    if math.isclose(result, math.log(10), rel_tol=0.02):
        return "That is the loss itself. Of which number is it the logarithm?"
    if result != 10:
        return f"You say {result:g}. What does the network answer, when it has learned nothing?"
    return None


@exercise("sam-4")
def rho_of_smaller_chunks(answer: Answer) -> str | None:
    """The factor by which the best rho changes when chunks are 4 times smaller."""
    result = float(answer)
    if close(result, 2.0, 0.02):
        return "The gradient of a smaller chunk is longer: should rho grow or shrink with it?"
    if not close(result, 0.5, 0.005):
        return f"You say {result:g}. How much longer is the gradient of a quarter of the images?"
    return None
