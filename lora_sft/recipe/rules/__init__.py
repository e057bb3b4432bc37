"""Rules about several settings of a recipe: one small function per rule, one file per section.

A rule reads the resolved recipe and yields what is wrong. It never changes the recipe. The types
and bounds of single settings belong to the schema. A rule's name states what must be true.

To add a rule, write the function in its section's file, list it in `RULES` of `table.py`, and add a
case to the tests. The tests check that each rule has a case.
"""
