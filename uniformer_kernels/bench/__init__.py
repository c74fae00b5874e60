"""Measure the operators on this machine: ``python -m uniformer_kernels.bench``.

Every operator at the papers' shapes, against what else one could call, in one interleaved run that
first checks that all compute the same; with the machine's own ceilings beside it.
"""
