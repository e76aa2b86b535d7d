"""The precision of what tests run, and how far its results may lie from exact ones.

Half precision keeps few bits of a number: bf16 8, fp16 11. Rounding errs by at most half of the last one, 2^-9 or 2^-12
of the number. The models of the tests round some dozens of times in a row, at most 64, and such errors are independent:
together they are below sqrt(64) = 8 of them. That is a share of the length of a vector, so also a bound for cosines.
"""

import torch

ROUNDINGS = 64
TOLERANCE = {"fp32": 1e-5, "bf16": 2**-9 * ROUNDINGS**0.5, "fp16": 2**-12 * ROUNDINGS**0.5}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRECISIONS = tuple(DTYPES)  # those in which the exact tests run, on any machine

chosen = "fp32"  # of programs whose precision no test is about; conftest.py sets it


def stated() -> str:
    """The flag of programs that would take by themselves what is fast on this machine."""
    return f"--precision={chosen}"


def autocast(precision: str) -> torch.autocast:
    """As programs of this precision compute."""
    return torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32")


def assert_near(found: torch.Tensor, exact: torch.Tensor, precision: str) -> None:
    """Vectors (..., D) that differ by no more than the precision's share of their length."""
    error = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.max() < TOLERANCE[precision]
