"""The variance of PES and of full ES in closed form."""

import torch


def variance(slopes):
    """Variance of the PES and the full-ES estimate where losses are linear, in closed form.

    L_u = sum_{v <= u} p_{vu} . theta_v,    q_{vw} = sum_{u >= max(v, w)} p_{vu}
    tr Var(PES) = P sum_{vw} |q_{vw}|^2 + sum_{vw} q_{vw} . q_{wv},    tr Var(ES) = (P + 1) |g|^2

    slopes (W, W, P): p_{vu}, what the loss of unroll u owes to theta as unroll v saw it; entries
    with v > u are not read. Returns two floats, for one antithetic pair, of the estimate summed
    over the W unrolls; divide by the number of pairs. The gradient is g = sum_v q_{vv}.

    Raises ValueError for another shape. Source: derived in chapter 35; the second is arXiv
    2304.11153's.

    >>> variance(torch.eye(4)[:, :, None] * torch.ones(8) / 4)  # four equal, separate slopes
    (42.0, 72.0)
    """
    if slopes.dim() != 3 or slopes.shape[0] != slopes.shape[1]:
        raise ValueError(f"slopes: got {tuple(slopes.shape)}, wanted (W, W, P)")
    w, _, size = slopes.shape
    index = torch.arange(w, device=slopes.device)
    seen = (index[:, None] <= index)[..., None]  # theta_v has acted by unroll u
    later = torch.where(seen, slopes, 0).flip(1).cumsum(1).flip(1)  # sums over u >= the column
    q = later.gather(1, torch.maximum(index[:, None], index)[..., None].expand(-1, -1, size))
    pes = size * q.square().sum() + (q * q.transpose(0, 1)).sum()
    gradient = q.diagonal().sum(-1)
    return float(pes), float((size + 1) * gradient.square().sum())
