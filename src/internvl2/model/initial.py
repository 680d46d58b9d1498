"""Parameters that begin with random numbers, except on the meta device, which has none.

There torch would import its compiler to draw them, which takes a second or two of every start.
"""

import torch
from jaxtyping import Float
from torch import nn


def normal(*shape: int, deviation: float) -> Float[nn.Parameter, "..."]:
    """Numbers around 0 with this standard deviation."""
    numbers = torch.empty(shape)
    return nn.Parameter(numbers if numbers.is_meta else numbers.normal_(0, deviation))
