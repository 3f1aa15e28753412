"""GGUF files: header, weights, names, configuration and tokenizer."""
