"""Token layouts for pools that overlap: raster order inside a unit, or the whole grid as one unit.

Hiera's own order makes a pool with kernel = stride a maximum over a leading axis. A pool whose
windows overlap needs rows and columns instead, that is, tokens in raster order.
"""

from __future__ import annotations

from collections.abc import Sequence

from hiera_video.models.tokens import TokenLayout, check_multiples


class RasterLayout(TokenLayout):
    """Mask units whose tokens are in raster order."""

    def axes(self, pools: int) -> list[tuple[int, ...]]:
        """Return the sizes of the axes that n consists of: the sides of the unit."""
        return [self.unit_shape(pools)]


class GridLayout(RasterLayout):
    """The whole grid as the only unit, in raster order; `mask_unit_size` has no effect."""

    def unit_size(
        self, input_size: Sequence[int], patch_stride: Sequence[int], mask_unit_size: Sequence[int]
    ) -> tuple[int, ...]:
        """Return the sides of the grid; UserError if the patches do not tile the input."""
        check_multiples(input_size, patch_stride, of="one patch")
        return tuple(i // p for i, p in zip(input_size, patch_stride, strict=True))

    def unit_shape(self, pools: int) -> tuple[int, ...]:
        """Tokens of the grid along each dimension after `pools` poolings, rounded up.

        Pools that overlap keep the last row of an odd grid.
        """
        return tuple(-(-m // s**pools) for m, s in zip(self.unit, self.q_stride, strict=True))


LAYOUTS: dict[str, type[TokenLayout]] = {
    "unrolled": TokenLayout,
    "units": RasterLayout,
    "grid": GridLayout,
}
"""Layout for each value of `AblationConfig.tokens`."""
