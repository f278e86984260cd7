"""Names, options and specs: what turns a text into a checked description of a model, and that into a model."""
