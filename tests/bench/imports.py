"""From a checkpoint to the first token: `hob model add`, as a person runs it, on random models of a shape."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

from tests.bench.shapes import SHAPES, Shape, make

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "builder" / "guide" / "model"
SHAPE = next(shape for shape in SHAPES if shape.name == "llama-3.2-1b")
GROUP = 32


@dataclass(frozen=True)
class Run:
    """What a command took: seconds, and the most MiB that it and its children had resident together."""

    seconds: float
    memory: float


def run(data: Path, *arguments: str) -> Run:
    """Run `hob model` on a data folder."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "model", *arguments],
        env=os.environ | {"HOB_DATA_DIR": str(data)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait():
        raise SystemExit(f"hob model {' '.join(arguments)} failed")
    seconds = time.perf_counter() - start
    watcher.join()
    return Run(seconds, peak / 2**20)


def resident(pid: int) -> int:
    """Resident bytes of a process and its children."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family)
    except psutil.Error:  # one of them has just ended
        return 0


def imports(folder: Path, report: Callable[..., None], say: Callable[[str], None]) -> None:
    """Add the same shape as safetensors, as GGUF and as an MLC directory, each to an empty library."""
    say(f"{SHAPE.name}: preparing checkpoints")
    sources = {
        "safetensors": (checkpoint(SHAPE, folder / f"{SHAPE.name}-hf"), 120.0),
        "GGUF Q4_0": (gguf_file(SHAPE, folder / f"{SHAPE.name}-Q4_0.gguf"), 60.0),
    }
    data = folder / "imports"
    for name, (source, bar) in sources.items():
        shutil.rmtree(data, ignore_errors=True)
        say(f"adding {name}")
        added = run(data, "add", "--name", "model", "--", str(source))
        report(f"add {SHAPE.name} from {name}", added.seconds, "s", bar=bar)
        report(f"add {SHAPE.name} from {name}: memory", added.memory, "MiB", bar=1536.0)
    shutil.rmtree(data, ignore_errors=True)
    directory = make(SHAPE, folder)
    say("adding an MLC directory")
    added = run(data, "add", "--name", "model", "--", str(directory.path))
    first = run(data, "probe", "model", "--ids", "1,2,3", "--new", "1")
    report(f"add {SHAPE.name} from MLC to first token", added.seconds + first.seconds, "s", bar=20.0)
    shutil.rmtree(data, ignore_errors=True)


def weights(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the checkpoint's tensors, as Hugging Face has them."""
    kv, wide = shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim
    found: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (shape.vocab, shape.hidden)),
        ("model.norm.weight", (shape.hidden,)),
    ]
    for i in range(shape.layers):
        layer = f"model.layers.{i}"
        found += [
            (f"{layer}.input_layernorm.weight", (shape.hidden,)),
            (f"{layer}.post_attention_layernorm.weight", (shape.hidden,)),
            (f"{layer}.self_attn.q_proj.weight", (wide, shape.hidden)),
            (f"{layer}.self_attn.k_proj.weight", (kv, shape.hidden)),
            (f"{layer}.self_attn.v_proj.weight", (kv, shape.hidden)),
            (f"{layer}.self_attn.o_proj.weight", (shape.hidden, wide)),
            (f"{layer}.mlp.gate_proj.weight", (shape.inner, shape.hidden)),
            (f"{layer}.mlp.up_proj.weight", (shape.inner, shape.hidden)),
            (f"{layer}.mlp.down_proj.weight", (shape.hidden, shape.inner)),
        ]
    return found


def checkpoint(shape: Shape, path: Path) -> Path:
    """A Hugging Face checkpoint in bfloat16, unless it is there."""
    if (path / "config.json").exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, size in weights(shape):
        values = random.standard_normal(size, np.float32) * np.float32(0.02) + np.float32(len(size) == 1)
        tensors[name] = values.astype(bfloat16)
    save_file(tensors, path / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(GUIDE / name, path / name)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    (path / "config.json").write_text(json.dumps(config))  # last: an interrupted run starts over
    return path


def gguf_file(shape: Shape, path: Path) -> Path:
    """The same shape as a GGUF file in Q4_0, unless it is there."""
    if path.exists():
        return path
    partial = path.with_suffix(".part")
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(str(partial), "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    tokenizer(writer, shape.vocab)
    for name, size in weights(shape):
        of_gguf = gguf_name(name)
        if len(size) == 1:
            writer.add_tensor(of_gguf, random.uniform(0.8, 1.2, size).astype(np.float32))
            continue
        rows, columns = size
        blocks = np.empty((rows, columns // GROUP, 18), np.uint8)
        scale = (0.02 * random.uniform(0.8, 1.2, (rows, columns // GROUP, 1))).astype(np.float16)
        blocks[..., :2] = scale.view(np.uint8)
        blocks[..., 2:] = random.integers(0, 256, (rows, columns // GROUP, 16), np.uint8)
        writer.add_tensor(of_gguf, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
    return path


def tokenizer(writer: Any, vocabulary: int) -> None:
    """The guide's tokens, filled up to the size of the embedding."""
    told = json.loads((GUIDE / "tokenizer.json").read_text())
    tokens = sorted(told["model"]["vocab"], key=told["model"]["vocab"].get)
    special = {token["content"] for token in told["added_tokens"]}
    control, unused = gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    kinds = [control if token in special else gguf.TokenType.NORMAL for token in tokens]
    filler = [f"[unused{number}]" for number in range(vocabulary - len(tokens))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in told["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + filler)
    writer.add_token_types(kinds + [unused] * len(filler))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """GGUF's name of a Hugging Face tensor."""
    stem = name.removesuffix(".weight")
    if stem in NAMES:
        return f"{NAMES[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"
