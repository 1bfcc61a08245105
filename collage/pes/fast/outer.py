"""A whole outer step as one program: noise, unroll, estimate and Adam without Python in between.

outer_step     the step as a pure function of tensors
OuterLoop      PES with Adam in lock-step, run plainly, compiled, or as a captured CUDA graph
toy_steps      many outer steps of the toy problem in one Triton kernel, particles in registers
"""

import torch

from collage import runtime
from collage.common.checks import check_positive, check_real, check_single, check_whole
from collage.common.populations import check_particles, estimate, nest, twins


def outer_step(theta, mean, square, powers, xi, state, noise, betas, unroll, steps, sigma, lr, eps):
    """One outer step of PES with Adam, in lock-step.

    xi <- xi + sigma z,   g = 1 / (N sigma^2) sum_j xi_j (L_j^+ - L_j^-),   theta <- Adam(theta, g)

    theta (R, P) with Adam's moments `mean` and `square`, its `betas` (2,) and their `powers` so
    far, ones at first; xi (R, M, P); noise (R, M, P) standard normal. Returns the first six anew.

    >>> zero, square = torch.zeros(1, 1), lambda theta, state, steps: (state, (theta**2).sum(1))
    >>> outer_step(zero + 1, zero, zero, torch.ones(2), zero[None], torch.zeros(2),
    ...            torch.ones(1, 1, 1), torch.tensor([0.9, 0.999]), square, 1, 0.5, 0.1, 1e-8)[0]
    tensor([[0.9000]])
    """
    several = isinstance(sigma, torch.Tensor)  # one for each run
    noise = (sigma.view(-1, 1, 1) if several else sigma) * noise
    xi, powers = xi + noise, powers * betas
    centre, shift = theta.T[:, :, None], noise.permute(2, 0, 1)
    # As `antithetic`, but each parameter's values lie side by side, as vector units like them.
    particles = torch.stack([centre + shift, centre - shift], 2).flatten(1).T
    state, losses = unroll(particles, state, steps)
    g = estimate(losses.view(len(theta), 2, -1), xi, sigma)
    (b1, b2), (c1, c2) = betas.unbind(), (1 - powers).unbind()
    mean, square = torch.lerp(g, mean, b1), torch.lerp(g * g, square, b2)
    step = mean / c1 / ((square / c2).sqrt() + eps)
    return torch.sub(theta, step, alpha=lr), mean, square, powers, xi, state


