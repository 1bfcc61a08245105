"""What every room computes, small: f(device, dtype) -> tensors, from the same numbers anywhere.

Random numbers are drawn on the CPU and moved. Where a function draws itself, on a GPU it gets a generator
there, whose numbers are other ones on a real GPU: those works are in DRAWING.
"""

import torch
from torch.nn.functional import cross_entropy

from collage import bmg, convex_hull, decision_transformer, nbeats, pes, ridge_rider, runtime, sam
from collage.bmg.actors import ColourLearner
from collage.bmg.gridworlds import ExactColours, TwoColours
from collage.common.curvature import hvp, lanczos
from collage.common.environments import CartPole, MountainCar, SwingUp
from collage.common.networks import forward, mlp
from collage.common.populations import antithetic, estimate, tree_leaves
from collage.nbeats import measures
from collage.nbeats.panels import Windows
from collage.pes import problems
from collage.ridge_rider import landscapes
from collage.sensory_neuron import Agent, Sensors, play
from collage.sensory_neuron.strategies import OpenES, centred_ranks
from tests.bmg.valley import NoisyValley


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=runtime.generator(seed), dtype=torch.float64).to(dtype)


def dice(device, seed=0):
    return runtime.generator(seed, device)


def classes(device, dtype, n=40, wide=6):
    labels = torch.randint(3, (n,), generator=runtime.generator(7))
    return normal(n, wide, dtype=dtype).to(device), labels.to(device)


def sam_of(device, dtype, **settings):
    layers = [torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)]
    model = torch.nn.Sequential(*layers).to(dtype)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(normal(*p.shape, seed=i, dtype=dtype) / 2)
    model, (x, y) = model.to(device), classes(device, dtype)
    opt = sam.SAM(model.parameters(), "SGD", lr=0.1, momentum=0.9, **settings)

    def closure():
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    return model, opt, closure


def sam_steps(device, dtype):
    model, opt, closure = sam_of(device, dtype)
    return [opt.step(closure) for _ in range(3)], [p.detach() for p in model.parameters()]


def sam_ensemble(device, dtype):
    nets = sam.Ensemble([normal(3, 4, 2, dtype=dtype).to(device)], rho=0.1, lr=0.1)
    return nets.step(lambda params: params[0].sin().square().sum((1, 2))), nets.flat


def hull(device, dtype):
    points, queries = normal(300, 4).to(device, dtype), normal(24, 4, seed=1).to(device, dtype)
    found = convex_hull.membership(points, queries)
    convex_hull.verify(found, points, queries)
    near = convex_hull.nearest(points, queries)
    # Which plane proves "outside" is the device's own affair: `verify` has seen it.
    return found.inside, found.margin > 0, found.entry, near.point, near.distance


def eigenpairs(device, dtype):
    A = normal(40, 40, dtype=dtype).to(device)
    product = hvp(lambda t: t @ (A + A.T) @ t / 4, torch.zeros(40, dtype=dtype, device=device))
    return lanczos(product, 40, 3, "SA", generator=dice(device), dtype=dtype).values


def tanh_loss(device, dtype):
    return landscapes.Tanh(*classes(device, dtype, wide=4), 3, 3)


def rides(device, dtype):
    loss = tanh_loss(device, dtype)
    start = loss.saddle()
    along = ridge_rider.ridges(loss, start)
    return ridge_rider.ride(loss, start, along.vectors[:2], most=3).losses.abs(), along.values


def slopes(device, dtype):
    loss = tanh_loss(device, dtype)
    thetas = normal(3, loss.size, dtype=dtype).to(device)
    return ridge_rider.descend(loss, thetas, 5, 0.1), ridge_rider.saddle(
        loss, thetas, steps=5
    ).thetas


def games(device, dtype):
    theta, r = normal(6, dtype=dtype).to(device), torch.tensor([1.0, 0.5, 0.25], dtype=dtype)
    tree = landscapes.Choices(torch.tensor([[-1.0, 0], [1, -1], [1, 1]], dtype=dtype), r)
    game = landscapes.Levers(r)
    return [game(theta), game.cross_play(theta[None]), torch.func.grad(game)(theta), tree(theta[:2]),
            torch.func.grad(tree)(theta[:2]), tree.reached(theta[None, :2])]  # fmt: skip


def grown(device, dtype):
    tree = landscapes.Choices.random(3, generator=dice(device))
    return tree.turns, tree(torch.zeros(tree.turns.shape[1], device=device, dtype=dtype))


