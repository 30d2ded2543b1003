"""PyTorch modules: tokenizer, dynamics, confidence heads, samplers and scoring rules."""
