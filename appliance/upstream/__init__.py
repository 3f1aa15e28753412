"""Models of other servers that speak OpenAI's API: vLLM, llama.cpp's server, Ollama, another Hob."""
