"""From labelled rows to the corpus: splits, files, cache, packing, account."""
