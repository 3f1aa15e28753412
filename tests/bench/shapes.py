"""Random-weight models of well-known shapes, in q4f16_1: speed depends on the shape, not on the values."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from builder.compile.mlc import CONFIG, TOKENIZER, MLCDirectory

GROUP = 32


@dataclass(frozen=True)
class Shape:
    """A Llama architecture by its published sizes; embeddings are tied."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def linears(self) -> Iterator[tuple[str, int, int]]:
        """Name, rows and columns of every quantised matrix, in MLC's fused form."""
        yield "model.embed_tokens", self.vocab, self.hidden
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.self_attn.qkv_proj", rows, self.hidden
            yield f"{prefix}.self_attn.o_proj", self.hidden, self.heads * self.head_dim
            yield f"{prefix}.mlp.gate_up_proj", 2 * self.inner, self.hidden
            yield f"{prefix}.mlp.down_proj", self.hidden, self.inner

    def norms(self) -> Iterator[str]:
        """Names of the norm weights, each of `hidden` elements."""
        for layer in range(self.layers):
            yield f"model.layers.{layer}.input_layernorm.weight"
            yield f"model.layers.{layer}.post_attention_layernorm.weight"
        yield "model.norm.weight"

    def config(self) -> dict[str, Any]:
        """The chat configuration, with the fields MLC-LLM writes."""
        limits = {"context_window_size": 4096, "prefill_chunk_size": 512}
        shape = {
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "rms_norm_eps": 1e-05,
            "vocab_size": self.vocab,
            "tie_word_embeddings": True,
            "position_embedding_base": 500000.0,
            "rope_scaling": None,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "tensor_parallel_shards": 1,
            "pipeline_parallel_stages": 1,
            "max_batch_size": 4,
        }
        return {
            "version": "0.1.0",
            "model_type": "llama",
            "quantization": "q4f16_1",
            "model_config": shape | limits,
            "vocab_size": self.vocab,
            **limits,
            "sliding_window_size": -1,
            "attention_sink_size": -1,
            "tensor_parallel_shards": 1,
            "pipeline_parallel_stages": 1,
            "active_vocab_size": self.vocab,
            "tokenizer_files": [TOKENIZER],
        }


SHAPES = (
    Shape("smollm2-360m", 960, 2560, 32, 15, 5, 64, 49152),
    Shape("llama-3.2-1b", 2048, 8192, 16, 32, 8, 64, 128256),
)


def make(shape: Shape, folder: Path) -> MLCDirectory:
    """Write the model into `folder/<name>` unless it is there; fixed seed, one shard a tensor."""
    path = folder / shape.name
    if (path / "tensor-cache.json").exists():
        return MLCDirectory.open(path)
    path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    records: list[dict[str, Any]] = []

    def write(name: str, tensor: "np.ndarray[Any, Any]") -> None:
        file = f"params_shard_{len(records)}.bin"
        (path / file).write_bytes(tensor.tobytes())
        entry = {"name": name, "shape": tensor.shape, "dtype": str(tensor.dtype), "format": "raw"}
        size = {"nbytes": tensor.nbytes}
        records.append(
            {"dataPath": file, "format": "raw-shard", **size, "records": [entry | size | {"byteOffset": 0}]}
        )

    for name, rows, columns in shape.linears():
        # Nibbles 0..14 as MLC writes them; the scale gives weights of about 1/sqrt(columns).
        low, high = (random.integers(0, 15, (rows, columns // 2), np.uint8) for _ in range(2))
        write(f"{name}.q_weight", (low | (high << 4)).view(np.uint32))
        scale = 0.23 / np.sqrt(columns) * random.uniform(0.8, 1.2, (rows, columns // GROUP))
        write(f"{name}.q_scale", scale.astype(np.float16))
    for name in shape.norms():
        write(name, random.uniform(0.8, 1.2, shape.hidden).astype(np.float16))
    (path / TOKENIZER).write_text("{}")  # the benchmark feeds token ids
    (path / CONFIG).write_text(json.dumps(shape.config()))
    # Last, so that an interrupted run starts over.
    (path / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": records}))
    return MLCDirectory.open(path)
