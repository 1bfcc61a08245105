"""Several estimators unrolled as one batch, against each of them alone."""

import pytest
import torch

from collage.pes import core
from collage.pes.batch import unrolled
from collage.pes.inputs import check_particles
from tests.pes.helpers import Tanh, seeded

R, M, P, K = 2, 3, 3, 2  # runs, pairs, parameters, steps of an unroll


def steps():
    theta, eps = (torch.randn(s, generator=seeded(1)).double() for s in ((R, P), (R, M, P)))
    state = {name: t.unflatten(0, (R, 1, M)) for name, t in Tanh().reset(R * M, seeded()).items()}
    shared = {name: t[:, :, :1] for name, t in state.items()}
    yield core.pes(theta, eps, 2 * eps, state, K, 0.5)
    yield core.truncated_es(theta, eps, shared, K, 0.5)
    yield core.full_es(theta, eps, torch.zeros(R, 2, M), state, K, 0.5)
    yield core.noise_reuse_es(theta, eps, state, K + 1, 0.5)


def test_several_are_each_alone():
    batch = unrolled(list(steps())[:3], Tanh().unroll)
    for several, step in zip(batch, steps(), strict=False):
        (alone,) = unrolled([step], Tanh().unroll)
        assert torch.allclose(several[0], alone[0])


def test_unrolls_are_of_one_length():
    with pytest.raises(ValueError, match=r"unrolls of \[2, 3\] steps"):
        unrolled(list(steps()), Tanh().unroll)


def test_states_have_an_axis_of_particles():
    check_particles("state", {"a": (torch.ones(4), [torch.ones(4, 2)])}, 4)
    for bad in ((torch.ones(3), torch.ones(4)), torch.tensor(1.0), (torch.ones(4), 3)):
        with pytest.raises(ValueError, match="particle axis of 4"):
            check_particles("state", bad, 4)
