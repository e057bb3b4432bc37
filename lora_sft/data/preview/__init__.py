"""What the model will and will not learn, shown token by token."""
