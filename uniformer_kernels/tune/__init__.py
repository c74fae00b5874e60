"""``python -m uniformer_kernels.tune``: measure tile sizes on this GPU and rewrite the table.

The calls that are timed are those the models make: they are planned on meta tensors first. Every
choice in a kernel's space is held against the default's result before it may win.
"""