class OuterLoop:
    """PES with Adam on R runs at once, inner problem after inner problem.

    theta (R, P) is copied; `run(problems)` makes horizon / truncation outer steps in each and
    returns theta. The other arguments as in `collage.pes.PES` and `torch.optim.Adam`; the same
    generator gives the same noise as there. mode: "plain"; "compile" makes one program of an outer
    step with torch.compile; "graph" records a whole inner problem as a CUDA graph.

    Raises ValueError where the horizon is no multiple of the truncation, for a graph off the GPU,
    and for parameters that became inf or NaN. A run that fails leaves theta, Adam's moments and the
    generator as they were.

    >>> from collage.pes import Toy
    >>> toy = Toy()
    >>> loop = OuterLoop(toy.unroll, toy.reset, torch.full((1, 2), -4.0).double(), sigma=0.3,
    ...                  particles=100, truncation=10, horizon=100)
    >>> bool(toy.loss(loop.run(20)) < toy.loss(torch.full((1, 2), -4.0).double()))
    True
    """

    def __init__(self, unroll, reset, theta, sigma, particles, truncation, horizon, *, lr=1e-2,
                 betas=(0.9, 0.999), eps=1e-8, generator=None, mode="plain"):  # fmt: skip
        if not isinstance(theta, torch.Tensor) or theta.dim() != 2 or not theta.is_floating_point():
            got = tuple(theta.shape) if isinstance(theta, torch.Tensor) else type(theta).__name__
            raise ValueError(f"theta: got {got}, wanted (R, P) of floats")
        check_real("theta", theta.dtype)
        if check_whole("particles", particles, 2) % 2:
            raise ValueError(f"particles: got {particles}, wanted an even number")
        if check_whole("horizon", horizon) % check_whole("truncation", truncation):
            raise ValueError(f"horizon: got {horizon}, wanted a multiple of {truncation}")
        sigma, lr = check_positive("sigma", sigma), check_single("lr", lr)
        if isinstance(sigma, torch.Tensor):
            if sigma.shape != theta.shape[:1]:
                raise ValueError(f"sigma: got {tuple(sigma.shape)}, wanted one or ({len(theta)},)")
            sigma = sigma.to(theta)
        if mode not in ("plain", "compile", "graph"):
            raise ValueError(f"mode: got {mode!r}, wanted 'plain', 'compile' or 'graph'")
        if mode == "graph" and not theta.is_cuda:
            raise ValueError(f"mode: got 'graph' on {theta.device}, wanted a CUDA device")
        self.generator = generator or runtime.generator(0, theta.device)
        self.pairs, self.windows = particles // 2, horizon // truncation
        self.reset, self.mode = reset, mode
        fixed = theta.new_tensor(betas), unroll, truncation, sigma, lr, eps
        self.fixed = fixed
        self._compile()
        self.theta = theta.detach().clone()
        self.moments = [torch.zeros_like(theta), torch.zeros_like(theta), theta.new_ones(2)]
        self.noise = theta.new_empty(len(theta), self.pairs, theta.shape[1])

    def _compile(self):
        self.graph, self.program = None, outer_step
        if self.mode == "compile":
            self.program = torch.compile(outer_step, fullgraph=True, dynamic=False)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("graph", "program")}

    def __setstate__(self, state):  # a program and a recording are made anew
        self.__dict__.update(state)
        self._compile()

    @torch.no_grad()
    def run(self, problems=1):
        before = [t.clone() for t in (self.theta, *self.moments)]
        random = self.generator.get_state()
        try:
            for _ in range(problems):
                if self.mode == "graph":
                    self._replay()
                else:
                    self._problem()
            if not all(bool(t.isfinite().all()) for t in (self.theta, *self.moments)):
                raise ValueError("theta: it or Adam's moments became inf or NaN, wanted finite losses "
                                 "in every particle, small enough to be squared")  # fmt: skip
        except BaseException:
            if self.graph is None:
                self._keep(before)
            else:  # the graph works on these very tensors
                torch._foreach_copy_([self.theta, *self.moments], before)
            self.generator.set_state(random)
            raise
        return self.theta.clone()

    def _keep(self, values):
        self.theta, *self.moments = values

    def _problem(self):
        """One inner problem: a reset, then an outer step for each of its unrolls."""
        runs = len(self.theta)
        n, xi = runs * self.pairs, torch.zeros_like(self.noise)
        state = self.reset(n, self.generator)
        check_particles("reset", state, n)
        state = twins(nest(lambda t: t.unflatten(0, (runs, -1)), state))
        for _ in range(self.windows):
            torch.randn(self.noise.shape, generator=self.generator, out=self.noise)
            *kept, xi, state = self.program(
                self.theta, *self.moments, xi, state, self.noise, *self.fixed
            )
            self._keep(kept)

    def _replay(self):
        """The graph works on buffers of its own; only theta and Adam's moments survive a problem."""
        if self.graph is None:
            held = [t.clone() for t in (self.theta, *self.moments)]
            side, random = torch.cuda.Stream(), self.generator.get_state()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._problem()  # warms up
            torch.cuda.current_stream().wait_stream(side)
            self.generator.set_state(random)
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.generator)
            self._keep(held)
            with torch.cuda.graph(graph):
                self._problem()
                torch._foreach_copy_(held, [self.theta, *self.moments])
            self._keep(held)
            self.graph = graph
        self.graph.replay()


try:
    import triton
    import triton.language as tl
except ImportError:  # OuterLoop does the same
    triton = None

