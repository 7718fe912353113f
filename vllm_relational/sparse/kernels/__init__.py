"""Triton kernels of DIPR attention. Every one has its reference in ``sparse.naive`` or ``sparse.codec``.

Grids depend on shapes only and lengths are read on the device, so that a CUDA graph captured once serves every length.
With ``TRITON_INTERPRET=1`` they run on a CPU, slowly.
"""
