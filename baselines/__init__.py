"""The methods that A-MAML is compared with; FOMAML, iMAML and Reptile are the library's own.

In the repository this is the package baselines, in the wheel amaml.baselines.
"""

from amaml.first_order import FOMAML, Reptile
from amaml.imaml import IMAML

from .maml import MAML
from .references import Pretrained, Scratch

__all__ = ["FOMAML", "IMAML", "MAML", "Pretrained", "Reptile", "Scratch"]
