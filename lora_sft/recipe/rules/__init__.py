"""Rules across the settings of a recipe: one small function per rule, one file per section.

A rule reads the resolved recipe and yields what it finds; it never repairs. Bounds and types of
single settings belong to the schema. To add a rule, write the function in its section's file, put
it into `RULES` of `table.py`, and give it a case in the tests, which check that every rule was hit.
"""
