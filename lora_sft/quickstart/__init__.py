"""What the quickstart needs, shipped inside the package so that it runs without a network.

`base/` is a Llama of about one million parameters with its own tokenizer and chat template; it
reads and writes plain English and cannot do the quickstart's task. `data/` holds that task, a
customer's message in and one line of JSON out, as `train.jsonl`, `validation.jsonl` and
`test.jsonl` in messages form, and `plain_text.jsonl`, held-out English that shows what the base
knows. `tools/build_tiny_base.py` and `tools/build_quickstart_data.py` make every file of the two
folders again from a seed.
"""
