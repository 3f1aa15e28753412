"""The guide's forward pass in numpy, straight from the MLC directory: small, slow, plain.

It exists so that the evaluation needs neither torch nor a compiled library. Arithmetic is float32; weights
are what the directory's format stores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.compile.families import family
from builder.compile.families.fields import Fields
from builder.compile.families.parameters import Parameter
from builder.compile.import_.source import open_source
from builder.compile.mlc import MLCDirectory
from builder.compile.quantise import QUANTISATIONS

Array = npt.NDArray[np.float32]
# Keys and values [kv_heads, tokens, head] of every layer.
Cache = list[tuple[Array, Array]]


class Guide:
    """A Llama with its weights in memory as float32.

    Attributes:
        weights: matrices and norms by MLC's names; linear layers are fused as there.
    """

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array]) -> None:
        """`config` is MLC's `model_config`."""
        self.config = config
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.kv_heads: int = config["num_key_value_heads"]
        self.head: int = config["head_dim"]
        self.epsilon: float = config["rms_norm_eps"]
        self.theta: float = config["position_embedding_base"]
        self.weights = weights

    @classmethod
    def of_directory(cls, directory: Path) -> "Guide":
        """The guide in an MLC directory of any weight format."""
        mlc = MLCDirectory.open(directory)
        config: dict[str, Any] = mlc.config["model_config"]
        quantisation = QUANTISATIONS[mlc.quantization]
        weights = {}
        for parameter in parameters(config):
            form = quantisation.form(parameter.role)
            stored = [mlc.read(tensor.name) for tensor in form.tensors(parameter.name, parameter.shape)]
            weights[parameter.name] = form.values(stored, parameter.shape)
        return cls(config, weights)

    @classmethod
    def of_checkpoint(cls, config: Mapping[str, Any], checkpoint: Path) -> "Guide":
        """The guide in a checkpoint, unquantised; `config` is the `model_config` of its MLC directory."""
        with open_source(checkpoint) as source:
            weights = {
                parameter.name: np.concatenate(
                    [
                        source.rows(name, 0, shape[0] if len(shape) > 1 else 1).reshape(shape)
                        for name, shape in parameter.sources
                    ]
                )
                for parameter in parameters(config)
            }
        return cls(config, weights)

    def start(self) -> Cache:
        """The empty KV cache of a sequence."""
        empty = np.zeros((self.kv_heads, 0, self.head), np.float32)
        return [(empty, empty)] * self.layers

    def forward(self, ids: list[int], cache: Cache) -> Array:
        """Logits [V] after `ids`, which are appended to `cache`."""
        return self.logits(self.states([ids], [cache])[-1])

    def logits(self, states: Array) -> Array:
        """Logits [..., V] of `states`."""
        out: Array = states @ self.weights["lm_head.weight"].T
        return out

    def states(self, texts: Sequence[list[int]], caches: Sequence[Cache]) -> Array:
        """Normalised hidden states [n, hidden] at the tokens of all texts, each appended to its cache."""
        ends = np.cumsum([len(ids) for ids in texts])[:-1]
        x = self.weights["model.embed_tokens.weight"][np.concatenate(texts)]
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            h = self._norm(x, f"{name}.input_layernorm.weight")
            parts = np.split(h @ self.weights[f"{name}.self_attn.qkv_proj.weight"].T, ends)
            seen = [self._attend(part, cache, layer) for part, cache in zip(parts, caches, strict=True)]
            x = x + np.concatenate(seen) @ self.weights[f"{name}.self_attn.o_proj.weight"].T
            h = self._norm(x, f"{name}.post_attention_layernorm.weight")
            gate, up = np.split(h @ self.weights[f"{name}.mlp.gate_up_proj.weight"].T, 2, axis=-1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.weights[f"{name}.mlp.down_proj.weight"].T
        return self._norm(x, "model.norm.weight")

    def _attend(self, qkv: Array, cache: Cache, layer: int) -> Array:
        """What the tokens of one sequence see: [n, heads * head]."""
        start, n = cache[layer][0].shape[1], len(qkv)
        cos, sin = self._rotations(start, n)
        q, k, v = np.split(
            qkv.reshape(n, -1, self.head).swapaxes(0, 1), [self.heads, self.heads + self.kv_heads]
        )
        k = np.concatenate([cache[layer][0], turn(k, cos, sin)], axis=1)
        v = np.concatenate([cache[layer][1], v], axis=1)
        cache[layer] = (k, v)
        q = turn(q, cos, sin).reshape(self.kv_heads, -1, n, self.head)
        future = np.triu(np.full((n, start + n), -np.inf, np.float32), start + 1)
        scores = q @ k[:, None].swapaxes(-1, -2) / np.float32(self.head**0.5) + future
        seen: Array = softmax(scores) @ v[:, None]
        return seen.reshape(self.heads, n, self.head).swapaxes(0, 1).reshape(n, -1)

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
        normed: Array = x * scale * self.weights[name]
        return normed

    def _rotations(self, start: int, n: int) -> tuple[Array, Array]:
        frequency = self.theta ** (-np.arange(0, self.head, 2) / self.head)
        angle = np.tile(np.outer(np.arange(start, start + n), frequency), 2)
        cos: Array = np.cos(angle).astype(np.float32)
        sin: Array = np.sin(angle).astype(np.float32)
        return cos, sin


def parameters(config: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """What the guide's weights are; `config` is MLC's `model_config`."""
    return tuple(family("llama", "the guide").decoder(Fields("model_config", dict(config))).parameters)


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
