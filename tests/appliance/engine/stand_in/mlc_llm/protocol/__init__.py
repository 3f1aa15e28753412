"""As mlc_llm.protocol."""
