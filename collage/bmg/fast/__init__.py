"""A meta-step in one backward pass, and as one CUDA graph."""
