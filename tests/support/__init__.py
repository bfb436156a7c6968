"""Helpers that tests share; each module says at its top what it is for."""
