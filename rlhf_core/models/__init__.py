"""Load, heads, LoRA, save and convert Hugging Face models."""