if triton is not None:

    @triton.jit
    def _descend(x, y, first, last, t, T, K):
        """K steps of descent from (x, y) at time t, and the sum of the heights after them."""
        total = x * 0
        for k in range(K):
            rate = first + (last - first) * ((t + k) / T)
            wave, dent = tl.sin(y), tl.exp(-5 * x * x)
            side = tl.where(y > 100, 0.25, tl.where(y < 100, -0.25, 0.0))
            slope = 1 / tl.sqrt(x * x + 5) - 10 * dent * wave * wave
            y -= rate * (side + 2 * dent * wave * tl.cos(y))
            x -= rate * x * slope
            wave = tl.sin(y)
            bowl = tl.sqrt(x * x + 5) - 2.23606797749979
            total += bowl + wave * wave * tl.exp(-5 * x * x) + tl.abs(y - 100) / 4
        return x, y, total

    @triton.jit
    def _toy(memory, noise, M, S, W, T, K, sigma, lr, b1, b2, eps, power1, power2,
             BLOCK: tl.constexpr):  # fmt: skip
        run, runs = tl.program_id(0), tl.num_programs(0)
        own = memory + 6 * run  # theta, mean, square of this run
        a, b = tl.load(own), tl.load(own + 1)
        ma, mb, va, vb = tl.load(own + 2), tl.load(own + 3), tl.load(own + 4), tl.load(own + 5)
        pair = tl.arange(0, BLOCK)
        here = pair < M
        one = tl.full((BLOCK,), 1.0, tl.float32)
        x, y, u, v, xa, xb = one, one, one, one, one * 0, one * 0
        for s in range(S):
            t = (s % W) * K
            new = t == 0  # a new inner problem: states and accumulators are reset together
            x, y, u, v = (
                tl.where(new, one, x),
                tl.where(new, one, y),
                tl.where(new, one, u),
                tl.where(new, one, v),
            )
            at = noise + ((s * runs + run) * M + pair) * 2
            ea, eb = sigma * tl.load(at, here, 0.0), sigma * tl.load(at + 1, here, 0.0)
            xa, xb = tl.where(new, ea, xa + ea), tl.where(new, eb, xb + eb)
            x, y, plus = _descend(x, y, tl.exp(a + ea), tl.exp(b + eb), t, T, K)
            u, v, minus = _descend(u, v, tl.exp(a - ea), tl.exp(b - eb), t, T, K)
            d = tl.where(here, plus - minus, 0.0) / (2 * M * sigma * sigma)
            ga, gb = tl.sum(xa * d), tl.sum(xb * d)
            ma, mb = b1 * ma + (1 - b1) * ga, b1 * mb + (1 - b1) * gb
            va, vb = b2 * va + (1 - b2) * ga * ga, b2 * vb + (1 - b2) * gb * gb
            power1, power2 = power1 * b1, power2 * b2
            a -= lr * ma / (1 - power1) / (tl.sqrt(va / (1 - power2)) + eps)
            b -= lr * mb / (1 - power1) / (tl.sqrt(vb / (1 - power2)) + eps)
        tl.store(own, a)
        tl.store(own + 1, b)
        tl.store(own + 2, ma)
        tl.store(own + 3, mb)
        tl.store(own + 4, va)
        tl.store(own + 5, vb)


def toy_steps(theta, mean, square, count, noise, *, sigma=0.3, truncation=10, horizon=100, lr=1e-2,
              betas=(0.9, 0.999), eps=1e-8):  # fmt: skip
    """S outer steps of `Toy` in one kernel, one program for each run, from a fresh problem on.

    theta, mean, square (R, 2) float32, count of Adam's steps so far, noise (S, R, M, 2)
    standard normal. Returns theta, mean, square and count as `outer_step` does S times over.

    Raises ValueError for other shapes or dtypes, and for a horizon that is no multiple of the
    truncation; RuntimeError where there is no Triton.

    >>> toy_steps(*[torch.zeros(1, 2)] * 3, 0, torch.zeros(5, 6, 2))
    Traceback (most recent call last):
    ...
    ValueError: noise: got (5, 6, 2), wanted (S, 1, M, 2)
    """
    runs = len(theta)
    for name, value in (("theta", theta), ("mean", mean), ("square", square)):
        if value.shape != (runs, 2) or value.dtype != torch.float32:
            raise ValueError(f"{name}: got {value.dtype} {tuple(value.shape)}, wanted float32 "
                             f"({runs}, 2)")  # fmt: skip
    if noise.dim() != 4 or noise.shape[1::2] != (runs, 2) or noise.dtype != torch.float32:
        raise ValueError(f"noise: got {tuple(noise.shape)}, wanted (S, {runs}, M, 2)")
    if check_whole("horizon", horizon) % check_whole("truncation", truncation):
        raise ValueError(f"horizon: got {horizon}, wanted a multiple of {truncation}")
    if triton is None:
        raise RuntimeError("toy_steps: Triton is not installed; OuterLoop does the same")
    steps, _, pairs, _ = noise.shape
    memory = torch.cat([theta, mean, square], 1).contiguous()
    _toy[(runs,)](memory, noise.contiguous(), pairs, steps, horizon // truncation, horizon,
                  truncation, sigma, lr, *betas, eps, betas[0] ** count, betas[1] ** count,
                  BLOCK=triton.next_power_of_2(pairs))  # fmt: skip
    return *memory.split(2, 1), count + steps
