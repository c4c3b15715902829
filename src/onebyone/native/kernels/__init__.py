"""The C++ kernels, their compilation, and the programs that call them."""
