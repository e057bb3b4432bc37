"""What other programs need beside the weights: tokenizer, template, cards, Modelfile."""
