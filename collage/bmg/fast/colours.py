"""Meta-steps of an actor-critic in two colours, whose entropy bonus is learned, for K = 1.

colour_step  in one backward pass through the policy
MetaLoop     many of them with Adam, on a GPU each of them one CUDA graph
memory       bytes that a lifetime needs for it
"""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from collage import runtime
from collage.bmg.actors import ColourLearner, Life, mean_entropy
from collage.bmg.core import Meta, bootstrap_target, coefficient_gradient
from collage.bmg.fast.compiled import compiled_step
from collage.common.checks import check_finite, check_single, check_whole
from collage.common.graph import Captured
from collage.common.networks import forward
from collage.common.populations import tree_leaves, tree_map


@torch.no_grad()
def colour_step(
    learner: ColourLearner,
    life: Life,
    w: list[Tensor],  # (S, ...) each
    L: int | None = None,
    bonus: float = 0.0,
) -> Meta:
    """A `Meta` of MG (L None) or BMG with K = 1, without a second backward pass.

    d mu / d eps = < grad_x mu(x~, x^(1)), lr grad H(x^(0)) >,    then through eps(w)

    What `meta_gradient(learner.update, life, w, 1, L, ...)` gives, from the same draws, with the
    objective of the learner and this bonus, or with its matching over the states of the first rollout
    after the update.

    >>> from collage.bmg.gridworlds import TwoColours
    >>> learner = ColourLearner(TwoColours(see="ways"), 2, torch.Generator().manual_seed(0))
    >>> meta = colour_step(learner, learner.begin(), learner.start_meta(), L=3)
    >>> [tuple(g.shape) for g in meta.gradient], meta.losses.shape
    ([(2, 10, 32), (2, 1, 32), (2, 32, 1), (2, 1, 1)], torch.Size([2]))
    """
    L = None if L is None else check_whole("L", L)
    with torch.enable_grad():
        w = [t.detach().requires_grad_() for t in w]
        eps = learner.bonus(w, life)
    first, moved = learner.rollout(life)
    student = learner.learn(moved, first, eps.detach())
    with torch.enable_grad():
        actor = [p.detach().requires_grad_() for p in life.actor]
        entropy = mean_entropy(forward(actor, first.seen).log_softmax(-1))
        widening = torch.autograd.grad(entropy.sum(), actor)
    batch, moved = learner.rollout(student)  # for the next update, and to compare over
    target, onward = None, student

    def step(life: Life, eps: Tensor | None, k: int) -> Life:
        seen, after = (batch, moved) if k == 1 else learner.rollout(life)
        return learner.learn(after, seen, eps)

    if L is not None:
        target, onward = bootstrap_target(
            lambda life, w, k: step(life, learner.bonus(w, life), k),
            lambda life, k: step(life, None, k), student, w, L, first=1)  # fmt: skip

    def compare(target_actor: list[Tensor], actor: list[Tensor]) -> Tensor:
        life = student._replace(actor=actor)
        if L is None:
            return learner.objective(life, bonus, batch)
        return learner.matching(student._replace(actor=target_actor), life, batch.seen)

    slope, losses = coefficient_gradient(
        student.actor, [learner.lr * t for t in widening], (target or student).actor, compare
    )
    return Meta(list(torch.autograd.grad(eps, w, slope)), losses, onward, target)


def memory(learner: ColourLearner, dtype: torch.dtype = torch.float32) -> int:
    """Bytes at the peak of a meta-step, of each lifetime.

    Seven times the weights (of two lives, the target, slopes, and those of the entropy), what a rollout
    sees, and four times what the hidden layers make of it.

    >>> from collage.bmg.gridworlds import TwoColours
    >>> memory(ColourLearner(TwoColours(see="ways"), 2, torch.Generator()))  # 8 walkers, 2 x 32 units
    279564
    """
    weights = [t for name in learner.sizes for t in learner.shapes[name]]
    size = sum(math.prod(shape[1:]) for shape in weights)
    seen = learner.T * learner.B * (learner.env.observations + 4 * sum(learner.widths))
    return dtype.itemsize * (7 * size + seen)


