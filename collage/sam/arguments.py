"""What `SAM` takes: its base optimiser, parameter groups, and what a closure returns."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from collage.sam.core import check_radius


def check_group(group: dict, defaults: dict, fused: bool) -> dict:
    """A parameter group with a list of parameters; raises ValueError for one SAM cannot step."""
    if not isinstance(group["params"], Tensor | set):  # torch refuses a set itself
        group = {**group, "params": list(group["params"])}
    group = {**group, "rho": single_radius(group.get("rho", defaults["rho"]))}
    if group.get("differentiable", defaults.get("differentiable")):
        raise ValueError("differentiable: got True, wanted False: a step of SAM is not recorded "
                         "(`collage.sam.gradient` can be differentiated)")  # fmt: skip
    params = listed(group["params"])
    on_cpu = any(p.device.type == "cpu" for p in params)
    if on_cpu and not fused and group.get("capturable", defaults.get("capturable")):
        raise ValueError("capturable: got True for parameters on the CPU, wanted False there")
    if len(set(map(id, params))) < len(params):
        raise ValueError("params: got a parameter twice, wanted each once")
    return group


def single_radius(rho: float | Tensor) -> float:
    """A radius as a number, once: to ask a GPU for it in every step makes the host wait."""
    return float(check_radius(rho))


def check_capture(base: torch.optim.Optimizer, params: list[Tensor]) -> None:
    """Raise ValueError unless a step on these flat parameters can become a CUDA graph."""
    if not params or any(p.device.type != "cuda" for p in params):
        raise ValueError("capture: wanted fused=True and parameters on a CUDA device")
    name = type(base).__name__
    if name != "SGD" and not all(group.get("capturable") for group in base.param_groups):
        raise ValueError(f"capture: got {name}, wanted SGD, or a base with capturable=True")


def listed(params: Tensor | Iterable) -> list[Tensor]:
    params = [params] if isinstance(params, Tensor) else list(params)
    return [p[1] if isinstance(p, tuple) else p for p in params]  # with their names, or without


def base_class(base: str | type, fused: bool, sam: type) -> type[torch.optim.Optimizer]:
    """The base optimiser's class, none of `sam` itself; raises ValueError for one that SAM cannot wrap."""
    chosen = getattr(torch.optim, base, None) if isinstance(base, str) else base
    refused = (torch.optim.LBFGS, torch.optim.SparseAdam, sam)
    if (
        not isinstance(chosen, type)
        or not issubclass(chosen, torch.optim.Optimizer)
        or chosen is torch.optim.Optimizer
        or issubclass(chosen, refused)
        or _needs_closure(chosen)
    ):
        raise ValueError(f"base_optimizer: got {base!r}, wanted a first-order optimiser class "
                         "of torch (or its name there, such as 'SGD')")  # fmt: skip
    if fused and chosen.__name__ in ("Adafactor", "Muon"):  # they see rows and columns
        raise ValueError(f"base_optimizer: got {chosen.__name__} with fused=True, wanted one that "
                         "works entry by entry")  # fmt: skip
    return chosen


def _needs_closure(base: type[torch.optim.Optimizer]) -> bool:
    words = list(inspect.signature(base.step).parameters.values())[1:]
    return any(w.default is w.empty and w.kind is w.POSITIONAL_OR_KEYWORD for w in words)


def loss_value(value: Any) -> Tensor:
    """What a closure returned, detached; raises ValueError unless it is one number."""
    several = value is None or isinstance(value, tuple | list | dict)
    if several or torch.as_tensor(value).numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"closure: returned {got}, wanted the loss alone, one number")
    return torch.as_tensor(value).detach()
