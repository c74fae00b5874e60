"""Models with the structure of other people's code, as `accelerate` meets them.

Only names, shapes and equations are theirs.
"""
