"""Turn labelled rows into the corpus: splits, files, cache, packing and account."""
