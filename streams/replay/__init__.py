"""Processing records again: resets, bounded runs beside production and their comparison, dead letters."""
