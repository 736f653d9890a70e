"""The configuration file and the job that it becomes."""
