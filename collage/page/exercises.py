"""Checkers for the exercises: they try an answer on inputs of their own."""

import math

import torch

from collage import runtime
from collage.page.claims import Verdict

CHECKERS = {}


def check(name, answer):
    """Try an answer to an exercise, e.g. check("sam-1", my_function).

    Returns a verdict that shows itself; it is true where the answer is right. `...` counts as not
    answered yet. Raises ValueError for an exercise that does not exist.

    >>> check("sam-1", ...)
    ✎ sam-1: not answered yet
    """
    if name not in CHECKERS:
        raise ValueError(f"name: got {name!r}, wanted one of {sorted(CHECKERS)}")
    if answer is ...:
        return Verdict("✎", f"{name}: not answered yet", "open")
    try:
        hint = CHECKERS[name](answer)
    except Exception as error:  # an answer may fail in any way
        hint = f"it raised {type(error).__name__}: {error}"
    if hint:
        return Verdict("✗", f"{name}: not yet. {hint}", "bad")
    return Verdict("✓", f"{name}: right", "good")


def exercise(name):
    """Register a checker: it takes the answer, and returns a hint, or None where it is right."""

    def register(function):
        CHECKERS[name] = function
        return function

    return register


def _close(found, wanted, tolerance=1e-6):
    found = torch.as_tensor(found, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= tolerance)


@exercise("sam-1")
def _(answer):
    """A function (a, eta, rho, decay) -> the amplitude of SAM's two-cycle with weight decay."""
    for a, eta, rho, decay in ((4.0, 0.1, 0.05, 0.0), (1.0, 0.5, 0.2, 0.4), (3.0, 0.3, 1.0, 0.1)):
        found = float(answer(a, eta, rho, decay))
        if not math.isclose(found, eta * a * rho / (2 - eta * (a + decay)), rel_tol=1e-6):
            return (f"For a={a:g}, eta={eta:g}, rho={rho:g}, lambda={decay:g} you say {found:.4g}. "
                    "Ask for w' = -w.")  # fmt: skip
    return None


@exercise("sam-2")
def _(answer):
    """A function (loss, w, rho, eta, momentum v) -> (new w, new v): one SAM step with heavy ball."""
    w, v = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.3, -0.1]).double()
    scale = torch.tensor([4.0, 1.0]).double()

    def loss(t):
        return 0.5 * (scale * t**2).sum()

    found_w, found_v = answer(loss, w.clone(), 0.05, 0.1, v.clone())
    g = scale * w
    g = scale * (w + 0.05 * g / g.norm())
    velocity = 0.9 * v + g
    if not _close(torch.as_tensor(found_v).detach(), velocity, 1e-7):
        return "The velocity is 0.9 v plus the gradient at the perturbed weights."
    if not _close(torch.as_tensor(found_w).detach(), w - 0.1 * velocity, 1e-7):
        return "Step from the original weights, not from the perturbed ones."
    return None


@exercise("sam-3")
def _(answer):
    """The factor by which the best rho changes when chunks are 4 times smaller."""
    if not _close(float(answer), 0.5, 0.01):
        return "Keep rho / sqrt(m) fixed: what does a quarter of m do to rho?"
    return None


@exercise("convex_hull-1")
def _(answer):
    """A function (p, n) -> the mean number of vertices of the hull of n + 1 points."""
    for p, n in ((0.25, 99), (0.9, 1000), (0.0, 4)):
        if not math.isclose(float(answer(p, n)), (n + 1) * (1 - p), rel_tol=1e-9):
            return (
                f"For p={p:g}, n={n} you say {float(answer(p, n)):.4g}. How many points are there?"
            )
    return None


@exercise("convex_hull-2")
def _(answer):
    """A function (p, d) -> the number of points that the covering argument demands."""
    for p, d in ((0.5, 4), (0.1, 10), (1.0, 1)):
        if not math.isclose(float(answer(p, d)), p * 2**d, rel_tol=1e-9):
            return (f"For p={p:g}, d={d} you say {float(answer(p, d)):.4g}. Which share of the "
                    "unit ball does one covering ball fill?")  # fmt: skip
    return None


def _planar(seed, n=30):
    g = runtime.generator(seed)
    draw = torch.randn(n + 2, 3, generator=g, dtype=torch.float64)
    return draw[:n], draw[n], draw[n + 1]


