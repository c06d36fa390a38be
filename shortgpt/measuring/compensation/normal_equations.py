"""The change of a projection that brings the shorter model's stream closest to the whole one's, by least squares.

::

    y = r + u    the stream behind the block in front of the run, u what its projection adds
    x            the whole model's stream behind the run

    min over T of  Σ over tokens of ‖(r + T u) − x‖² / ‖x‖²  +  ridge · ‖T − 1‖²

A token's error is weighed by its stream's size: the first tokens of a sequence carry activations a thousand times as
large as others (Sun et al., arXiv:2402.17762). Unweighted they alone would decide T, and left out they would leave it
open in their direction, along which it then sends them anywhere.

The ridge draws T towards the identity, which is the removal alone. With A = Σ u uᵀ / ‖x‖² and
B = Σ u (x − y)ᵀ / ‖x‖² the minimum is at T = 1 + Bᵀ (A + ridge)⁻¹. ReplaceMe (arXiv:2505.02819) fits such a map to the
MLP's output in front of one run; here every run has its own, on the stream that the earlier ones left.

Memory is two matrices of float64, and a third while they are solved: the factor takes half of A's own place, whose
other half tells what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch
from scipy.linalg import lapack

from shortgpt.models.projections import Addition, Change, Projection

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1024
"""Tokens taken to float64 at a time."""


class NormalEquations:
    """The sums over tokens for one run's change.

    Attributes:
        tokens: how many were added.
        distance: Σ ‖y − x‖² / ‖x‖², float64.
    """

    def __init__(self, projection: Projection, device: torch.device) -> None:
        self.projection = projection
        home = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        shape = (projection.width,) * (2 if projection.form == "map" else 1)
        self.squares = torch.zeros(shape, dtype=torch.float64, device=home)
        self.products = torch.zeros(shape, dtype=torch.float64, device=home)
        self.tokens = 0
        self.distance = 0.0

    def add(self, addition: Addition, whole: Tensor, mask: Tensor | None) -> None:
        """Add a batch.

        Args:
            whole: x, [batch, tokens, width].
            mask: which tokens are real, [batch, tokens]; None where all are.
        """
        behind, added = (_real(tensor, mask) for tensor in addition)
        stream = _real(whole, mask)
        for at in range(0, len(stream), CHUNK):
            place = slice(at, at + CHUNK)
            y, u, x = (t[place].to(self.squares.device, torch.float64) for t in (behind, added, stream))
            weight = 1 / x.norm(dim=-1, keepdim=True)
            u, gap = u * weight, (x - y) * weight
            self.distance += float(gap.square().sum())
            # x − r = (x − y) + u; of a gain only x − y is to be made up for.
            if self.projection.form == "map":
                self.squares.addmm_(u.T, u)
                self.products.addmm_(u.T, gap)
            else:
                self.squares += u.square().sum(0)
                self.products += (u * gap).sum(0)
        self.tokens += len(stream)

    @property
    def error(self) -> float:
        """The root mean square of ‖y − x‖ / ‖x‖."""
        return float((self.distance / self.tokens) ** 0.5)

    def solve(self, ridge: float) -> Solution | None:
        """The change of least error; None where the projection adds nothing on these tokens.

        Args:
            ridge: relative to the mean of the squares' diagonal, above 0.
        """
        diagonal = self.squares.diagonal() if self.projection.form == "map" else self.squares
        added = ridge * float(diagonal.mean())
        if not added > 0:
            return None
        products = self.products.cpu().numpy()
        if self.projection.form == "map":
            step = _solved(self.squares.cpu().numpy(), products, added)
        else:
            step = products / (self.squares.cpu().numpy() + added)
        inner = float(numpy.vdot(step, products.T))
        return Solution(self, torch.from_numpy(step), inner, inner - added * float(numpy.vdot(step, step)))


@dataclass(frozen=True)
class Solution:
    """The change of least error for one ridge.

    Attributes:
        step: T − 1, or what is added to a gain.
        inner, square: how the error depends on how far one goes that way: it falls by 2 · scale · `inner` and rises by
            scale² · `square`.
    """

    equations: NormalEquations
    step: Tensor
    inner: float
    square: float

    def change(self, scale: float) -> Change:
        """The change that goes so much of the way."""
        numbers = self.step * scale
        if self.equations.projection.form == "map":
            numbers.diagonal().add_(1)
        elif self.equations.projection.form == "scale":
            numbers += 1
        return Change(self.equations.projection, numbers)

    def error(self, scale: float) -> float:
        """The root mean square of ‖y' − x‖ / ‖x‖ with that change."""
        distance = self.equations.distance - 2 * scale * self.inner + scale**2 * self.square
        return float((max(0.0, distance) / self.equations.tokens) ** 0.5)


def _solved(squares: numpy.ndarray, products: numpy.ndarray, ridge: float) -> numpy.ndarray:
    """Bᵀ (A + ridge)⁻¹ for a symmetric A, which is afterwards what it was."""
    diagonal = squares.diagonal().copy()
    numpy.fill_diagonal(squares, diagonal + ridge)
    try:
        factor, failed = lapack.dpotrf(squares.T, lower=1, clean=0, overwrite_a=1)
        if failed:
            raise ArithmeticError(f"the normal equations are not positive definite (LAPACK's dpotrf: {failed})")
        solution, _ = lapack.dpotrs(factor, numpy.array(products, order="F"), lower=1, overwrite_b=1)
    finally:
        for row in range(len(squares)):  # the factor stands above the diagonal
            squares[row, row + 1 :] = squares[row + 1 :, row]
        numpy.fill_diagonal(squares, diagonal)
    return solution.T


def _real(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """The real tokens of a tensor, [tokens, width]."""
    return tensor.flatten(0, 1) if mask is None else tensor[mask.bool().to(tensor.device)]
