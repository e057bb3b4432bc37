"""From what a recipe names (files, folders, addresses, hub data sets) to source rows."""
