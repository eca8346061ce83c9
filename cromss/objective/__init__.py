"""The paper: confidence, weights, losses. Tensors in, tensors out; torch and settings, nothing else."""
