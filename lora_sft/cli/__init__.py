"""The command line: each command reads its arguments, calls the package and prints a result."""
