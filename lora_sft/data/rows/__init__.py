"""Read source rows from files, folders, URLs and data sets of the Hub."""
