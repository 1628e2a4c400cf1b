"""Bounded runs: a range of the app's input, processed beside production."""
