"""From rows on disk to labelled token ids: every row read is learned from, or counted as lost.

`corpus.build_corpus` is the way in. What is learned and what is not is decided in
`supervision`, and nowhere else.
"""
