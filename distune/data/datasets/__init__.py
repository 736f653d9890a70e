"""Built-in datasets. A new one is a new file here that registers itself."""
