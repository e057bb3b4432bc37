"""Show token by token which text of the rows the model learns."""
