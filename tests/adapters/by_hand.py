"""The residual stream of each family computed by hand in float64, from the weights' names and the papers' formulas.

Nothing here uses the libraries' layers: a family's test compares the adapter with it. Every function takes the model
and token ids [batch, tokens] and returns the L + 1 boundaries, [batch, tokens, width].
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

Weights = dict[str, Tensor]


def weights_of(model: Any) -> Weights:
    return {name: tensor.detach().double() for name, tensor in model.state_dict().items()}


def layer_norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def rms_norm(x: Tensor, weight: Tensor | float, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, divide: float = 1.0) -> Tensor:
    """Causal softmax attention of heads [batch, heads, tokens, width]; back as [batch, tokens, heads · width]."""
    tokens = q.shape[2]
    ahead = torch.arange(tokens)[None, :] - torch.arange(tokens)[:, None]
    hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) / divide).masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def rotate(x: Tensor, theta: float = 10000.0) -> Tensor:
    """Rotary positions (arXiv:2104.09864) in the layout that pairs the two halves of a head."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * theta ** (-torch.arange(half, dtype=x.dtype) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)


def llama(model: Any, ids: Tensor, window: int | None = None) -> list[Tensor]:
    w, c = weights_of(model), model.config
    x = w["model.embed_tokens.weight"][ids]
    stream = [x]
    for i in range(c.num_hidden_layers):
        p = f"model.layers.{i}."
        u = rms_norm(x, w[p + "input_layernorm.weight"], c.rms_norm_eps)
        q, k, v = (u @ w[f"{p}self_attn.{name}_proj.weight"].T for name in "qkv")
        q, k, v = heads(q, c.num_attention_heads), heads(k, c.num_key_value_heads), heads(v, c.num_key_value_heads)
        group = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        x = x + attention(rotate(q), rotate(k), v, window=window) @ w[p + "self_attn.o_proj.weight"].T
        u = rms_norm(x, w[p + "post_attention_layernorm.weight"], c.rms_norm_eps)
        gate, up = (u @ w[f"{p}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (silu(gate) * up) @ w[p + "mlp.down_proj.weight"].T
        stream.append(x)
    return stream


def mistral(model: Any, ids: Tensor) -> list[Tensor]:
    return llama(model, ids, window=model.config.sliding_window)


def _gpt_attention(x: Tensor, w: Weights, p: str, count: int, divide: float = 1.0) -> Tensor:
    q, k, v = (
        heads(part, count) for part in (x @ w[p + "attn.c_attn.weight"] + w[p + "attn.c_attn.bias"]).chunk(3, -1)
    )
    return attention(q, k, v, divide=divide) @ w[p + "attn.c_proj.weight"] + w[p + "attn.c_proj.bias"]


def _gpt_mlp(x: Tensor, w: Weights, p: str) -> Tensor:
    hidden = gelu_tanh(x @ w[p + "mlp.c_fc.weight"] + w[p + "mlp.c_fc.bias"])
    return hidden @ w[p + "mlp.c_proj.weight"] + w[p + "mlp.c_proj.bias"]


def gpt2(model: Any, ids: Tensor) -> list[Tensor]:
    w, c = weights_of(model), model.config
    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][: ids.shape[1]]
    stream = [x]
    for i in range(c.n_layer):
        p = f"transformer.h.{i}."
        divide = i + 1.0 if c.scale_attn_by_inverse_layer_idx else 1.0
        x = x + _gpt_attention(layer_norm(x, w, p + "ln_1", c.layer_norm_epsilon), w, p, c.n_head, divide)
        x = x + _gpt_mlp(layer_norm(x, w, p + "ln_2", c.layer_norm_epsilon), w, p)
        stream.append(x)
    return stream


def _post_norm(model: Any, ids: Tensor, tokens: str, positions: str) -> list[Tensor]:
    w, c = weights_of(model), model.config
    x = w[tokens][ids] + w[positions][: ids.shape[1]]
    stream = [x]
    for i in range(c.n_layer):
        p = f"transformer.h.{i}."
        x = layer_norm(x + _gpt_attention(x, w, p, c.n_head), w, p + "ln_1", c.layer_norm_epsilon)
        x = layer_norm(x + _gpt_mlp(x, w, p), w, p + "ln_2", c.layer_norm_epsilon)
        stream.append(x)
    return stream


def gpt2_postnorm(model: Any, ids: Tensor) -> list[Tensor]:
    return _post_norm(model, ids, "transformer.wte.weight", "transformer.wpe.weight")


def openai_gpt(model: Any, ids: Tensor) -> list[Tensor]:
    return _post_norm(model, ids, "transformer.tokens_embed.weight", "transformer.positions_embed.weight")


def causal_conv(x: Tensor, w: Weights, p: str) -> Tensor:
    """A depthwise convolution over tokens, [batch, tokens, channels], that looks back only."""
    kernel = w[p + "conv1d.weight"][:, 0]  # [channels, taps]; the last tap is the present token
    out = w[p + "conv1d.bias"].expand_as(x).clone()
    for lag in range(kernel.shape[1]):
        out[:, lag:] += x[:, : x.shape[1] - lag] * kernel[:, -1 - lag]
    return out


def mamba(model: Any, ids: Tensor, norm_eps: float | None = None) -> list[Tensor]:
    """Mamba (arXiv:2312.00752), Eq. 2 with the discretisation of its Algorithm 2; with `norm_eps`, FalconMamba's
    (arXiv:2410.05355) RMSNorm without weights on Δ, B and C."""
    w, c = weights_of(model), model.config
    x = w["backbone.embeddings.weight"][ids]
    stream = [x]
    for i in range(c.num_hidden_layers):
        p = f"backbone.layers.{i}.mixer."
        u = rms_norm(x, w[f"backbone.layers.{i}.norm.weight"], c.layer_norm_epsilon)
        inner, gate = (u @ w[p + "in_proj.weight"].T).chunk(2, -1)
        inner = silu(causal_conv(inner, w, p))
        low, b, k = (inner @ w[p + "x_proj.weight"].T).split((c.time_step_rank, c.state_size, c.state_size), -1)
        if norm_eps is not None:
            low, b, k = (rms_norm(part, 1.0, norm_eps) for part in (low, b, k))
        step = softplus(low @ w[p + "dt_proj.weight"].T + w[p + "dt_proj.bias"])
        decay = -torch.exp(w[p + "A_log"])
        state = torch.zeros(len(ids), inner.shape[-1], c.state_size, dtype=torch.float64)
        outputs = []
        for t in range(ids.shape[1]):
            dt = step[:, t, :, None]
            state = torch.exp(dt * decay) * state + dt * b[:, t, None, :] * inner[:, t, :, None]
            outputs.append((state * k[:, t, None, :]).sum(-1))
        y = (torch.stack(outputs, 1) + inner * w[p + "D"]) * silu(gate)
        x = x + y @ w[p + "out_proj.weight"].T
        stream.append(x)
    return stream


def falcon_mamba(model: Any, ids: Tensor) -> list[Tensor]:
    return mamba(model, ids, norm_eps=model.config.mixer_rms_eps)


def mamba2(model: Any, ids: Tensor) -> list[Tensor]:
    """Mamba 2 (arXiv:2405.21060): one decay a head, and a gated RMSNorm, group by group, before
    the output projection."""
    w, c = weights_of(model), model.config
    inner_width, groups = c.expand * c.hidden_size, c.n_groups * c.state_size
    x = w["backbone.embeddings.weight"][ids]
    stream = [x]
    for i in range(c.num_hidden_layers):
        p = f"backbone.layers.{i}.mixer."
        u = rms_norm(x, w[f"backbone.layers.{i}.norm.weight"], c.layer_norm_epsilon)
        projected = u @ w[p + "in_proj.weight"].T
        gate, mixed, dt = projected.split((inner_width, inner_width + 2 * groups, c.num_heads), -1)
        inner, b, k = silu(causal_conv(mixed, w, p)).split((inner_width, groups, groups), -1)
        inner = inner.unflatten(-1, (c.num_heads, c.head_dim))
        b, k = (
            part.unflatten(-1, (c.n_groups, c.state_size)).repeat_interleave(c.num_heads // c.n_groups, 2)
            for part in (b, k)
        )
        step = softplus(dt + w[p + "dt_bias"])
        decay = -torch.exp(w[p + "A_log"])
        state = torch.zeros(len(ids), c.num_heads, c.head_dim, c.state_size, dtype=torch.float64)
        outputs = []
        for t in range(ids.shape[1]):
            now = step[:, t, :, None, None]
            entering = now * inner[:, t, :, :, None] * b[:, t, :, None, :]
            state = torch.exp(now * decay[:, None, None]) * state + entering
            outputs.append((state * k[:, t, :, None, :]).sum(-1))
        y = (torch.stack(outputs, 1) + inner * w[p + "D"][:, None]).flatten(2)
        y = rms_norm((y * silu(gate)).unflatten(-1, (c.n_groups, -1)), 1.0, c.layer_norm_epsilon).flatten(2)
        y = y * w[p + "norm.weight"]
        x = x + y @ w[p + "out_proj.weight"].T
        stream.append(x)
    return stream


def rwkv(model: Any, ids: Tensor) -> list[Tensor]:
    """RWKV-4 (arXiv:2305.13048), Eq. 11 to 18, without the library's halving; on weights that were not rescaled."""
    w, c = weights_of(model), model.config
    x = layer_norm(w["rwkv.embeddings.weight"][ids], w, "rwkv.blocks.0.pre_ln", c.layer_norm_epsilon)
    stream = [x]
    for i in range(c.num_hidden_layers):
        p = f"rwkv.blocks.{i}."
        u = layer_norm(x, w, p + "ln1", c.layer_norm_epsilon)
        k, v, r = (_shift_mixed(u, w, p + "attention.", name) for name in ("key", "value", "receptance"))
        decay, bonus = torch.exp(w[p + "attention.time_decay"]), w[p + "attention.time_first"]
        top, bottom, outputs = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), []
        for t in range(ids.shape[1]):
            now = torch.exp(bonus + k[:, t])
            outputs.append((top + now * v[:, t]) / (bottom + now))
            top = torch.exp(-decay) * top + torch.exp(k[:, t]) * v[:, t]
            bottom = torch.exp(-decay) * bottom + torch.exp(k[:, t])
        x = x + (torch.sigmoid(r) * torch.stack(outputs, 1)) @ w[p + "attention.output.weight"].T
        u = layer_norm(x, w, p + "ln2", c.layer_norm_epsilon)
        k, r = (_shift_mixed(u, w, p + "feed_forward.", name) for name in ("key", "receptance"))
        x = x + torch.sigmoid(r) * (k.relu().square() @ w[p + "feed_forward.value.weight"].T)
        stream.append(x)
    return stream


def _shift_mixed(u: Tensor, w: Weights, p: str, name: str) -> Tensor:
    """A projection of each token mixed with the one before it."""
    mix = w[f"{p}time_mix_{name}"]
    before = torch.cat((torch.zeros_like(u[:, :1]), u[:, :-1]), 1)
    return (u * mix + before * (1 - mix)) @ w[f"{p}{name}.weight"].T
