"""The SigOpt service: the official client, over HTTP or with the in-memory service in a process of its own."""
