"""What every component must prove: the rows of docs/conformance.md, over everything that is registered."""
