"""Load a run, an adapter or a model, and answer: in the terminal or over the OpenAI API."""
