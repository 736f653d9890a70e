"""What a person sees: console, result file, HTML."""
