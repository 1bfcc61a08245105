"""The check of certificates sees every forgery."""

import pytest

from collage.convex_hull import membership, verify
from tests.convex_hull.clouds import normal


def test_verify_sees_every_forgery():
    x, z = normal(300, 3), normal(60, 3, seed=1)
    fresh = lambda: membership(x, z)  # noqa: E731
    inside, outside = int(fresh().inside.nonzero()[3]), int((~fresh().inside).nonzero()[0])

    def forged(change, words):
        result = fresh()
        assert result.entry.numel()
        change(result)
        with pytest.raises(ValueError, match=words):
            verify(result, x, z)

    def at(name, i, value):
        def change(result):
            getattr(result, name)[i] = value

        return change

    forged(lambda r: r.weights[inside].mul_(1.1), f"query {inside}: .*not convex")
    forged(lambda r: r.weights[inside].copy_(r.weights[inside].flip(0)), f"query {inside}: ")
    forged(at("entry", inside, 300), f"query {inside}: its witness leaves")
    forged(lambda r: r.entry[inside].sub_(1), f"query {inside}: its support")
    forged(at("inside", outside, True), f"query {outside}: ")
    forged(at("inside", inside, False), f"query {inside}: outside, and yet")
    forged(at("margin", outside, 9.0), f"query {outside}: margin")
    forged(lambda r: r.separator[outside].mul_(-1), f"query {outside}: ")
    forged(lambda r: r.witness[outside].mul_(-1), f"query {outside}: its witness")
    with pytest.raises(ValueError, match="query"):
        verify(fresh(), x + 1, z)
    with pytest.raises(ValueError, match="queries: got 59"):
        verify(fresh(), x, z[:59])
