"""Turn rows on disk into labelled token ids, and count every source row that is left out.

Call `corpus.building.build_corpus`. Only the room `labels` decides which tokens are learned.

The word "row" could mean four things, so each of them has its own name:

- source row: a row as the file holds it (`SourceRow`);
- example: a source row after its format was read (`Example`). It is a conversation, a prompt with
  its completion, a text, or token ids;
- labelled row: token ids with their labels (`LabelledRow`). One example gives one or more;
- packed row: one training row that holds several labelled rows. In packing, each of these labelled
  rows is called a document, as in the literature.
"""
