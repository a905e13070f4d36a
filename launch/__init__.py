"""Before and around a job: expand a recipe, plan its runs, seal folders, start and follow them. Never imports torch."""