@exercise("convex_hull-3")
def _(answer):
    """A function (x, z, u) -> the distance by which the shadow of z clears that of x."""
    for seed in range(4):
        x, z, u = _planar(seed)
        z, u = (3 * z, 5 * z) if seed % 2 else (z, 7 * u)
        margin = (u @ z - (x @ u).max()) / u.norm()
        if not _close(answer(x.clone(), z.clone(), u.clone()), margin, 1e-9):
            short = "of whatever length: does yours depend on it?"
            return f"For a direction of length {float(u.norm()):.3g}, {short}"
    return None


@exercise("convex_hull-4")
def _(answer):
    """A function (x, z, y) -> the point nearest to z between y and the best vertex."""
    for seed in range(6):
        x, z, _ = _planar(seed)
        z = 4 * z if seed % 2 else 0.2 * z
        y = x[seed] if seed < 4 else x[:10].mean(0)
        s = x[(x @ (z - y)).argmax()]
        t = ((z - y) @ (s - y) / (s - y).square().sum().clamp(min=1e-30)).clamp(0, 1)
        if not _close(answer(x.clone(), z.clone(), y.clone()), y + t * (s - y), 1e-9):
            return "Minimise |y + t (s - y) - z| over t, and keep t between 0 and 1."
    return None


@exercise("pes-1")
def _(answer):
    """A function (P, W) -> the inner product of slopes at which PES and full ES vary alike."""
    for p, w in ((1, 2), (8, 5), (100, 20)):
        found = float(answer(p, w))
        if not math.isclose(found, p / (2 * (p + 1)), rel_tol=1e-9):
            return (f"For P={p}, W={w} you say {found:.4g}. Which q_vw are not zero, and what is "
                    "the length of the sum of the slopes?")  # fmt: skip
    return None


@exercise("pes-2")
def _(answer):
    """A function (xi, eps, before, after, sigma) -> (gradient, new xi) across a reset."""
    g = runtime.generator(0)
    for m, p, sigma in ((5, 3, 0.5), (2, 1, 2.0)):
        xi, eps = torch.randn(2, m, p, generator=g, dtype=torch.float64)
        before, after = torch.randn(2, 2, m, generator=g, dtype=torch.float64)
        gradient, new = answer(xi.clone(), eps.clone(), before.clone(), after.clone(), sigma)
        if not _close(new, eps):
            return "After the reset only the noise of this unroll has acted."
        total = (before[0] - before[1]) @ (xi + eps) + (after[0] - after[1]) @ eps
        if not _close(gradient, total / (2 * m * sigma**2), 1e-9):
            return ("Losses before the end belong to xi + eps, losses after it to eps alone; divide "
                    "by the number of particles.")  # fmt: skip
    return None


@exercise("pes-3")
def _(answer):
    """A function (start, eta, n) -> where truncated gradient descent has run to."""
    for theta, eta, n in ((0.5, 1e-4, 1000), (-1.0, 0.01, 50), (0.2, 0.1, 0)):
        wanted = (theta + 1 / 6) * (1 + 6 * eta) ** n - 1 / 6
        found = float(answer(theta, eta, n))
        if not math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-9):
            return (f"For start={theta:g}, eta={eta:g}, n={n} you say {found:.4g}. The truncated "
                    "gradient is (y - 1) times one, and y = -6 theta.")  # fmt: skip
    return None


@exercise("pes-4")
def _(answer):
    """A function (first, ends) -> losses (W, N) that add up to the final loss less the first."""
    g = runtime.generator(0)
    for w, n in ((1, 4), (6, 3)):
        draw = torch.randn(w + 1, n, generator=g, dtype=torch.float64)
        found = answer(draw[0].clone(), draw[1:].clone())
        if not _close(found, draw[1:] - draw[:-1], 1e-9):
            return "What has this unroll added to the loss that stood at its beginning?"
    return None


