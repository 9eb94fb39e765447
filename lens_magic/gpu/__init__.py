"""What runs on GPUs by kernels of our own, written in Triton. It knows of tensors alone.

Where Triton is not to be had, everything works without.
"""