def unrolls(device, dtype):
    found, (x, y) = [], classes(device, dtype)
    toy, influence = problems.Toy(dtype=dtype), problems.Influence(dtype=dtype)
    for problem, wide in (
        (toy, 2),
        (influence, 1),
        (problems.Schedule(x, y, hidden=4, batch=8), 2),
    ):
        state, g = problem.reset(4, dice(device)), normal(4, wide, dtype=dtype).to(device)
        found += tree_leaves(problem.unroll(g / 10, state, 3))
    return found


def estimators(device, dtype):
    found = []
    for kind in (pes.PES, pes.TruncatedES, pes.NoiseReuseES, pes.FullES):
        toy = problems.Toy(dtype=dtype)
        rule = kind(toy, sigma=0.1, particles=8, truncation=5, horizon=20, generator=dice(device))
        found += [rule.step(torch.zeros(2, 2, dtype=dtype, device=device)) for _ in range(3)]
    return [g for g in found if g is not None]


def controls(device, dtype):
    found = []
    for env in (CartPole(), MountainCar(), SwingUp()):
        width = 5 if isinstance(env, SwingUp) else len(env.reset(1, runtime.generator(0))[0])
        found.append(normal(6, width, dtype=dtype).to(device) / 10)
    swing = SwingUp()
    return [
        *found,
        swing.expert(found[2]),
        *tree_leaves(swing.step(found[2], swing.expert(found[2]))),
    ]


def population(device, dtype):
    theta, noise = (
        normal(2, 5, dtype=dtype).to(device),
        normal(2, 3, 5, seed=1, dtype=dtype).to(device),
    )
    losses = antithetic(theta, noise).square().sum(-1)
    nets = [t.to(device, dtype) for t in mlp([4, 8, 2], 3, runtime.generator(0))]
    return (estimate(losses, noise, 0.1), centred_ranks(losses.flatten()),
            forward(nets, normal(5, 4, dtype=dtype).to(device)))  # fmt: skip


def panel(device, n=4):
    return [5 + normal(30 + i, seed=i).abs().to(device) for i in range(n)]


def forecasts(device, dtype):
    members = [nbeats.Member(8, "smape", 0), nbeats.Member(12, "mase", 1)]
    ensemble = nbeats.Ensemble(members, 4, stacks=[("trend", 8), ("seasonality", 8)], device=device)
    losses = ensemble.fit(panel(device), 4, batch=8)
    made = ensemble.forecast(panel(device))
    y = torch.stack([s[-4:] for s in panel(device)])
    return losses, made, measures.smape(y, made[0]), Windows(panel(device), 8, 4).last()


def recorded(device):
    g = runtime.generator(0)
    parts = torch.randn(60, 5, generator=g), torch.rand(60, 2, generator=g) * 2 - 1
    rewards = torch.rand(60, generator=g)
    return decision_transformer.Trajectories(*(t.to(device) for t in (*parts, rewards)),
                                             torch.full((6,), 10))  # fmt: skip


def offline(device, kind="dt", steps=4, members=2, compiled=False):
    model = (decision_transformer.DecisionTransformer(5, 2, width=16, layers=2, context=4, longest=10,
                                                      members=members) if kind == "dt" else
             decision_transformer.ImplicitQ(5, 2, width=16, members=members)).to(device)  # fmt: skip
    losses = decision_transformer.fit(model, recorded(device), steps, batch=6, compiled=compiled)
    return losses, model.weights.detach()


def agents(device, dtype):
    env = SwingUp()
    starts = env.reset(5, runtime.generator(0)).to(device)
    agent = Agent(members=2).to(device)
    sensors = Sensors("episode", noise=1)
    return (play(agent, env, starts, steps=20).returns,
            play(agent, env, starts, sensors=sensors, generator=dice(device), steps=20).returns)  # fmt: skip


def strategies(device, dtype):
    search = OpenES(torch.zeros(9, device=device), 0.1, 8, dice(device))
    for _ in range(2):
        search.tell(search.ask().square().sum(1))
    return search.ask()


def colours(device, see="ways", lifetimes=2):
    learner = ColourLearner(TwoColours(see=see), lifetimes, dice(device), steps=4)
    return learner, learner.begin(), learner.start_meta()


def meta_step(device, dtype):
    made = bmg.colour_step(*colours(device), 3)
    return made.gradient, made.losses


def exact(device, dtype):
    world = ExactColours(2)
    theta = normal(2, len(world.start), 4, dtype=dtype).to(device)
    return world.slopes(theta, torch.tensor([1, -1], device=device)), world.reward(theta, 1)


def valley(device, dtype):
    bowl = NoisyValley([1.0, 0.1])
    x, w = normal(3, 2, dtype=dtype).to(device), normal(3, dtype=dtype).to(device)
    return bowl.slope(x, 0), bowl.update(x, w, 0), bowl.objective(x)
