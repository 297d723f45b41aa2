"""The numbers that the persistent kernel is compiled for, and what follows from them for who feeds it."""

from dataclasses import dataclass

NUM_CTAS = 128
NUM_LATENTS = 64
# Parts of the columns of the output map and of the MLP's second, and of what is summed over: 16 x 8 = 128.
NUM_TILES = 16
NUM_SUMMED_PARTS = 8
_BARRIERS_BESIDE_RINGS = 10


@dataclass(frozen=True)
class Shape:
    """Denoiser blocks of one width on 128 CTAs, and the rings of shared memory.

    Args:
        width: Channels of a latent, a multiple of 1,024.
        weight_slots: Slots of the ring of weights.
        activation_slots: Slots of the ring of activations.
        blocks_per_slot: Blocks of 128 bytes a row in a slot, 1 or 2.
        is_fp8: Maps but attention's have weights and activations in e4m3.
    """

    width: int
    weight_slots: int
    activation_slots: int
    blocks_per_slot: int
    is_fp8: bool = False
    num_heads: int = NUM_SUMMED_PARTS

    @property
    def head_width(self) -> int:
        """Channels of an attention head."""
        return self.width // self.num_heads

    @property
    def ctas_per_head(self) -> int:
        """CTAs that share a head's queries, keys and values."""
        return NUM_CTAS // self.num_heads

    @property
    def head_columns(self) -> int:
        """Queries that a CTA finishes; and as many keys, and values."""
        return self.width // NUM_CTAS

    @property
    def up_columns(self) -> int:
        """Inner channels of the MLP that a CTA finishes."""
        return 4 * self.width // NUM_CTAS

    @property
    def tile_columns(self) -> int:
        """Columns of the residual stream that a CTA has sums for."""
        return self.width // NUM_TILES

    @property
    def weight_slot_bytes(self) -> int:
        """The most weights that a slot of the ring takes: those of a pair's columns, or of a tile's."""
        rows = max(2 * padded(3 * self.head_columns), 2 * self.up_columns, self.tile_columns)
        return rows * 128 * self.blocks_per_slot

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a CTA; the kernel asserts that it counts the same."""
        rings = self.weight_slots * self.weight_slot_bytes
        rings += self.activation_slots * NUM_LATENTS * 128 * self.blocks_per_slot
        residual = 2 * 4 * 8 * self.tile_columns  # 8 rows of x and of z in float32
        columns = 2 * 4 * (4 + self.is_fp8) * self.tile_columns  # so many numbers a column, twice
        halves = 4 * NUM_LATENTS * max(self.up_columns, padded(3 * self.head_columns))
        norms, sums = 2 * 2 * 4 * NUM_LATENTS, 8 * 8 * 2 * 4
        barriers = 8 * (2 * self.weight_slots + 2 * self.activation_slots + _BARRIERS_BESIDE_RINGS)
        return rings + residual + columns + halves + norms + sums + barriers

    @property
    def macros(self) -> dict[str, int | str]:
        """What the kernel's source is compiled with."""
        return {"D": self.width, "HEADS": self.num_heads, "NCTA": NUM_CTAS, "WBYTES": self.weight_slot_bytes,
                "WSLOTS": self.weight_slots, "ASLOTS": self.activation_slots, "BPS": self.blocks_per_slot,
                "FP8": int(self.is_fp8),
                "SHARED_BYTES": self.shared_bytes, "QK_EPS": "1.1920929e-7f", "NORM_EPS": "1e-5f"}

    @property
    def product_widths(self) -> set[int]:
        """Columns of the wgmma products that the kernel makes."""
        head_maps = {padded(parts * self.head_columns) for parts in (1, 2, 3)}
        return head_maps | {self.up_columns, self.tile_columns // 2, 64}


def padded(columns: int) -> int:
    """Columns with zeros added, so that each of two warpgroups has a multiple of 8."""
    return -(-columns // 16) * 16


# The rings that were fastest of those tried on an H200 (recipes/LOG.md), of seed-35b-a3b and seed-27b.
SHAPES = {(shape.width, shape.is_fp8): shape for shape in (
    Shape(2048, weight_slots=8, activation_slots=8, blocks_per_slot=1),
    Shape(5120, weight_slots=3, activation_slots=4, blocks_per_slot=1),
    Shape(2048, weight_slots=8, activation_slots=8, blocks_per_slot=1, is_fp8=True),
    Shape(5120, weight_slots=3, activation_slots=4, blocks_per_slot=1, is_fp8=True))}
WIDTHS = sorted({width for width, _ in SHAPES})
