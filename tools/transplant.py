"""Weights to and from the `DecisionTransformerModel` of transformers: for tests and benchmarks."""

import torch

NAMES = {"return weight": "embed_return.weight", "return bias": "embed_return.bias",
         "state weight": "embed_state.weight", "state bias": "embed_state.bias",
         "action weight": "embed_action.weight", "action bias": "embed_action.bias",
         "time": "embed_timestep.weight", "embed gain": "embed_ln.weight",
         "embed bias": "embed_ln.bias", "last gain": "encoder.ln_f.weight",
         "last bias": "encoder.ln_f.bias", "head weight": "predict_action.0.weight",
         "head bias": "predict_action.0.bias"}  # fmt: skip
LAYER = {"first gain": "ln_1.weight", "first bias": "ln_1.bias", "qkv weight": "attn.c_attn.weight",
         "qkv bias": "attn.c_attn.bias", "out weight": "attn.c_proj.weight",
         "out bias": "attn.c_proj.bias", "second gain": "ln_2.weight", "second bias": "ln_2.bias",
         "up weight": "mlp.c_fc.weight", "up bias": "mlp.c_fc.bias",
         "down weight": "mlp.c_proj.weight", "down bias": "mlp.c_proj.bias"}  # fmt: skip


def config(model, attention="sdpa"):
    """The settings of the model there that has the shape of a `DecisionTransformer`."""
    from transformers import DecisionTransformerConfig

    p = model.dropout
    return DecisionTransformerConfig(
        state_dim=model.state_dim, act_dim=model.action_dim, hidden_size=model.width,
        max_ep_len=model.longest, n_layer=model.layers, n_head=model.heads,
        activation_function="relu", resid_pdrop=p, attn_pdrop=p, embd_pdrop=p,
        attn_implementation=attention)  # fmt: skip


def _pairs(model, theirs):
    """(ours (rows, columns), theirs in the same shape) for all tensors but the constant wpe[0]."""
    named = dict(theirs.named_parameters())
    for name, mine in model.tensors().items():
        layer = name[0].isdigit()
        i, _, rest = name.partition(" ")
        other = named[f"encoder.h.{i}.{LAYER[rest]}" if layer else NAMES[name]]
        # Linear keeps (out, in); Conv1D, in the layers, and embeddings keep (in, out).
        turned = not layer and other.dim() == 2 and name != "time"
        yield name, mine[0], (other.T if turned else other).view(mine.shape[1:])


@torch.no_grad()
def to_transformers(model, theirs):
    """Copy a single, continuous `DecisionTransformer` into their model; wpe[0] becomes zero."""
    for _, mine, other in _pairs(model, theirs):
        other.copy_(mine)
    theirs.encoder.wpe.weight.zero_()
    return theirs


@torch.no_grad()
def from_transformers(theirs, model):
    """Copy their model into ours. They add wpe[0] to every token, which our bias can hold."""
    for name, mine, other in _pairs(model, theirs):
        mine.copy_(other)
        if name == "embed bias":
            mine += theirs.encoder.wpe.weight[0]
    return model
