"""See the memory around what a matrix product reads.

A processor's matrix kernel may read beyond the columns of an operand and multiply what it finds there by zero
(oneDNN's AMX kernels do, where the columns are odd and lie in wider rows). If nothing was ever written there, the
product can be NaN on that processor and right on every other one. So memory beside an operand must be written, and
this finds where it is not, on any processor.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "_grouped_mm", "grouped_mm")
ATTENTION = "scaled_dot_product"


class WrittenNeighbors(TorchDispatchMode):
    """Fail where a product reads from storage that holds NaN anywhere. Use with `fill_new_memory(True)`.

    Attributes:
        products: How many products were looked at.
    """

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS or ATTENTION in name:
            self.products += 1
            for operand in args:
                if isinstance(operand, torch.Tensor) and operand.is_floating_point():
                    self._check(name, operand)
        return func(*args, **(kwargs or {}))

    def _check(self, name, operand):
        whole = torch.empty(0, dtype=operand.dtype)
        whole.set_(operand.untyped_storage())
        if bool(whole.isnan().any()):
            own = " itself" if bool(operand.isnan().any()) else ", though not itself"
            raise AssertionError(
                f"{name} reads a {tuple(operand.shape)} part of {whole.numel()} numbers that hold NaN{own}"
            )
