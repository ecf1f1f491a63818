"""What a linear map's inputs are on examples, as far as packing and pruning ask."""

from __future__ import annotations

import torch
from torch import Tensor


class Inputs:
    """Sums over the tokens x [in] that a linear map has read: of x x' [in, in], and of |x| [in], both in fp32.

    With `products` False only the diagonal of x x' is summed, which takes `in` numbers instead of their square.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu", products: bool = True):
        self.count = 0
        """Tokens that were seen."""
        self.squares = torch.zeros((width, width) if products else (width,), device=device)
        self.sizes = torch.zeros(width, device=device)

    def add(self, x: Tensor) -> None:
        """Count tokens x [..., in] of any dtype."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        self.count += rows.shape[0]
        self.sizes += rows.abs().sum(0)
        if self.squares.dim() == 2:
            self.squares.addmm_(rows.T, rows)
        else:
            self.squares += rows.square().sum(0)

    @property
    def finite(self) -> bool:
        """Whether no input was NaN, infinite, or so large that its square is."""
        return bool(torch.isfinite(self.squares).all())

    @property
    def moments(self) -> Tensor:
        """The mean of x x' [in, in]; half the Hessian of a layer's mean squared output error, for each output."""
        return self.squares / self.count

    @property
    def mean_size(self) -> Tensor:
        """The mean of |x| [in]."""
        return self.sizes / self.count

    @property
    def norms(self) -> Tensor:
        """The root of the mean of x^2 [in]: |x|_2 over all tokens by the root of their number."""
        squares = self.squares.diagonal() if self.squares.dim() == 2 else self.squares
        return (squares / self.count).sqrt()
