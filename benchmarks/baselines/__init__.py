"""The strongest plain PyTorch for what this library does: the rivals of every benchmark.

Models are written as their authors' code computes, with the official names of the parameters.
"""
