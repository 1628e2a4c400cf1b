"""Compare two tables that should have the same rows, while both change.

``compare`` holds the function for programs; a database that can take part implements ``ComparableTable``.
"""
