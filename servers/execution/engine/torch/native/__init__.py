"""Kernels for the CPU, compiled where they run: int8 weights, attention over blocks."""
