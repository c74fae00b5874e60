"""Measure, and rewrite the table."""

from __future__ import annotations

import argparse
import sys
from functools import partial

import torch
from triton.testing import do_bench

try:
    from rich.progress import track
except ImportError:
    sys.exit("rich is missing: pip install 'uniformer-kernels[bench]'")

from ..triton import tuning
from ..triton.ahead import compile_all
from . import __doc__ as description
from .calls import candidates, models_calls
from .tuner import Tuner

DTYPES = ("bfloat16", "float32")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m uniformer_kernels.tune", description=description
    )
    parser.add_argument("--batch", type=int, default=16, help="clips")
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES, help="repeat for more; all without one"
    )
    parser.add_argument(
        "--winners",
        action="store_true",
        help="choose among kernels only: tile sizes stay as the table has them",
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("expected a GPU that torch can use, found none")
    dtypes = [getattr(torch, name) for name in options.dtype or DTYPES]
    device = torch.device("cuda")
    name = tuning.architecture(device)
    calls = models_calls(options.batch, dtypes)
    time = partial(do_bench, warmup=5, rep=25, return_mode="median")
    tuner = Tuner(
        {kernel: dict(found) for kernel, found in tuning.rows(name).items()}, device, time
    )
    if not options.winners:
        compiled = compile_all(partial(candidates, options.batch, dtypes, name))
        print(f"{compiled} kernels compiled", flush=True)
        for call in track(calls, "tile sizes"):  # first: a backend is chosen against Triton's best
            tuner.tiles(call)
            tuning.rewrite(name, tuner.rows)  # whoever stops it keeps what was found
    for call in track(calls, "backends"):
        tuner.twins(call)
        tuner.backends(call)
    tuning.rewrite(name, tuner.rows)  # not before: one call of a class may undo another's row
    for kernel, found in tuning.rows(name).items():
        for shape_class, choice in found.items():
            print(f"{kernel:<28}{shape_class:<24}{choice}")


if __name__ == "__main__":
    main()
