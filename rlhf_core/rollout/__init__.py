"""Generation engines (vLLM; transformers as the plain fallback) and weight synchronisation."""
