"""Decision Transformer: reinforcement learning as sequence modelling.

Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas & Mordatch 2021 (arXiv 2106.01345).

DecisionTransformer   a causal transformer over returns-to-go, states and actions

Behaviour cloning is the same model with `conditioned=False`; %BC is that on `Trajectories.best`.
"""

import torch
import torch.nn.functional as F

from collage.common.checks import check_whole
from collage.common.stack import linear
from collage.decision_transformer.offline import Windowed
from collage.decision_transformer.trajectories import Window


class DecisionTransformer(Windowed):
    """A causal transformer over (R_1, s_1, a_1, R_2, s_2, a_2, ...) that predicts a_t at token s_t.

    x = LN(W_R R_t + e_t, W_s s_t + e_t, W_a a_t + e_t),   then for each layer
    x = x + Attention(LN(x)),  x = x + W_2 relu(W_1 LN(x)),   and  a_t = head(LN(x at s_t))

    One embedding e_t of the time in the episode serves the three tokens of a step; there is no other
    sense of position. Returns are given in the environment's unit and divided by the scale of
    `units` inside. discrete: actions are whole numbers below action_dim, predictions are logits; else
    predictions are tanh. context: K, or one for each member (a list). longest: steps of the longest
    episode. conditioned=False hides the returns: behaviour cloning. predict_return: a second head
    for the return-to-go at s_t, which is only of interest where the returns are hidden.

    members: so many models as one stack, all batches with a leading axis E then. Two exact savings:
    the last action token is never looked at and is left out, and the last layer is computed for the
    state tokens only. dropout acts where a generator is given, as
    `fit` does, with a chance that is a multiple of 1 / 65536.

    Raises ValueError for sizes below one, heads that do not divide the width, or a context longer than
    `longest`. Source: arXiv 2106.01345; the defaults are those of its Gym experiments.

    >>> model = DecisionTransformer(11, 3)
    >>> sum(p.numel() for p in model.parameters())
    726019
    >>> model(torch.zeros(4, 5), torch.zeros(4, 5, 11), torch.zeros(4, 5, 3), torch.arange(5)).shape
    torch.Size([4, 5, 3])
    """

    ahead = 0

    def __init__(self, state_dim, action_dim, *, width=128, layers=3, heads=1, context=20,
                 longest=1000, discrete=False, conditioned=True, predict_return=False, dropout=0.1,
                 members=1, seed=0):  # fmt: skip
        members = check_whole("members", members)
        sizes = {"state_dim": state_dim, "action_dim": action_dim, "width": width, "layers": layers,
                 "heads": heads, "longest": longest}  # fmt: skip
        for name, value in sizes.items():
            check_whole(name, value)
        if width % heads:
            raise ValueError(f"heads: got {heads}, wanted a divisor of the width {width}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout}, wanted one in [0, 1)")
        each = list(context) if isinstance(context, list | tuple) else [context] * members
        if len(each) != members or max(check_whole("context", k) for k in each) > longest:
            raise ValueError(f"context: got {context}, wanted one for all or {members}, none above "
                             f"the longest episode, {longest}")  # fmt: skip
        self.settings = {**sizes, "discrete": bool(discrete), "conditioned": bool(conditioned),
                         "predict_return": bool(predict_return), "dropout": dropout}  # fmt: skip
        self.action_dim, self.width_, self.layers, self.heads = action_dim, width, layers, heads
        self.longest, self.discrete, self.dropout = longest, bool(discrete), dropout
        self.conditioned, self.predict_return = bool(conditioned), bool(predict_return)
        self.contexts, self.context = each, max(each)
        d = width
        shapes = {"return weight": (1, d), "return bias": (1, d), "state weight": (state_dim, d),
                  "state bias": (1, d), "action weight": (action_dim, d)}  # fmt: skip
        if not discrete:
            shapes["action bias"] = (1, d)
        shapes |= {"time": (longest, d), "embed gain": (1, d), "embed bias": (1, d)}
        for i in range(layers):
            shapes |= {f"{i} first gain": (1, d), f"{i} first bias": (1, d),
                       f"{i} qkv weight": (d, 3 * d), f"{i} qkv bias": (1, 3 * d),
                       f"{i} out weight": (d, d), f"{i} out bias": (1, d),
                       f"{i} second gain": (1, d), f"{i} second bias": (1, d),
                       f"{i} up weight": (d, 4 * d), f"{i} up bias": (1, 4 * d),
                       f"{i} down weight": (4 * d, d), f"{i} down bias": (1, d)}  # fmt: skip
        shapes |= {"last gain": (1, d), "last bias": (1, d), "head weight": (d, action_dim),
                   "head bias": (1, action_dim)}  # fmt: skip
        if predict_return:
            shapes |= {"value weight": (d, 1), "value bias": (1, 1)}
        super().__init__(shapes, members, seed, std=0.02)
        self._register_units(state_dim)
        own = torch.tensor(each)[:, None, None]
        self.register_buffer("own_context", own, persistent=False)

    def moving(self):
        return ()

    def after(self):
        pass

    def forward(self, returns, states, actions, steps, mask=None, generator=None):
        """Predicted actions (B, K, A): logits where discrete, else in (-1, 1).

        returns (B, K), states (B, K, S), actions (B, K) or (B, K, A), steps (B, K) or (K,); for a
        stack (E, B, K, ...), or (B, K, ...) for all members alike, and then (E, B, K, A). The action
        of step t is not seen by the prediction for step t. mask (B, K) bool: which steps are real;
        needed only where padding comes first, since a step never sees what follows.
        """
        window, shared = self._window(returns, states, actions, steps, mask)
        out = self._actions(self._hidden(window, generator, mask is not None))
        return out[0] if shared and self.members == 1 else out

    def predicted_returns(self, returns, states, actions, steps, mask=None):
        """What the second head expects of the return-to-go at each state token (B, K)."""
        if not self.predict_return:
            raise ValueError("predict_return: got False, wanted a model made with True")
        window, shared = self._window(returns, states, actions, steps, mask)
        out = self._values(self._hidden(window, None, mask is not None))
        return out[0] if shared and self.members == 1 else out

    def loss(self, window, generator=None):
        """Mean cross-entropy or squared error over all steps that are real, for each member (E,).

        With predict_return the squared error of the second head, in units of the scale, is added.
        """
        window = self._own(window)
        self._check_ranges(window.steps, window.actions)
        x = self._hidden(window, generator)
        out = self._actions(x)
        if self.discrete:
            target = window.actions.flatten()
            miss = F.cross_entropy(out.flatten(0, 2), target, reduction="none").view_as(window.mask)
        else:
            miss = (out - window.actions).square().mean(-1)
        if self.predict_return:
            miss = miss + (self._values(x) / self.scale - window.returns / self.scale).square()
        mask = window.mask
        if min(self.contexts) < self.context:
            inside = torch.arange(mask.shape[2], device=mask.device) < self.own_context
            mask = mask & inside
        return (miss * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)

    @torch.no_grad()
    def act(self, window, generator=None, sample=False):
        """Actions (n,) or (n, A) after histories (n, K); the last K steps of them where longer.

        Discrete ones are the likeliest, or drawn with `sample`. A stack shares the histories out: the
        first n / E belong to member 0, and so on.
        """
        window = self._by_member(Window(*(t[:, -self.context :] for t in window)))
        mixed = min(self.contexts) < window.mask.shape[2]
        if mixed:  # some members see fewer steps than are here
            age = torch.arange(window.mask.shape[2], device=window.mask.device).flip(0)
            window = window._replace(mask=window.mask & (age < self.own_context))
        x = self._hidden(window, padded=mixed, newest=True)
        out = self._actions(x)[:, :, 0].flatten(0, 1)
        if not self.discrete:
            return out
        if sample:
            if generator is None:
                raise ValueError("generator: got None, wanted one to draw actions from")
            return torch.multinomial(out.softmax(-1), 1, generator=generator)[:, 0]
        return out.argmax(-1)

    def member(self, i):
        """Member i as a model of its own, a copy."""
        if not -self.members <= i < self.members:
            raise ValueError(f"i: got {i}, wanted one of {self.members} members")
        i = range(self.members)[i]
        one = DecisionTransformer(**self.settings, context=self.contexts[i], seed=self.seed + i)
        one.to(self.weights)
        with torch.no_grad():
            one.weights.copy_(self.weights[i : i + 1])
            one.shift.copy_(self.shift[i : i + 1])
            one.width.copy_(self.width[i : i + 1])
            one.scale.copy_(self.scale)
        return one

    def _window(self, returns, states, actions, steps, mask):
        """The fields as a `Window` (E, B, K, ...), checked; and whether they were without E."""
        shape, shared = tuple(returns.shape), returns.dim() == 2
        if returns.dim() not in (2, 3) or (not shared and shape[0] != self.members):
            raise ValueError(f"returns: got {shape}, wanted (B, K) or ({self.members}, B, K)")
        tail = () if self.discrete else (self.action_dim,)
        steps = steps.expand(shape) if steps.dim() == 1 and steps.shape == shape[-1:] else steps
        for name, tensor, wanted in (("states", states, (*shape, self.state_dim)),
                                     ("actions", actions, (*shape, *tail)), ("steps", steps, shape),
                                     ("mask", returns if mask is None else mask, shape)):  # fmt: skip
            if tuple(tensor.shape) != wanted:
                raise ValueError(f"{name}: got {tuple(tensor.shape)}, wanted {wanted}")
        self._check_ranges(steps, actions)
        return self._own(Window(returns, states, actions, steps, None, None, mask)), shared

    def _check_ranges(self, steps, actions):
        """Raise ValueError beyond the tables; not on a GPU, which would have to be waited for."""
        limits = [("steps", steps, self.longest)]
        limits += [("actions", actions, self.action_dim)] if self.discrete else []
        for name, tensor, limit in limits:
            if tensor.is_cuda or not tensor.numel():
                continue
            low, high = int(tensor.min()), int(tensor.max())
            if not 0 <= low <= high < limit:
                raise ValueError(f"{name}: got {low} to {high}, wanted 0 to {limit - 1}")

    def _hidden(self, window, generator=None, padded=False, newest=False):
        """The state tokens (E, B, K, d) after the last layer, or the newest only (E, B, 1, d)."""
        p, K = self.tensors(), window.returns.shape[2]
        x = self._drop(self._tokens(window, p), generator)
        seen = self._seen(window.mask) if padded else None
        wanted = slice(3 * K - 2, None) if newest else slice(1, None, 3)
        for i in range(self.layers):
            x = self._layer(x, p, i, seen, generator, wanted if i + 1 == self.layers else None)
        return _norm(x, p["last gain"], p["last bias"])

    def _tokens(self, window, p):
        """(E, B, 3K - 1, d): the last action is never looked at."""
        E, B, K = window.returns.shape
        d, rows = self.width_, torch.arange(E, device=window.returns.device)[:, None, None]
        time = F.embedding(window.steps + rows * self.longest, p["time"].flatten(0, 1))
        returns = window.returns / self.scale if self.conditioned else window.returns * 0
        r = returns[..., None] * p["return weight"][:, None] + p["return bias"][:, None]
        states = ((window.states - self.shift) / self.width).flatten(1, 2)
        s = linear(states, p["state weight"], p["state bias"]).view(E, B, K, d)
        if self.discrete:
            table = p["action weight"].flatten(0, 1)
            a = F.embedding(window.actions + rows * self.action_dim, table)
        else:
            flat = window.actions.flatten(1, 2)
            a = linear(flat, p["action weight"], p["action bias"]).view(E, B, K, d)
        tokens = torch.stack([r + time, s + time, a + time], 3).view(E, B, 3 * K, d)[:, :, :-1]
        return _norm(tokens, p["embed gain"], p["embed bias"])

    def _layer(self, x, p, i, seen, generator, wanted=None):
        """One block; the last one for the wanted tokens only, those of the states: 1, 4, 7, ..."""
        E, B, _, d = x.shape
        h = _norm(x, p[f"{i} first gain"], p[f"{i} first bias"])
        weight, bias = p[f"{i} qkv weight"], p[f"{i} qkv bias"]
        if wanted is not None:
            x = x[:, :, wanted]
            (wq, wkv), (bq, bkv) = (t.split([d, 2 * d], -1) for t in (weight, bias))
            q = linear(h[:, :, wanted].flatten(1, 2), wq, bq)
            kv = linear(h.flatten(1, 2), wkv, bkv)
            q, (k, v) = self._split(q, 1, B), self._split(kv, 2, B)
        else:
            q, k, v = self._split(linear(h.flatten(1, 2), weight, bias), 3, B)
        mixed = self._attend(q, k, v, seen, generator, wanted)
        n = x.shape[2]
        mixed = mixed.transpose(1, 2).reshape(E, B * n, d)
        out = linear(mixed, p[f"{i} out weight"], p[f"{i} out bias"])
        x = x + self._drop(out, generator).view_as(x)
        h = _norm(x, p[f"{i} second gain"], p[f"{i} second bias"]).flatten(1, 2)
        h = linear(h, p[f"{i} up weight"], p[f"{i} up bias"]).relu_()
        out = linear(h, p[f"{i} down weight"], p[f"{i} down bias"])
        return x + self._drop(out, generator).view_as(x)

    def _split(self, x, parts, B):
        """(E, B L, parts d) -> parts tensors (E B, heads, L, d / heads)."""
        E = len(x)
        x = x.view(E * B, -1, parts, self.heads, self.width_ // self.heads)
        found = x.permute(2, 0, 3, 1, 4).unbind(0)
        return found[0] if parts == 1 else found

    def _attend(self, q, k, v, seen, generator, wanted):
        """softmax(q k^T / sqrt(d)) v, where token i looks at tokens up to its own place."""
        if seen is None and wanted is None and not self._drops(generator):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        at = torch.arange(k.shape[2], device=q.device)
        place = (at if wanted is None else at[wanted])[:, None]
        mask = at <= place
        if seen is not None:  # (E B, 1, 1, L); each token sees itself, even where it is padding
            mask = mask & (seen | (at == place))
        if not self._drops(generator):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        share = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return self._drop(share.unflatten(0, (self.members, -1)), generator).flatten(0, 1) @ v

    def _seen(self, mask):
        """(E B, 1, 1, 3K - 1) bool: the tokens that are real."""
        return mask.flatten(0, 1).repeat_interleave(3, 1)[:, None, None, :-1]

    def _drops(self, generator):
        return generator is not None and self.dropout > 0

    def _drop(self, x, generator):
        """Dropout of x (E, ...), each member's from its own generator; none without one."""
        if not self._drops(generator):
            return x
        each = generator if isinstance(generator, list | tuple) else [generator] * len(x)
        # Four decisions from one draw of 64 bits: the chance is a multiple of 1 / 65536.
        drop, n = round(self.dropout * 65536), x[0].numel()
        kept = [torch.empty(-(-n // 4), dtype=torch.int64, device=x.device)
                .random_(-(2**63), None, generator=g).view(torch.int16)[:n] for g in each]  # fmt: skip
        kept = kept[0] if len(kept) == 1 else torch.stack(kept)
        return x * (kept.view_as(x) >= drop - 32768) * (65536 / (65536 - drop))

    def _actions(self, x):
        p = self.tensors()
        out = linear(x.flatten(1, 2), p["head weight"], p["head bias"]).unflatten(1, x.shape[1:3])
        return out if self.discrete else out.tanh()

    def _values(self, x):
        p = self.tensors()
        out = linear(x.flatten(1, 2), p["value weight"], p["value bias"])
        return out.view(x.shape[:3]) * self.scale


def _norm(x, gain, bias):
    """Layer norm of x (E, ..., d) with gains and biases (E, 1, d)."""
    if len(x) == 1:
        return F.layer_norm(x, x.shape[-1:], gain.view(-1), bias.view(-1))
    shape = (len(x), *[1] * (x.dim() - 2), x.shape[-1])
    return torch.addcmul(bias.view(shape), F.layer_norm(x, x.shape[-1:]), gain.view(shape))
