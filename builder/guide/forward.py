"""The guide's forward pass in numpy, straight from the quantised MLC directory: small, slow, plain.

It exists so that the evaluation needs neither torch nor a compiled library. Arithmetic is float32; weights
are what q4f16_1 stores.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.compile.mlc import MLCDirectory
from builder.compile.quantise import GROUP, dequantise

Array = npt.NDArray[np.float32]


class Guide:
    """A Llama with its weights dequantised in memory; one sequence at a time."""

    def __init__(self, directory: Path) -> None:
        self.mlc = MLCDirectory.open(directory)
        config: dict[str, Any] = self.mlc.config["model_config"]
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.kv_heads: int = config["num_key_value_heads"]
        self.head: int = config["head_dim"]
        self.epsilon: float = config["rms_norm_eps"]
        self.theta: float = config["position_embedding_base"]
        self.weights = {name: self._matrix(name) for name in self._matrices()}
        norms = [name for name in self.mlc.tensors if name.endswith("norm.weight")]
        self.norms = {name: self.mlc.read(name).astype(np.float32) for name in norms}

    def _matrices(self) -> list[str]:
        return [name.removesuffix(".q_weight") for name in self.mlc.tensors if name.endswith(".q_weight")]

    def _matrix(self, name: str) -> Array:
        words, scale = self.mlc.read(f"{name}.q_weight"), self.mlc.read(f"{name}.q_scale")
        return dequantise(words, scale, scale.shape[1] * GROUP)

    def start(self) -> list[tuple[Array, Array]]:
        """An empty KV cache: keys and values [kv_heads, 0, head] of every layer."""
        empty = np.zeros((self.kv_heads, 0, self.head), np.float32)
        return [(empty, empty)] * self.layers

    def forward(self, ids: list[int], cache: list[tuple[Array, Array]]) -> Array:
        """Logits [V] after `ids`, which are appended to `cache`."""
        start, n = cache[0][0].shape[1], len(ids)
        cos, sin = self._rotations(start, n)
        future = np.triu(np.full((n, start + n), -np.inf, np.float32), start + 1)
        x = self.weights["model.embed_tokens"][ids]
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            h = self._norm(x, f"{name}.input_layernorm.weight")
            qkv = (h @ self.weights[f"{name}.self_attn.qkv_proj"].T).reshape(n, -1, self.head).swapaxes(0, 1)
            q, k, v = np.split(qkv, [self.heads, self.heads + self.kv_heads])
            k = np.concatenate([cache[layer][0], turn(k, cos, sin)], axis=1)
            v = np.concatenate([cache[layer][1], v], axis=1)
            cache[layer] = (k, v)
            q = turn(q, cos, sin).reshape(self.kv_heads, -1, n, self.head)
            scores = q @ k[:, None].swapaxes(-1, -2) / np.float32(self.head**0.5) + future
            seen = softmax(scores) @ v[:, None]
            joined = seen.reshape(self.heads, n, self.head).swapaxes(0, 1).reshape(n, -1)
            x = x + joined @ self.weights[f"{name}.self_attn.o_proj"].T
            h = self._norm(x, f"{name}.post_attention_layernorm.weight")
            gate, up = np.split(h @ self.weights[f"{name}.mlp.gate_up_proj"].T, 2, axis=-1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.weights[f"{name}.mlp.down_proj"].T
        logits: Array = self._norm(x[-1:], "model.norm.weight")[0] @ self.weights["lm_head"].T
        return logits

    def generate(self, ids: list[int], stop: int, limit: int = 200) -> list[int]:
        """Greedy continuation of `ids`, at most `limit` tokens, without the stop token."""
        cache = self.start()
        out: list[int] = []
        logits = self.forward(ids, cache)
        while (token := int(logits.argmax())) != stop and len(out) < limit:
            out.append(token)
            logits = self.forward([token], cache)
        return out

    def _norm(self, x: Array, name: str) -> Array:
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.epsilon))
        normed: Array = x * scale * self.norms[name]
        return normed

    def _rotations(self, start: int, n: int) -> tuple[Array, Array]:
        frequency = self.theta ** (-np.arange(0, self.head, 2) / self.head)
        angle = np.tile(np.outer(np.arange(start, start + n), frequency), 2)
        cos: Array = np.cos(angle).astype(np.float32)
        sin: Array = np.sin(angle).astype(np.float32)
        return cos, sin


def turn(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding of x [heads, n, head], halves paired."""
    left, right = np.split(x, 2, axis=-1)
    swapped: Array = np.concatenate([-right, left], axis=-1)
    turned: Array = x * cos + swapped * sin
    return turned


def softmax(x: Array) -> Array:
    """Along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    out: Array = e / e.sum(axis=-1, keepdims=True)
    return out
