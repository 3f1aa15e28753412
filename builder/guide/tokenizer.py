"""The guide's tokenizer: byte-level BPE trained on its own text, ChatML tokens in SmolLM2's places."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from builder.guide.dialogue import Turn

# Ids 0, 1, 2: where MLC-LLM's own ChatML conversation template expects them.
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END = 2
VOCABULARY = 4096
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of exactly `VOCABULARY` entries that can encode every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, chat template included."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[1],
        "eos_token": SPECIALS[2],
        "pad_token": SPECIALS[0],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def encode_turn(tokenizer: Tokenizer, turn: Turn) -> tuple[list[int], list[int]]:
    """Ids of the turn's prompt (system, question, the answer's header) and of its answer with its end."""
    system = f"<|im_start|>system\n{turn.system}<|im_end|>\n" if turn.system else ""
    prompt = f"{system}<|im_start|>user\n{turn.user}<|im_end|>\n<|im_start|>assistant\n"
    answer = f"{turn.assistant}<|im_end|>\n"
    return (
        tokenizer.encode(prompt, add_special_tokens=False).ids,
        tokenizer.encode(answer, add_special_tokens=False).ids,
    )
