"""The methods that A-MAML is compared with; each file reads like its paper's pseudo-code."""

from baselines.fomaml import FOMAML
from baselines.imaml import IMAML
from baselines.maml import MAML
from baselines.reptile import Reptile

__all__ = ["FOMAML", "IMAML", "MAML", "Reptile"]
