"""A list of parameters as views of one tensor, for updates in a handful of operations."""

import operator

import torch
from torch import Tensor


class Flat:
    """A list of parameters as views of one tensor `whole`, their gradients gathered in its gradient.

    The loop of use is `zero()`, backward, `collect()`, a step along `whole.grad`. A parameter to which
    no gradient came keeps `p.grad = None`, as under any optimiser; its part of `whole.grad` is zero.

    Raises ValueError for several dtypes or devices, and for parameters that are given twice or
    share memory.

    >>> net = torch.nn.Linear(2, 1)
    >>> flat = Flat(list(net.parameters()))
    >>> _ = flat.whole.data.fill_(1.0)
    >>> net.weight
    Parameter containing:
    tensor([[1., 1.]], requires_grad=True)
    """

    def __init__(self, params: list[Tensor]) -> None:
        if len({(p.dtype, p.device) for p in params}) > 1:
            raise ValueError("params: got several dtypes or devices, wanted one with fused=True")
        if not params:
            raise ValueError("params: got a group without any, wanted some with fused=True")
        if len({p.data_ptr() for p in params if p.numel()}) < sum(p.numel() > 0 for p in params):
            raise ValueError("params: got two that share memory, wanted each once with fused=True")
        whole = torch.nn.Parameter(torch.cat([p.detach().reshape(-1) for p in params]))
        self.__setstate__({"params": list(params), "whole": whole})

    def __getstate__(self) -> dict:
        return {"params": self.params, "whole": self.whole}

    def __setstate__(self, state: dict) -> None:  # views survive no copy and no pickle
        self.params, self.whole = state["params"], state["whole"]
        ends = torch.tensor([p.numel() for p in self.params]).cumsum(0).tolist()
        self.cuts = [slice(b - p.numel(), b) for p, b in zip(self.params, ends, strict=True)]
        self.whole.grad = torch.zeros_like(self.whole)
        self.grads = self.cut(self.whole.grad)
        for p, part in zip(self.params, self.cut(self.whole.data), strict=True):
            p.data = part
        self.places = [p.data_ptr() for p in self.params]
        self.zero()

    def cut(self, vector: Tensor) -> list[Tensor]:
        """A vector's parts, in the shapes of the parameters."""
        return [vector[c].view_as(p) for c, p in zip(self.cuts, self.params, strict=True)]

    def without_gradient(self) -> list[slice]:
        """Slices of `whole` that belong to parameters without gradient, neighbours in one."""
        slices: list[slice] = []
        for p, cut in zip(self.params, self.cuts, strict=True):
            if p.grad is None and cut.start < cut.stop:
                if slices and slices[-1].stop == cut.start:
                    slices[-1] = slice(slices[-1].start, cut.stop)
                else:
                    slices.append(cut)
        return slices

    def zero(self, set_to_none: bool = True) -> None:
        """Clear all gradients; backward then leaves its own, which `collect` gathers."""
        if not set_to_none:
            self.whole.grad.zero_()
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = None if set_to_none else g

    def check_views(self) -> None:
        """RuntimeError where a parameter is no view of `whole` any more."""
        if [p.data_ptr() for p in self.params] != self.places:
            raise RuntimeError("params: moved, cast or replaced since the flat buffer was made, wanted "
                               "the optimiser made afterwards")  # fmt: skip

    def collect(self) -> bool:
        """Gather the gradients into `whole.grad`, of which they are views from here on.

        Returns whether there is any. Raises RuntimeError where a parameter was moved, cast or given
        another `data` since: it is no view of `whole` any more.
        """
        self.check_views()
        grads = [p.grad for p in self.params]
        if all(map(operator.is_, grads, self.grads)):
            return True
        if any(g is not None and g.layout != torch.strided for g in grads):
            raise ValueError("gradients: got a sparse one, wanted dense gradients")
        present = [(p, g, view) for p, g, view in zip(self.params, grads, self.grads, strict=True)
                   if g is not None]  # fmt: skip
        elsewhere = [(view, g) for _, g, view in present if g is not view]
        if elsewhere:
            views, others = zip(*elsewhere, strict=True)
            torch._foreach_copy_(list(views), list(others))
        for p, _, view in present:
            p.grad = view
        for part in self.without_gradient():
            self.whole.grad[part] = 0
        return bool(present)
