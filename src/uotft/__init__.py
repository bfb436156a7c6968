"""Reuse the right part of the pre-training data when fine-tuning (Liu et al., NeurIPS 2022)."""
