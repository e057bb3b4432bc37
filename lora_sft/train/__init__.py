"""Train an adapter from an adapted model and labelled rows."""
