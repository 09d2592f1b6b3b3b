"""How a direction is found: the record that travels with it, so that a refresh repeats the recipe it was made by."""

from __future__ import annotations

import dataclasses
from typing import Literal

Loss = Literal["fixed", "token_mean"]
Rows = Literal["difference", "permuted", "flipped", "clean"]
TEXTS_PER_PASS = 20  # where nothing else is set; on the CPU more of them fit no cache and take longer
TEXTS_PER_FORWARD = 64  # whose hidden states are read together


@dataclasses.dataclass(frozen=True)
class ExtractionOptions:
    """What is computed from a set of pairs.

    k_max: axes to keep at most, per matrix.
    loss_denominator: tokens; the fixed denominator of the training loss.
    batch_size: texts per backward pass, of like length; the device's memory bounds them.
    loss: `fixed` divides the sum over an answer's tokens by loss_denominator, as training does; `token_mean` by the
        answer's own length, so that short and long answers weigh the same.
    tau_axis: axes weaker than this share of the matrix's strongest one are not kept (0 keeps all).
    centred: subtract the mean row before the SVD: axes of what varies between pairs, not of what they share.
    rows: what the SVD is taken of. `difference`: hack - clean. Controls: `permuted`, the same with the two labels
        dealt anew over all completions; `flipped`, with hack and clean exchanged in a random half of the pairs (the
        span stays, only signs and the mean change). `clean`: the clean answers' own gradients, the span of updates
        that teach honest solving.
    label_seed: of the permutation and of the flips; the same at every refresh.
    """

    k_max: int
    loss_denominator: int
    batch_size: int = TEXTS_PER_PASS
    loss: Loss = "fixed"
    tau_axis: float = 0.0
    centred: bool = False
    rows: Rows = "difference"
    label_seed: int = 0
