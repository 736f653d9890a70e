"""Built-in transforms. A new one is a class in a file here that registers itself."""
