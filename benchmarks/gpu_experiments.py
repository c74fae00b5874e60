"""Ten questions to a GPU whose answers decide how the kernels go on.

`make gpu STAGES=experiments`, or some of them, printed: `python -m benchmarks.gpu_experiments 3 4`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .gpu.questions import convolutions, launches, products
from .gpu.questions.convolutions import CUDNN, DENSE, FMA, TOEPLITZ
from .gpu.questions.rivals import Rows, faster
from .gpu.rows import OURS


@dataclass(frozen=True)
class Experiment:
    """A question, the rows that answer it, and what follows from them."""

    question: str
    measure: Callable[[], Iterator[dict[str, Any]]]
    decide: Callable[[Rows], str]


EXPERIMENTS = {
    1: Experiment(
        "PyTorch's depthwise convolution: cuDNN channels-last or native channels-first?",
        convolutions.baselines,
        convolutions.decide_baselines,
    ),
    2: Experiment(
        "Is a dense 64 to 64 convolution faster than cuDNN's depthwise one?",
        lambda: convolutions.depthwise((CUDNN, DENSE), (3, 5)),
        lambda rows: faster(rows, CUDNN, DENSE),
    ),
    3: Experiment(
        "How near is the FMA kernel to its issue bound?",
        convolutions.clocks,
        convolutions.decide_clocks,
    ),
    4: Experiment(
        "What does mma.sync reach of the tensor cores' peak, from registers?",
        products.tensor_cores,
        products.decide_tensor_cores,
    ),
    5: Experiment(
        "Five taps in 16 bits: tensor cores or FMA?",
        lambda: convolutions.depthwise((FMA, TOEPLITZ), (5,), backward=True),
        lambda rows: faster(rows, FMA, TOEPLITZ),
    ),
    6: Experiment(
        "Weight gradients by partial sums: as fast as native ones, and repeatable?",
        convolutions.weight_gradients,
        convolutions.decide_weight_gradients,
    ),
    7: Experiment(
        "Attention: Triton's kernel or a library's?", products.attention, products.decide_attention
    ),
    8: Experiment(
        "Feed-forward of 64 and 128 channels: one kernel or cuBLASLt twice?",
        products.feed_forward,
        lambda rows: faster(rows, "cuBLASLt", OURS),
    ),
    9: Experiment(
        "Whole models from Python, compiled, as graphs: what do launches cost?",
        launches.models,
        launches.decide_models,
    ),
    10: Experiment(
        "From kernel to kernel in a graph: do programmatic launches pay?",
        launches.latencies,
        launches.decide_latencies,
    ),
}


def run(numbers: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """Their rows, each with its experiment's number."""
    for number in numbers or EXPERIMENTS:
        for found in EXPERIMENTS[number].measure():
            yield found | {"experiment": number}


def answers(rows: Rows) -> list[tuple[int, str, str]]:
    """Number, question, and what the rows decide."""
    found = {n: [r for r in rows if r.get("experiment") == n] for n in EXPERIMENTS}
    return [
        (n, e.question, e.decide(found[n]) if found[n] else "not measured")
        for n, e in EXPERIMENTS.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_experiments")
    parser.add_argument(
        "numbers", nargs="*", type=int, choices=EXPERIMENTS, metavar="number", help="1 to 10; all"
    )
    numbers = parser.parse_args().numbers
    if not torch.cuda.is_available():
        parser.error("expected a GPU that torch sees, found none")
    for number, question, answer in answers(list(run(numbers))):
        if number in (numbers or EXPERIMENTS):
            print(f"{number:2}. {question}\n    {answer}")


if __name__ == "__main__":
    main()
