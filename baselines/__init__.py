"""The methods that A-MAML is compared with; FOMAML, iMAML and Reptile are the library's own."""

from amaml.first_order import FOMAML, Reptile
from amaml.imaml import IMAML
from baselines.maml import MAML
from baselines.references import Pretrained, Scratch

__all__ = ["FOMAML", "IMAML", "MAML", "Pretrained", "Reptile", "Scratch"]
