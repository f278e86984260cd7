"""The contracts of the nine kinds of component, and the skeleton that wires them into a model."""
