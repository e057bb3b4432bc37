"""The sections of the recipe that are too long for one file, and how a section is written."""