class MetaLoop:
    """Meta-steps with Adam on buffers of their own; on a GPU a whole one is recorded as a CUDA graph.

    w <- Adam(w, grad_w mu(x~, x^(1)(w))),    life <- onward

    life and w as for `colour_step`, copied, and L and bonus, too; lr of Adam. `run(n)` makes n meta-steps
    and returns nothing. `life`, `w` and the last `losses` (S,) are what it works on: read them between
    runs, write them in place, never replace them. graph: whether to record (None: on a GPU). The first
    meta-step runs as it is, the second is recorded (see `Captured`); the same generator gives the same
    draws as without it. The recording keeps the learner's settings as they are then. compiled: the
    meta-step comes from compiled programs, which take a minute to make (see `compiled_step`).

    Raises ValueError for a graph off the GPU, for compiled without L or with an outer bonus, for more
    lifetimes than a GPU has room for (see `memory`),
    and for a meta-gradient that is not finite. A run that fails leaves life, w, Adam's moments and the generator as they were.

    >>> from collage.bmg.gridworlds import TwoColours
    >>> learner = ColourLearner(TwoColours(see="ways"), 2, torch.Generator().manual_seed(0))
    >>> steps = MetaLoop(learner, learner.begin(), learner.start_meta(), L=3)
    >>> steps.run(2)
    >>> steps.life.cells[:, 0].unique()  # 2 (K + L - 1) rollouts of 16 steps
    tensor([96])
    """

    def __init__(
        self,
        learner: ColourLearner,
        life: Life,
        w: list[Tensor],
        L: int | None = None,
        lr: float = 3e-3,
        bonus: float = 0.0,
        graph: bool | None = None,
        compiled: bool = False,
    ) -> None:
        device = life.recent.device
        self.records = device.type == "cuda" if graph is None else graph
        if self.records and device.type != "cuda":
            raise ValueError(f"graph: got {graph!r} on {device}, wanted a CUDA device")
        if device.type == "cuda":
            each, room = memory(learner, life.recent.dtype), runtime.free_memory(device)
            if learner.S * each > room:
                raise ValueError(
                    f"life: got {learner.S:,} lifetimes, which need {learner.S * each:,} bytes, wanted "
                    f"{room // each:,} at most: {room:,} bytes are free on the GPU"
                )
        if compiled and (L is None or bonus):
            raise ValueError(f"compiled: got L = {L}, bonus = {bonus}, wanted an L and no bonus")
        self.learner, self.bonus = learner, bonus
        self.L = None if L is None else check_whole("L", L)
        self._compiled = compiled_step(learner, L) if compiled and L is not None else None
        self.life: Life = tree_map(lambda t: t.detach().clone(), life)
        self.w = [t.detach().clone() for t in w]
        self.losses = torch.zeros_like(self.life.recent[:, 0])
        self.adam = torch.optim.Adam(
            self.w, check_single("lr", lr), capturable=self.records, fused=self.records
        )
        self.step: Callable[[], None] = self._step
        if self.records:
            self.step = Captured(self._step, [learner.generator], device)

    def run(self, n: int = 1) -> None:
        """Make n meta-steps."""
        n, buffers = check_whole("n", n, 0), self._buffers()
        random = self.learner.generator.get_state()
        before = [torch.empty_like(t) for t in buffers]
        torch._foreach_copy_(before, buffers)
        try:
            with warnings.catch_warnings():
                # Adam wonders that its first step is not being recorded yet.
                warnings.filterwarnings("ignore", "This instance was constructed with capturable")
                for _ in range(n):
                    self.step()
            if self.records:
                check_finite("w", torch.cat([t.flatten() for t in self.w]))  # one wait for all
        except BaseException:  # an interrupt, too
            self.adam.zero_grad()
            for buffer in self._buffers()[len(before) :]:
                buffer.zero_()  # moments that were made on the way, where a recording may read them
            torch._foreach_copy_(buffers, before)
            self.learner.generator.set_state(random)
            raise

    def _buffers(self) -> list[Tensor]:
        """All that a meta-step changes."""
        moments = [t for leaf in self.w for t in self.adam.state.get(leaf, {}).values()]
        return [*tree_leaves(self.life), self.losses, *self.w, *moments]

    def _step(self) -> None:
        if self._compiled is None:
            meta = colour_step(self.learner, self.life, self.w, self.L, self.bonus)
        else:
            meta = self._compiled(self.life, self.w)
        if not self.records:  # a recording cannot ask
            check_finite("meta-gradient", meta.gradient)
        for leaf, gradient in zip(self.w, meta.gradient, strict=True):
            leaf.grad = gradient
        self.adam.step()
        self.adam.zero_grad()
        buffers = [*tree_leaves(self.life), self.losses]
        torch._foreach_copy_(buffers, [*tree_leaves(meta.onward), meta.losses])
