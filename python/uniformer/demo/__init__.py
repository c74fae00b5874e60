"""One video classified twice, in plain PyTorch and on the kernels; compared, timed and drawn."""
