"""A stand-in for MLC-LLM: the part of its surface that `appliance.engine.mlc` uses, and no model behind it.

Names, arguments and the shape of what comes out are those of mlc-ai/mlc-llm, July 2026
(python/mlc_llm/serve/engine.py, engine_base.py, config.py; python/mlc_llm/protocol/generation_config.py). The
real package has no wheel on PyPI.
"""
