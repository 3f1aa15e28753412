"""A small Llama in torch: plain functions over a table of parameters named as in Hugging Face files."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of the model. Hidden and intermediate are multiples of 32, the group of q4f16_1."""

    vocabulary: int = 4096
    hidden: int = 256
    intermediate: int = 704
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    head: int = 32
    context: int = 2048
    theta: float = 10000.0
    epsilon: float = 1e-5


def initial(shape: Shape, seed: int) -> Parameters:
    """Random weights [out, in] in float32; outputs of blocks start smaller, so that depth does not add up."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * (scale * columns**-0.5)

    h, out = shape.hidden, (2 * shape.layers) ** -0.5
    table: Parameters = {
        "model.embed_tokens.weight": normal(shape.vocabulary, h, 0.8),
        "lm_head.weight": normal(shape.vocabulary, h, 0.8),
    }
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        table[f"{name}.self_attn.q_proj.weight"] = normal(shape.heads * shape.head, h)
        table[f"{name}.self_attn.k_proj.weight"] = normal(shape.kv_heads * shape.head, h)
        table[f"{name}.self_attn.v_proj.weight"] = normal(shape.kv_heads * shape.head, h)
        table[f"{name}.self_attn.o_proj.weight"] = normal(h, shape.heads * shape.head, out)
        table[f"{name}.mlp.gate_proj.weight"] = normal(shape.intermediate, h)
        table[f"{name}.mlp.up_proj.weight"] = normal(shape.intermediate, h)
        table[f"{name}.mlp.down_proj.weight"] = normal(h, shape.intermediate, out)
        table[f"{name}.input_layernorm.weight"] = torch.ones(h)
        table[f"{name}.post_attention_layernorm.weight"] = torch.ones(h)
    table["model.norm.weight"] = torch.ones(h)
    return table


def rotations(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary embedding, each [length, head]; halves repeated, as Hugging Face pairs."""
    frequency = shape.theta ** (-torch.arange(0, shape.head, 2, dtype=torch.float32) / shape.head)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def forward(
    parameters: Parameters, shape: Shape, ids: Tensor, parts: Tensor, weight: Callable[[Tensor], Tensor]
) -> Tensor:
    """Last hidden states [batch, length, hidden] after the final norm, for ids [batch, length].

    Attention is causal and stays inside a part: tokens with the same number in `parts` [batch, length]. As
    rotary embedding is relative, each part is computed as if it stood alone.

    Every matrix passes through `weight` before use: the place for simulated quantisation.
    """
    batch, length = ids.shape
    cos, sin = rotations(shape, length)
    seen_by = (parts[:, None, :, None] == parts[:, None, None, :]).tril()

    def matrix(name: str) -> Tensor:
        return weight(parameters[name])

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.rms_norm(x, (shape.hidden,), parameters[name], shape.epsilon)

    def heads(x: Tensor, count: int) -> Tensor:
        return x.view(batch, length, count, shape.head).transpose(1, 2)

    def turn(x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * cos.to(x.dtype) + torch.cat((-right, left), dim=-1) * sin.to(x.dtype)

    x = functional.embedding(ids, matrix("model.embed_tokens.weight"))
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm.weight")
        q = turn(heads(functional.linear(h, matrix(f"{name}.self_attn.q_proj.weight")), shape.heads))
        k = turn(heads(functional.linear(h, matrix(f"{name}.self_attn.k_proj.weight")), shape.kv_heads))
        v = heads(functional.linear(h, matrix(f"{name}.self_attn.v_proj.weight")), shape.kv_heads)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen_by, enable_gqa=True)
        joined = seen.transpose(1, 2).reshape(batch, length, -1)
        x = x + functional.linear(joined, matrix(f"{name}.self_attn.o_proj.weight"))
        h = norm(x, f"{name}.post_attention_layernorm.weight")
        gate = functional.silu(functional.linear(h, matrix(f"{name}.mlp.gate_proj.weight")))
        inner = gate * functional.linear(h, matrix(f"{name}.mlp.up_proj.weight"))
        x = x + functional.linear(inner, matrix(f"{name}.mlp.down_proj.weight"))
    return norm(x, "model.norm.weight")


def loss_on(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy where `targets` [batch, length] is not -100; only those positions reach the head."""
    wanted = targets != -100
    logits = functional.linear(hidden[wanted], head)
    return functional.cross_entropy(logits.float(), targets[wanted])


class _StraightThrough(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped where it is not installed
    """q4f16_1's rounding forward, identity backward."""

    @staticmethod
    def forward(context: object, weight: Tensor) -> Tensor:
        return quantised(weight)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return gradient


def quantised(weight: Tensor) -> Tensor:
    """`weight` as it comes back from q4f16_1: groups of 32 along the input, scale max/7 in float16."""
    groups = weight.detach().half().float().unflatten(-1, (-1, 32))
    scale = (groups.abs().amax(-1, keepdim=True) / 7).half().float()
    steps = torch.where(scale > 0, (groups / scale.clamp_min(1e-12)).round().clamp(-7, 7), 0.0)
    return (steps * scale).flatten(-2)


def simulate_q4f16_1(weight: Tensor) -> Tensor:
    """`quantised`, transparent to gradients."""
    result: Tensor = _StraightThrough.apply(weight)
    return result
