"""The command line: thin commands that read arguments, call the pipeline and print."""
