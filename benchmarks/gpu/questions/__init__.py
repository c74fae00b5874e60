"""What `benchmarks.gpu_experiments` asks a GPU: measured, and decided, by theme."""
