"""What an answer did, named after the fact: never imported by training, sandbox or verdicts."""

from projected_grpo.grading.labels.detectors import OwnTests, Suspect, detect
from projected_grpo.grading.labels.labels import HACK_TYPES, LABELS, Label, label

__all__ = ["HACK_TYPES", "LABELS", "Label", "OwnTests", "Suspect", "detect", "label"]
