"""The peer of the benchmark: llama.cpp with the same weights, driven by the same commands as `hob_player`.

Runs in an environment of its own (`.venv-bench`), which has llama-cpp-python and gguf but not the service.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import psutil

from builder.compile.mlc import MLCDirectory

Q4_0_BLOCK = np.dtype([("d", "<f2"), ("qs", "u1", 16)])


def write_gguf(directory: MLCDirectory, file: Path) -> None:
    """Write a Llama model in q4f16_1 as GGUF Q4_0: the same nibbles and scales, so the same products.

    MLC: `(n - 7) * s`; Q4_0: `(q - 8) * d`, hence q = n + 1, d = s. A block of 32 keeps element i in the low
    and element i + 16 in the high nibble of byte i (ggml's `block_q4_0`). Rows of q and k are interleaved,
    because llama.cpp rotates neighbouring pairs where Hugging Face rotates halves.
    """
    shape = directory.config["model_config"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    head_dim, vocab = shape["head_dim"], shape["vocab_size"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(shape["context_window_size"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(shape["position_embedding_base"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{number}>" for number in range(vocab)])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab)
    writer.add_token_merges(["<0> <1>"])  # never used, but there must be one
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)

    def quantised(name: str, source: str, rows: "np.ndarray[Any, Any] | slice" = slice(None)) -> None:
        blocks = q4_0(directory.read(f"{source}.q_weight")[rows], directory.read(f"{source}.q_scale")[rows])
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def norm(name: str, source: str) -> None:
        writer.add_tensor(name, directory.read(f"{source}.weight").astype(np.float32))

    quantised("token_embd.weight", "model.embed_tokens")
    norm("output_norm.weight", "model.norm")
    if not shape["tie_word_embeddings"]:
        quantised("output.weight", "lm_head")
    q_rows, kv_rows = heads * head_dim, kv_heads * head_dim
    for layer in range(shape["num_hidden_layers"]):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        qkv = f"{ours}.self_attn.qkv_proj"
        quantised(f"{theirs}.attn_q.weight", qkv, interleaved(0, heads, head_dim))
        quantised(f"{theirs}.attn_k.weight", qkv, interleaved(q_rows, kv_heads, head_dim))
        quantised(f"{theirs}.attn_v.weight", qkv, slice(q_rows + kv_rows, q_rows + 2 * kv_rows))
        quantised(f"{theirs}.attn_output.weight", f"{ours}.self_attn.o_proj")
        gate_up, inner = f"{ours}.mlp.gate_up_proj", shape["intermediate_size"]
        quantised(f"{theirs}.ffn_gate.weight", gate_up, slice(0, inner))
        quantised(f"{theirs}.ffn_up.weight", gate_up, slice(inner, 2 * inner))
        quantised(f"{theirs}.ffn_down.weight", f"{ours}.mlp.down_proj")
        norm(f"{theirs}.attn_norm.weight", f"{ours}.input_layernorm")
        norm(f"{theirs}.ffn_norm.weight", f"{ours}.post_attention_layernorm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(start: int, heads: int, head_dim: int) -> "np.ndarray[Any, Any]":
    """Row numbers that bring halves-rotated heads into pairs-rotated order."""
    rows = np.arange(start, start + heads * head_dim).reshape(heads, 2, head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)


def q4_0(words: "np.ndarray[Any, Any]", scales: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """MLC's uint32 words [N, K/8] and scales [N, K/32] as Q4_0 bytes [N, K/32*18]."""
    rows, groups = scales.shape
    low = words.view(np.uint8).reshape(rows, groups, 16)
    nibbles = np.stack([low & 15, low >> 4], axis=-1).reshape(rows, groups, 32) + 1
    blocks = np.empty((rows, groups), Q4_0_BLOCK)
    blocks["d"] = scales
    blocks["qs"] = nibbles[..., :16] | (nibbles[..., 16:] << 4)
    return blocks.view(np.uint8).reshape(rows, groups * Q4_0_BLOCK.itemsize)


def main() -> None:
    """Load the model, then answer one JSON command a line."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--context", type=int, required=True)
    options = arguments.parse_args()
    file = options.directory / "peer.gguf"
    if not file.exists():
        partial = file.with_suffix(".part")
        write_gguf(MLCDirectory.open(options.directory), partial)
        partial.rename(file)
    start = time.perf_counter()
    model = llama_cpp.Llama(
        str(file),
        n_ctx=options.context,
        n_batch=512,
        n_ubatch=512,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        verbose=False,
    )
    model.eval([1])
    model.reset()
    print(json.dumps({"load": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {"rss": psutil.Process().memory_info().rss}
        if ids := command.get("ids"):
            model.reset()
            start = time.perf_counter()
            model.eval(ids)
            answer["prefill"] = time.perf_counter() - start
            logits = np.ctypeslib.as_array(model._ctx.get_logits_ith(-1), (model.n_vocab(),))
            answer["first"] = token = int(logits.argmax())
            start = time.perf_counter()
            for _ in range(command["new"]):
                model.eval([token])
            answer["decode"] = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
