"""The model and the data of the quickstart, shipped in the package so that it needs no network.

`base/` is a Llama of about one million parameters with its own tokenizer and chat template. It
reads and writes plain English, but cannot do the quickstart's task. `data/` holds this task: the
input is a customer's message, and the output is one line of JSON. `train.jsonl`, `validation.jsonl`
and `test.jsonl` have the messages format. `plain_text.jsonl` is held-out English text, which shows
that the base knows English. `tools/build_tiny_base.py` and `tools/build_quickstart_data.py` make
every file of both folders again from a seed.
"""
