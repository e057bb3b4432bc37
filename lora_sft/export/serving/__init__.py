"""Write the files that servers need beside the weights: tokenizer, template, card, Modelfile."""
