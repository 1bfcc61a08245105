"""The exercises of `sam`."""

import math

import torch

from collage.page.exercises.checker import Answer, close, exercise


@exercise("sam-1")
def two_cycle(answer: Answer) -> str | None:
    """A function (a, eta, rho, decay) -> the amplitude of SAM's two-cycle with weight decay."""
    for a, eta, rho, decay in ((4.0, 0.1, 0.05, 0.0), (1.0, 0.5, 0.2, 0.4), (3.0, 0.3, 1.0, 0.1)):
        result = float(answer(a, eta, rho, decay))
        if not math.isclose(result, eta * a * rho / (2 - eta * (a + decay)), rel_tol=1e-6):
            return (f"For a={a:g}, eta={eta:g}, rho={rho:g}, lambda={decay:g} you say {result:.4g}. "
                    "Ask for w' = -w.")  # fmt: skip
    return None


@exercise("sam-2")
def momentum_step(answer: Answer) -> str | None:
    """A function (loss, w, rho, eta, momentum v) -> (new w, new v): one SAM step with heavy ball."""
    w, v = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.3, -0.1]).double()
    scale = torch.tensor([4.0, 1.0]).double()

    def loss(t: torch.Tensor) -> torch.Tensor:
        return 0.5 * (scale * t**2).sum()

    new_w, new_v = answer(loss, w.clone(), 0.05, 0.1, v.clone())
    g = scale * w
    g = scale * (w + 0.05 * g / g.norm())
    velocity = 0.9 * v + g
    if not close(torch.as_tensor(new_v).detach(), velocity, 1e-7):
        return "The velocity is 0.9 v plus the gradient at the perturbed weights."
    if not close(torch.as_tensor(new_w).detach(), w - 0.1 * velocity, 1e-7):
        return "Step from the original weights, not from the perturbed ones."
    return None


@exercise("sam-3")
def rho_of_smaller_chunks(answer: Answer) -> str | None:
    """The factor by which the best rho changes when chunks are 4 times smaller."""
    if not close(float(answer), 0.5, 0.01):
        return "Keep rho / sqrt(m) fixed: what does a quarter of m do to rho?"
    return None
