"""Each module measures one claim: `python -m benchmarks.<name>` prints a table, and stores what it measured."""
