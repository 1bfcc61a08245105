"""Constants of a problem, where its numbers are."""

import torch
from torch import Tensor
from torch._C import _functorch


class Placed:
    """A constant that is copied once to each device and dtype that asks for it, and kept there.

    To send it at every call makes the host wait for the GPU, and a CUDA graph cannot record it.

    >>> share = Placed(torch.tensor([0.5, 1.5], dtype=torch.float64))
    >>> share.like(torch.zeros(3)).dtype, share.on("cpu") is share.value
    (torch.float32, True)
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._copies: dict[tuple, Tensor] = {}

    def __getstate__(self) -> dict:  # a pickle takes the constant alone
        return {"value": self.value, "_copies": {}}

    def on(self, device: torch.device | str) -> Tensor:
        """In its own dtype."""
        return self._place(torch.device(device), self.value.dtype)

    def like(self, other: Tensor) -> Tensor:
        """In the dtype and on the device of another tensor."""
        return self._place(other.device, other.dtype)

    def _place(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if self.value.device == device and self.value.dtype == dtype:
            return self.value
        if (device, dtype) not in self._copies:
            copy = self.value.to(device, dtype)
            while _functorch.is_functorch_wrapped_tensor(copy):  # made inside vmap or grad
                copy = _functorch.get_unwrapped(copy)
            self._copies[device, dtype] = copy
        return self._copies[device, dtype]