@exercise("nbeats-1")
def _(answer):
    """A function (L, H, a, b) -> the number of weights of the interpretable network."""
    for L, H, a, b in ((12, 6, 256, 2048), (5, 1, 3, 2), (39, 13, 16, 64)):
        wanted = sum(L * w + 3 * w * w + 4 * w + (w + 1) * out
                     for w, out in ((a, 6), (b, 4 * ((H + 1) // 2))))  # fmt: skip
        found = answer(L, H, a, b)
        if float(found) != wanted:
            return (f"For L={L}, H={H}, a={a}, b={b} you say {found}. Five layers a stack, each with "
                    "a bias; how many coefficients come out of the last?")  # fmt: skip
    return None


@exercise("nbeats-2")
def _(answer):
    """A function (x, seen, blocks) -> the forecast of doubly residual stacking with a mask."""
    g = runtime.generator(0)
    x = 5 + torch.randn(4, 6, generator=g, dtype=torch.float64)
    seen = torch.ones(4, 6, dtype=torch.float64)
    matrices = torch.randn(3, 6, 6 + 2, generator=g, dtype=torch.float64) / 3
    for hidden in (0, 3):
        seen[1, :hidden] = 0
        shown = torch.where(seen > 0, x, 1e3)  # what lies under the mask must not matter
        rest, total = (x * seen).flip(-1), x[:, -1:]
        for m in matrices:
            found = (rest + 1) @ m
            rest, total = (rest - found[:, :6]) * seen.flip(-1), total + found[:, 6:]
        blocks = [lambda r, m=m: (((r + 1) @ m)[:, :6], ((r + 1) @ m)[:, 6:]) for m in matrices]
        if not _close(answer(shown.clone(), seen.clone(), blocks), total, 1e-9):
            return ("Turn the window round, mask it after every subtraction, and start the forecast "
                    "from the last observation.")  # fmt: skip
    return None


@exercise("nbeats-3")
def _(answer):
    """A function (points, H) -> waves, with the fastest one where H is even, without zeros."""
    for points, H in ((8, 8), (20, 6), (9, 5), (4, 2)):
        k, j = torch.arange((H + 1) // 2).double(), torch.arange(points).double()
        angle = 2 * math.pi * torch.outer(k, j) / H
        last = [(-1.0) ** j[None]] if H % 2 == 0 else []
        if not _close(answer(points, H), torch.cat([angle.cos(), angle[1:].sin(), *last]), 1e-9):
            return f"For {points} points and H={H} other rows were wanted: H of them, in float64."
    return None


@exercise("nbeats-4")
def _(answer):
    """A function (one, two, n) -> the squared error of the mean of n members."""
    for one, two, n in ((4.0, 3.0, 1), (4.0, 3.0, 2), (4.0, 3.0, 8), (1.5, 1.0, 5)):
        found = float(answer(one, two, n))
        if not math.isclose(found, 2 * two - one + 2 * (one - two) / n, rel_tol=1e-9):
            return (f"For one={one:g}, two={two:g}, n={n} you say {found:.4g}. Which part of the "
                    "error is divided by n?")  # fmt: skip
    return None


@exercise("ridge_rider-1")
def _(answer):
    """A function (n, r) -> the lowest eigenvalue of a lever game of n equal levers."""
    for n, r in ((2, 1.0), (7, 1.0), (5, 3.0)):
        found = float(answer(n, r))
        if not math.isclose(found, -r / n**2, rel_tol=1e-9):
            return (f"For n={n}, r={r:g} you say {found:.4g}. What are p and c, and what are the "
                    "eigenvalues of diag(p) - p p'?")  # fmt: skip
    return None


@exercise("ridge_rider-2")
def _(answer):
    """A function (e, H) -> the unit eigenvector of H that overlaps most with e, the same way round."""
    g = runtime.generator(0)
    for size in (2, 5, 9):
        for _ in range(4):
            H = torch.randn(size, size, generator=g, dtype=torch.float64)
            H, e = H + H.T, torch.randn(size, generator=g, dtype=torch.float64)
            e = e / e.norm()
            vectors = torch.linalg.eigh(H)[1].T
            best = vectors[(vectors @ e).abs().argmax()]
            if not _close(answer(e.clone(), H.clone()), best * (best @ e).sign(), 1e-9):
                return "Wanted: the eigenvector (a column of eigh's) with the largest |overlap|, turned to e."
    return None


@exercise("ridge_rider-3")
def _(answer):
    """A function (K, D, h) -> (negative eigenvalues, distinct ones) of the network of zeros."""
    for K, D, h in ((10, 64, 16), (3, 20, 5), (10, 4, 2), (2, 7, 3)):
        distinct = min(K - 1, D)
        found = tuple(int(n) for n in answer(K, D, h))
        if found != (h * distinct, distinct):
            return (f"For K={K}, D={D}, h={h} you say {found}. What is the rank of C, and how often "
                    "does each singular value count?")  # fmt: skip
    return None


@exercise("ridge_rider-4")
def _(answer):
    """A function (r, p, q) -> the mean return of pairs from different runs."""
    g = runtime.generator(0)
    for runs, n in ((2, 3), (5, 10)):
        r = torch.rand(n, generator=g, dtype=torch.float64)
        p, q = torch.randn(2, runs, n, generator=g, dtype=torch.float64).softmax(-1)
        wanted = [(r * p[i] * q[j]).sum() for i in range(runs) for j in range(runs) if i != j]
        if not _close(torch.as_tensor(answer(r, p, q)), torch.stack(wanted).mean(), 1e-9):
            return "All ordered pairs of two different runs count, and none of a run with itself."
    return None


@exercise("decision_transformer-1")
def _(answer):
    """A function (rewards, lengths) -> returns-to-go of episodes that are padded behind."""
    g = runtime.generator(0)
    rewards = torch.randn(4, 6, generator=g, dtype=torch.float64)
    lengths = torch.tensor([6, 1, 3, 5])
    wanted = torch.zeros_like(rewards)
    for i, n in enumerate(lengths.tolist()):
        for t in range(n):
            wanted[i, t] = rewards[i, t:n].sum()
    for fill in (0.0, 9.0):
        padded = rewards.clone()
        for i, n in enumerate(lengths.tolist()):
            padded[i, n:] = fill
        if not _close(answer(padded, lengths.clone()), wanted, 1e-9):
            return (
                "Wanted: the sum from each step to the end of its episode, whatever lies in the "
                "padding, and zero behind the end."
            )
    return None


@exercise("decision_transformer-2")
def _(answer):
    """A function (b, p, r) -> what is earned when asked for each return."""
    g = runtime.generator(0)
    for n, m in ((2, 3), (4, 5)):
        b = torch.randn(n, generator=g, dtype=torch.float64).softmax(0)
        p = torch.randn(n, m, generator=g, dtype=torch.float64).softmax(1)
        r = torch.randn(m, generator=g, dtype=torch.float64)
        wanted = []
        for j in range(m):
            policy = b * p[:, j] / (b * p[:, j]).sum()
            wanted.append((policy * (p @ r)).sum())
        if not _close(torch.as_tensor(answer(b, p, r)), torch.stack(wanted), 1e-9):
            return (
                "First the policy p(i | return j), by Bayes; then what those actions earn on "
                "average, over all returns that may follow."
            )
    return None


@exercise("decision_transformer-3")
def _(answer):
    """A function real (K,) -> the mask (3K, 3K) of causal attention with padding in front."""
    for real in ([True, True], [False, True, True], [False, False, True, True]):
        n = 3 * len(real)
        wanted = torch.tensor(
            [[i == j or (j < i and real[j // 3]) for j in range(n)] for i in range(n)]
        )
        found = torch.as_tensor(answer(torch.tensor(real)))
        if (
            found.dtype != torch.bool
            or found.shape != wanted.shape
            or not torch.equal(found, wanted)
        ):
            return (
                "Wanted: (3K, 3K) bool. A row looks at itself, and at earlier columns that are not "
                "padding; three tokens belong to each step."
            )
    return None


@exercise("decision_transformer-4")
def _(answer):
    """A function c -> the discount above which the weight grows."""
    for c in (2.0, 3.0, 1.25):
        found = float(answer(c))
        if not math.isclose(found, 1 / c, rel_tol=1e-9):
            return f"For c={c:g} you say {found:.4g}. By which factor does one update multiply w?"
    return None


@exercise("sensory_neuron-1")
def _(answer):
    """A function (x (B, N), keys (B, N, H), queries (M, H)) -> the code (B, M) of (4)."""
    g = runtime.generator(0)
    for N, B, H, M in ((5, 7, 8, 16), (3, 4, 2, 6)):
        x = torch.randn(B, N, generator=g, dtype=torch.float64)
        keys = torch.randn(B, N, H, generator=g, dtype=torch.float64)
        queries = torch.randn(M, H, generator=g, dtype=torch.float64)
        wanted = torch.zeros(B, M, dtype=torch.float64)
        for i in range(N):
            wanted += (keys[:, i] @ queries.T).tanh() * x[:, i, None]
        if not _close(answer(x, keys, queries), wanted.tanh(), 1e-9):
            return (
                "Wanted: (B, M). Scores of each query and sensor, a tanh, times the sensor's reading, "
                "summed over the sensors, and a last tanh."
            )
    return None


@exercise("sensory_neuron-2")
def _(answer):
    """A function (p, R, r) -> mean and standard deviation of a return that is R with chance p, or r."""
    for p, R, r in ((0.653, 910.0, 0.0), (0.3, 5.0, -2.0), (1.0, 4.0, 7.0)):
        wanted = (p * R + (1 - p) * r, math.sqrt(p * (1 - p)) * abs(R - r))
        found = torch.as_tensor(answer(p, R, r), dtype=torch.float64)
        if not _close(found, wanted, 1e-3):
            return f"For p={p:g}, R={R:g}, r={r:g} you say {found.tolist()}. The variance of a coin is p (1 - p)."
    return None


@exercise("sensory_neuron-3")
def _(answer):
    """A function (X, V, b) -> the share of starts, |x| < X and |v| < V, that a brake b can save."""
    for X, V, b in ((2.4, 5.0, 10.0), (2.4, 10.0, 10.0), (1.0, 20.0, 10.0), (2.0, 3.0, 4.0)):
        fast = min(V, math.sqrt(4 * b * X))
        wanted = (fast - fast**3 / (12 * b * X)) / V
        found = float(answer(X, V, b))
        if not math.isclose(found, wanted, rel_tol=1e-6):
            hint = "From v the cart needs v^2 / (2 b). What if that is more than the whole track?"
            return f"For X={X:g}, V={V:g}, b={b:g} you say {found:.4g}. {hint}"
    return None


@exercise("sensory_neuron-4")
def _(answer):
    """A function (images (B, H, W), order (B, P), size) -> the images with their patches in that order."""
    g = runtime.generator(0)
    for B, H, W, size in ((3, 6, 6, 2), (2, 4, 8, 4), (2, 6, 9, 3)):
        images = torch.rand(B, H, W, generator=g)
        P, wide = (H // size) * (W // size), W // size
        order = torch.rand(B, P, generator=g).argsort(1)
        wanted = torch.empty_like(images)
        for b in range(B):
            for to, source in enumerate(order[b].tolist()):
                (r, c), (y, x) = divmod(to, wide), divmod(source, wide)
                patch = images[b, y * size : (y + 1) * size, x * size : (x + 1) * size]
                wanted[b, r * size : (r + 1) * size, c * size : (c + 1) * size] = patch
        if not _close(answer(images, order, size), wanted):
            return (
                "Wanted: (B, H, W). Place p, counted row by row, shows the patch order[b, p] of "
                "picture b, its pixels unchanged."
            )
    return None


@exercise("bmg-1")
def _(answer):
    """A function (update, plain, x, L, first) -> the target of (4), and where life goes on."""
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    for L, first in ((1, 2), (2, 0), (5, 3)):
        seen = []

        def update(x, k, seen=seen):
            seen.append(("update", k))
            return 0.9 * x + 0.1 * k

        def plain(x, k, seen=seen):
            seen.append(("plain", k))
            return x - 0.3 * x**3 + 0.01 * k

        found = answer(update, plain, x, L, first)
        calls, onward = list(seen), x
        for k in range(first, first + L - 1):
            onward = update(onward, k)
        target = plain(onward, first + L - 1)
        wanted = [("update", k) for k in range(first, first + L - 1)] + [("plain", first + L - 1)]
        if calls != wanted:
            return f"For L={L}, first={first} you call {calls}; wanted {wanted}."
        if not isinstance(found, tuple) or len(found) != 2:
            return "Wanted: two states, the target and the one from which life goes on."
        if not _close(found[0], target, 1e-12):
            return f"For L={L} the target is another one: L - 1 updates, then one plain step."
        if not _close(found[1], onward, 1e-12):
            return f"For L={L} life goes on from the state before the plain step."
    return None


@exercise("bmg-2")
def _(answer):
    """A function (h, sigma, x), all (d,) -> the learning rate that is best for one noisy step."""
    g = runtime.generator(0)
    for d in (1, 2, 5):
        h, sigma, x = (torch.rand(d, generator=g, dtype=torch.float64) + 0.1 for _ in range(3))
        wanted = (h**2 * x**2).sum() / (h**3 * x**2 + h * sigma**2).sum()
        found = float(answer(h, sigma, x))
        if not math.isclose(found, wanted, rel_tol=1e-6):
            return (
                f"For d={d} you say {found:.4g}. After one step E f is a parabola in the rate: "
                "where is its lowest point?"
            )
    return None


@exercise("bmg-3")
def _(answer):
    """A function (target (S, A), logits (S, A)) -> the gradient of KL(target || student) in logits."""
    g = runtime.generator(0)
    for S, A in ((4, 3), (1, 6)):
        target, logits = (2 * torch.randn(S, A, generator=g, dtype=torch.float64) for _ in range(2))
        wanted = logits.softmax(-1) - target.softmax(-1)
        if not _close(answer(target, logits), wanted, 1e-9):
            return "Wanted: (S, A). Only the student's log-softmax depends on its logits."
    return None


@exercise("bmg-4")
def _(answer):
    """A function (K, L) -> rollouts made, updates kept, updates that the gradient goes through."""
    for K, L in ((1, 1), (1, 7), (7, 9)):
        found = tuple(int(v) for v in answer(K, L))
        if found != (K + L, K + L - 1, K):
            return (
                f"For K={K}, L={L} you say {found}. Each update has a rollout, the plain step too."
            )
    return None
