"""The methods that A-MAML is compared with; each file reads like its paper's pseudo-code."""

from baselines.anil import anil
from baselines.fomaml import FOMAML
from baselines.imaml import IMAML
from baselines.maml import MAML
from baselines.pretrained import Pretrained
from baselines.reptile import Reptile
from baselines.scratch import Scratch

__all__ = ["FOMAML", "IMAML", "MAML", "Pretrained", "Reptile", "Scratch", "anil"]
