"""Public functions, one module per family."""
