"""Small models, inputs and recorded episodes for the tests of this room."""

import torch

from collage.decision_transformer import DecisionTransformer, Trajectories


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_model(state_dim=5, action_dim=2, *, shake=0.3, **settings):
    """A small model whose weights are large enough for differences to show."""
    shape = {"width": 16, "layers": 2, "heads": 2, "context": 6, "longest": 30, **settings}
    model = DecisionTransformer(state_dim, action_dim, **shape)
    with torch.no_grad():
        model.weights.add_(shake * torch.randn(model.weights.shape, generator=seeded(99)))
    return model


def inputs(model, B=3, K=6, seed=1, members=None):
    """Returns, states, actions and steps, (B, K, ...) or (E, B, K, ...)."""
    g, lead = seeded(seed), (B, K) if members is None else (members, B, K)
    if model.discrete:
        actions = torch.randint(model.action_dim, lead, generator=g)
    else:
        actions = torch.randn(*lead, model.action_dim, generator=g)
    first = torch.randint(0, model.longest - K, (*lead[:-1], 1), generator=g)
    returns = torch.randn(lead, generator=g)
    states = torch.randn(*lead, model.state_dim, generator=g)
    return [returns, states, actions, torch.arange(K) + first]


def episodes(lengths=(9, 1, 12, 5, 7), seed=7, discrete=False, state_dim=5, actions=2, ended=None):
    g, n = seeded(seed), sum(lengths)
    if discrete:
        moves = torch.randint(actions, (n,), generator=g)
    else:
        moves = torch.randn(n, actions, generator=g).tanh()
    states, rewards = torch.randn(n, state_dim, generator=g), torch.randn(n, generator=g)
    return Trajectories(states, moves, rewards, torch.tensor(lengths), ended)
