"""A base optimiser on flat buffers, which looks to its users as if there were none.

FlatBase     steps, states and checkpoints of parameters that lie in `Flat` buffers
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from collage.sam.flat import Flat

# What base optimisers keep once for each parameter instead of once for each entry,
COUNTS = ("step", "mu_product", "eta", "mu")
# and those whose steps do not depend on such a count.
UNCOUNTED = ("SGD", "RMSprop", "Adadelta")

State = dict[str, Any]  # a parameter's state, as optimisers of torch keep it


class FlatBase:
    """A base optimiser that sees one tensor for each group, `Flat.whole`.

    A parameter to which no gradient came is left alone, as torch leaves it: `step` puts back its
    part of the weights and of the state.

    groups: the parameter groups of its user; base: the optimiser's class, `settings` its own.

    >>> net = torch.nn.Linear(2, 1)
    >>> base = FlatBase(torch.optim.SGD, [{"params": list(net.parameters())}], {"lr": 0.1})
    >>> len(base.flats), base.flats[0].whole.shape
    (1, torch.Size([3]))
    """

    def __init__(
        self, base: type[torch.optim.Optimizer], groups: list[dict], settings: Mapping[str, Any]
    ) -> None:
        settings = dict(settings)
        if "fused" in inspect.signature(base).parameters and not settings.get("foreach"):
            settings["fused"] = True
        self.flats = [Flat(group["params"]) for group in groups]
        wholes = [{**g, "params": [f.whole]} for g, f in zip(groups, self.flats, strict=True)]
        self.base = base(wholes, **settings)
        for group, own_group in zip(groups, self.base.param_groups, strict=True):
            group.update({k: v for k, v in own_group.items() if k != "params"})  # its defaults, too
        # Parameters to which no gradient came in some step, and their counts then (None: no state).
        self.idle: dict[Tensor, State | None] = {}

    def step(self, groups: list[dict]) -> None:
        """A step with the settings of `groups`, to which schedulers write."""
        for group, own_group in zip(groups, self.base.param_groups, strict=True):
            own_group.update({k: v for k, v in group.items() if k != "params"})
        self._wake()
        saved = [self._save_idle(flat) for flat in self.flats]
        try:
            self.base.step()
        finally:
            for flat, (slices, parts) in zip(self.flats, saved, strict=True):
                self._put_back(flat, slices, parts)

    def _wake(self) -> None:
        """Parameters that have a gradient again; raises ValueError where their counts lag behind."""
        awake = [p for p in self.idle if p.grad is not None]
        name = type(self.base).__name__
        dampened = any(group.get("dampening") for group in self.base.param_groups)
        if awake and (name not in UNCOUNTED or dampened):
            raise ValueError(
                "gradients: got one for a parameter that had none in an earlier step, which "
                f"{name} counts otherwise: wanted fused=False"
            )
        for p in awake:
            del self.idle[p]

    def _save_idle(self, flat: Flat) -> tuple[list[slice], dict[str | None, list[Tensor]]]:
        """Where no gradient came: the slices, and copies of the weights (None) and states there."""
        state, slices = self.base.state[flat.whole], flat.without_gradient()
        for p in flat.params:
            if p.grad is None and p not in self.idle:
                counts = {k: _copied(state[k]) for k in COUNTS if k in state}
                self.idle[p] = counts if state else None
        tensors = self._entrywise(flat) if slices else {}
        return slices, {k: [t[s].clone() for s in slices] for k, t in tensors.items()}

    def _put_back(
        self, flat: Flat, slices: list[slice], parts: dict[str | None, list[Tensor]]
    ) -> None:
        if not slices:
            return
        for name, tensor in self._entrywise(flat).items():
            for i, s in enumerate(slices):
                tensor[s] = parts[name][i] if name in parts else 0  # made in this very step

    def _entrywise(self, flat: Flat) -> dict[str | None, Tensor]:
        """The weights (None) and all states with one entry for each of theirs."""
        state = self.base.state[flat.whole]
        tensors: dict[str | None, Tensor] = {
            k: v for k, v in state.items() if _alike(v, flat.whole)
        }
        return {**tensors, None: flat.whole.data}

    def read_state(self, state: dict[Tensor, State]) -> None:
        """Write every parameter's part into `state`, as an optimiser without buffers has it."""
        for flat in self.flats:
            whole = self.base.state[flat.whole]
            for p, cut in zip(flat.params, flat.cuts, strict=True):
                counts = self.idle.get(p, {})
                if counts is None:
                    state.pop(p, None)
                    continue
                state[p] = {
                    k: v[cut].view_as(p)
                    if k not in COUNTS and _alike(v, flat.whole)
                    else _copied(counts.get(k, v))
                    for k, v in whole.items()
                }

    def write_state(self, state: Mapping[Tensor, State]) -> None:
        """Take every parameter's state from `state`: the inverse of `read_state`."""
        self.idle = {}
        for flat in self.flats:
            parts = [state.get(p, {}) for p in flat.params]
            furthest = max(parts, key=lambda part: float(part.get("step", 0)))
            for p, part in zip(flat.params, parts, strict=True):
                if any(parts) and not part:
                    self.idle[p] = None
                elif float(part.get("step", 0)) < float(furthest.get("step", 0)):
                    self.idle[p] = {k: part[k] for k in COUNTS if k in part}
            merged = {k: v for part in [*parts, furthest] for k, v in part.items()}
            new = {
                k: _joined(k, parts, flat.params)
                if k not in COUNTS and _is_entrywise(k, parts, flat.params)
                else v
                for k, v in merged.items()
            }
            self.base.state[flat.whole] = _written(self.base.state.get(flat.whole, {}), new)


def _joined(name: str, parts: Iterable[State], params: Iterable[Tensor]) -> Tensor:
    """One state of all parameters as one vector, zero where there is none."""
    return torch.cat(
        [part.get(name, torch.zeros_like(p)).reshape(-1) for part, p in zip(parts, params)]
    )


def _written(old: State, new: State) -> State:
    """A new state in the old one's memory, which a captured step reads and writes."""

    def place(name: str, value: Any) -> Any:
        there: Any = old.get(name)
        if not (
            _alike(value, there) and (value.dtype, value.device) == (there.dtype, there.device)
        ):
            return value
        return there.copy_(value)

    return {name: place(name, value) for name, value in new.items()}


def _is_entrywise(name: str, parts: Iterable[State], params: Iterable[Tensor]) -> bool:
    """Whether a state has an entry for each of the parameter's, wherever there is one."""
    return all(_alike(part[name], p) for part, p in zip(parts, params) if name in part)


def _alike(value: Any, other: Any) -> bool:
    both = isinstance(value, Tensor) and isinstance(other, Tensor)
    return both and value.shape == other.shape


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
