"""Model architectures as llama.cpp stores them: what Hugging Face calls the tensors, and how they differ.

Source: the tensor names of gguf-py and the conversion scripts of llama.cpp, https://github.com/ggml-org/llama.cpp.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from builder.errors import UnsupportedError

LAYER = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")
MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# What the configuration is made from, or what follows from it.
TABLES = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd\.weight")

ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
TWO_NORMS = {"ffn_norm": "post_attention_layernorm"}
FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FUSED = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture.

    Attributes:
        model_type: Hugging Face's name.
        layer: names of a layer's modules: GGUF's to Hugging Face's.
        paired: rows of queries and keys are stored in another order: those that rotate together side by side.
        shifted: norm weights are stored with 1 added.
        activation: of the MLP.
    """

    model_type: str
    layer: Mapping[str, str]
    paired: bool = False
    shifted: bool = False
    activation: str = "silu"

    def tensor(self, name: str) -> str | None:
        """Hugging Face's name of a tensor; None where it is no weight."""
        if name in MODEL:
            return MODEL[name]
        found = LAYER.fullmatch(name)
        if found and found[2] in self.layer:
            return f"model.layers.{int(found[1])}.{self.layer[found[2]]}.{found[3]}"
        return None

    def is_paired(self, name: str) -> bool:
        """Whether the rows of a tensor, by Hugging Face's name, are in the other order."""
        return self.paired and name.rpartition(".")[0].endswith((".q_proj", ".k_proj"))

    def is_shifted(self, name: str) -> bool:
        """Whether 1 was added to a tensor, by Hugging Face's name."""
        return self.shifted and name.endswith("norm.weight")


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", ATTENTION | MLP | TWO_NORMS, paired=True),
    "qwen2": Architecture("qwen2", ATTENTION | MLP | TWO_NORMS),
    "qwen3": Architecture("qwen3", ATTENTION | HEAD_NORMS | MLP | TWO_NORMS),
    "phi3": Architecture("phi3", FUSED | TWO_NORMS),
    "gemma2": Architecture(
        "gemma2", ATTENTION | MLP | FOUR_NORMS, shifted=True, activation="gelu_pytorch_tanh"
    ),
    "gemma3": Architecture(
        "gemma3_text",
        ATTENTION | HEAD_NORMS | MLP | FOUR_NORMS,
        shifted=True,
        activation="gelu_pytorch_tanh",
    ),
    "smollm3": Architecture("smollm3", ATTENTION | MLP | TWO_NORMS, paired=True),
}


def architecture(name: str, where: str) -> Architecture:
    """The architecture that `general.architecture` of the file `where` names.

    Raises:
        UnsupportedError: it is none of ours.
    """
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"{where}: general.architecture {name[:40]!r} is not supported",
            hint=f"Supported: {', '.join(ARCHITECTURES)}.",
        )
    return ARCHITECTURES[name]
