"""Custom kernels for GPUs, written in Triton. They take tensors and know nothing of the rest of the package.

Where Triton is not available, everything works without them.
"""
