"""CUDA sources and their host code, for a GPU and for the CPU emulator of the tests."""
