"""No training: the pre-trained network, and its target head as that starts.

No step is made, whatever ``train.recipe`` says (objectives.UNTRAINED), and the network is validated
once, at step 0. So the head's start is the whole method: ``train.target_head: class_means`` is the
nearest-class-mean classifier (Mensink et al. 2013), ``probe`` a linear probe (Kornblith et al.
2019). Fine-tuning has to beat both.

This objective reads no source images, so it ignores the selected classes.
"""

from __future__ import annotations

from uotft.core.records import Settings as BaseSettings
from uotft.models.network import TARGET
from uotft.training.objectives import plain

ROUTES = TARGET
terms = plain.terms  # the loss that the starting head has; no gradient is taken


class Settings(BaseSettings):
    """The objective ``frozen`` has no settings."""
