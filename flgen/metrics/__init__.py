"""Measures of what a generator makes and of how masks move; torch is imported by the modules, not here."""
