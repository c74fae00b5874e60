"""The CUDA kernels are not a backend yet: their tests wait for that."""

collect_ignore_glob = ["test_*.py"]
