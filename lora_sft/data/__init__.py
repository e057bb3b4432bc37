"""From rows on disk to labelled token ids: every row read is learned from, or counted as lost.

`corpus.build_corpus` is the way in. What is learned and what is not is decided in
`labels.labelling`, and nowhere else.

The four things that "row" could mean have four names:

- source row: a row as the file has it (`SourceRow`);
- example: a source row read by its format (`Example`): a conversation, a prompt with its
  completion, a text, or token ids;
- labelled row: token ids, and which of them are learned (`LabelledRow`); one example gives one or
  more;
- packed row: several labelled rows in one training row. Packing calls the labelled rows that it
  takes documents, as the literature does.
"""
