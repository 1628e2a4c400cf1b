"""Reprocessing: resets, bounded runs beside production and their comparison."""
