"""Patches: by hand, in any order and number, cut and put together; bad input."""

import math

import pytest
import torch
from torch import nn

from collage.sensory_neuron import PatchNeuron
from collage.sensory_neuron.images import patches
from tests.sensory_neuron.helpers import normal, seeded, table


def eye(affine=False, seed=0):
    actual = PatchNeuron(patch=2, frames=3, actions=2, codes=5, message=7, values=6, affine=affine)
    actual = actual.double()
    nn.utils.vector_to_parameters(
        normal(sum(p.numel() for p in actual.parameters()), seed=seed), actual.parameters()
    )
    return actual


def unit(x):
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()


@pytest.mark.parametrize("affine", [False, True])
def test_patches_by_hand(affine):
    """One image, one patch and one query at a time, with the softmax written out."""
    e, seen, action = eye(affine), normal(2, 6, 3, 4), normal(2, 2, seed=1)
    actual = e(seen, action)
    assert actual.shape == (2, 5, 6)
    scale, shift = (e.before.weight, e.before.bias) if affine else (1, 0)
    Q = torch.tensor(table(5, 8)).double()
    for b in range(2):
        keys, values = [], []
        for patch in seen[b]:
            moves = [patch[f + 1] - patch[f] for f in range(2)]
            keys.append(e.key(torch.cat([*moves, action[b]])))
            values.append(e.value(torch.cat([scale * unit(frame) + shift for frame in patch])))
        for m in range(5):
            asked = e.query(Q[m])
            score = torch.stack([(asked @ k / math.sqrt(7)).exp() for k in keys])
            row = sum(s * v for s, v in zip(score / score.sum(), values)).relu()
            row = unit(row) * (e.after.weight if affine else 1) + (e.after.bias if affine else 0)
            assert torch.allclose(actual[b, m], row, rtol=0, atol=1e-6)


def test_patches_in_any_order_and_number():
    """Another order is the same code; hidden patches are accepted; a softmax does not count copies."""
    e, seen, action = eye(), normal(2, 9, 3, 4), normal(2, 2, seed=1)
    code = e(seen, action)
    for seed in range(3):
        order = torch.randperm(9, generator=seeded(seed))
        assert torch.allclose(e(seen[:, order], action), code, rtol=0, atol=1e-11)
    fewer = e(seen[:, [0, 2, 7]], action)
    assert fewer.shape == code.shape and (fewer - code).abs().max() > 1e-2
    assert torch.allclose(e(torch.cat([seen, seen], 1), action), code, rtol=0, atol=1e-11)
    # The last action, like the bias of the keys, shifts all scores of a query alike: no softmax sees it.
    assert torch.allclose(e(seen, action + 1), code, rtol=0, atol=1e-11)
    assert (e(seen + normal(9, 3, 4, seed=2), action) - code).abs().max() > 1e-2


def test_cutting_images():
    """Patch by patch against a loop, and put together again."""
    frames = normal(2, 3, 6, 8)
    actual = patches(frames, 2)
    assert actual.shape == (2, 12, 3, 4)
    for p in range(12):
        row, column = p // 4 * 2, p % 4 * 2
        cut = frames[:, :, row : row + 2, column : column + 2]
        assert torch.equal(actual[:, p], cut.flatten(2))
    back = actual.view(2, 3, 4, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 6, 8)
    assert torch.equal(back, frames)
    assert torch.equal(patches(frames[..., ::1].mT.contiguous().mT, 2), actual)
    with pytest.raises(ValueError, match="wanted multiples of 4"):
        patches(frames, 4)


def test_patches_of_a_wrong_shape():
    e, seen, action = eye(), normal(2, 9, 3, 4), normal(2, 2)
    for bad in ((seen[0], action), (seen[:, :, :2], action), (seen[..., :3], action),
                (seen, action[:, :1]), (seen, action[:1]), (seen.flatten(2), action)):  # fmt: skip
        with pytest.raises(ValueError, match="seen, action: got"):
            e(*bad)
    with pytest.raises(ValueError, match="frames"):
        PatchNeuron(frames=1)
    with pytest.raises(ValueError, match="patch"):
        PatchNeuron(patch=0)
